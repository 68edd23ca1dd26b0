"""The documentation tells what the code does: generated pages are current, links lead somewhere, tables agree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernel
from docs import generate
from docs.generator.values import VALUES
from kernel.hookspecs import RULES
from kernel.intent import STEPS, State

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("conf/**/*.md")]
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_generated_pages_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_every_page_is_on_the_map() -> None:
    """Decisions have a map of their own."""
    on_map = {target for target in links(ROOT / "docs/README.md") if "://" not in target}
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/*/*.md")}
    missing = {page for page in pages - on_map if not page.startswith("decisions/")}
    assert not missing, f"docs/README.md does not lead to {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = [link for link in links(page) if not leads_somewhere(page, link)]
    assert not broken, f"{name_of(page)} links to {broken}"


def links(page: Path) -> list[str]:
    return LINK.findall(without_code(page.read_text(encoding="utf-8")))


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def leads_somewhere(page: Path, link: str) -> bool:
    if "://" in link:
        return True
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> Iterator[str]:
    """As forges make them of headings."""
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# -- tables that repeat what the code says ------------------------------------------------------------------------


def test_the_life_of_a_command_shows_every_step_and_no_other() -> None:
    text = (ROOT / "docs/explanation/life-of-a-command.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \|", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    shown = {(before, after) for _, before, after in rows if before != "routed"}
    assert shown == {(before.value, after.value) for before, follow in STEPS.items() for after in follow}


def test_the_picture_has_every_state_and_every_arrow_of_the_table() -> None:
    picture = (ROOT / "docs/explanation/life-of-a-command.svg").read_text(encoding="utf-8")
    words = set(re.findall(r">([\w ]+)</text>", picture))
    assert {state.value for state in State if state is not State.NONE} <= words
    text = (ROOT / "docs/explanation/life-of-a-command.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"^\| (\d+) \|", text, re.MULTILINE))
    assert numbers == set(re.findall(r">(\d+)(?: [^<]*)?</text>", picture))


def test_the_page_of_plugins_has_every_hook_in_its_order() -> None:
    text = (ROOT / "docs/explanation/plugins.md").read_text(encoding="utf-8")
    table = text.partition("## The hooks, in the order")[2].partition("##")[0]
    assert re.findall(r"^\|[^|]*\| `(\w+)` \|", table, re.MULTILINE) == list(RULES)


def test_everything_that_hooks_are_given_can_be_imported_from_the_kernel() -> None:
    for value in VALUES:
        assert getattr(kernel, value.__name__) is value


def test_the_glossary_has_an_entry_for_each_word_that_it_leans_on() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    entries = {part.strip().lower() for entry in re.findall(r"\*\*(.+?)\*\*", text) for part in entry.split(",")}
    leaned_on = {word.lower() for word in re.findall(r"(?<!\*)\*(\w[\w ]*)\*(?!\*)", text)}
    missing = {word for word in leaned_on if not {word, word.removesuffix("s"), word.replace("ies", "y")} & entries}
    assert not missing - {state.value for state in State} - {"italics"}, sorted(missing)


def test_the_glossary_is_in_order() -> None:
    words = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").partition("## Words")[2]
    entries = [entry.lower() for entry in re.findall(r"^\*\*(.+?)\*\* –", words, re.MULTILINE)]
    assert entries == sorted(entries)


# -- code in pages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_a_page_is_python(page: Path) -> None:
    if "docs/reference/" in name_of(page):
        return
    for sample in SAMPLE.findall(page.read_text(encoding="utf-8")):
        ast.parse(sample)


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(ROOT.glob("examples/*/")), ids=lambda folder: folder.name)
def test_an_example_is_a_package_with_its_test_and_its_page(folder: Path) -> None:
    module = folder / f"{folder.name}.py"
    assert len(module.read_text(encoding="utf-8").splitlines()) < 40
    for name in ("pyproject.toml", "README.md", f"test_{folder.name}.py"):
        assert (folder / name).is_file(), f"{name_of(folder)} has no {name}"


@pytest.mark.parametrize("folder", sorted(ROOT.glob("examples/*/")), ids=lambda folder: folder.name)
def test_an_example_imports_only_what_a_third_party_may(folder: Path) -> None:
    """`kernel` and nothing deeper; its own test may import the shipped contracts too."""
    for file in folder.glob("*.py"):
        deeper = {name for name in imported(file) if name.startswith(("kernel.", "plugins", "broker", "tests"))}
        assert deeper <= ({"kernel.testing.routes"} if file.name.startswith("test_") else set()), file


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
