"""conf/reference.yaml lists every setting with its default and one line of why."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from kernel import config
from kernel.config import Settings
from kernel.config.document import Table, parse

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "conf/reference.yaml"


def sections() -> dict[str, Table]:
    document = parse(REFERENCE.read_text(), "reference.yaml", {}, [])
    assert isinstance(document, Table)
    return {name: entry for name, entry in document.entries.items() if isinstance(entry, Table)}


def test_reference_says_what_the_code_does() -> None:
    assert config.load(REFERENCE, (), {}) == Settings()


@pytest.mark.parametrize(
    "section", [field.name for field in msgspec.structs.fields(Settings) if field.name != "plugins"]
)
def test_every_setting_is_listed_in_the_order_of_the_code(section: str) -> None:
    (field,) = (field for field in msgspec.structs.fields(Settings) if field.name == section)
    names = [inner.encode_name for inner in msgspec.structs.fields(field.type)]
    assert list(sections()[section].entries) == names


def test_every_setting_says_why() -> None:
    lines = [line for line in REFERENCE.read_text().splitlines() if re.match(r"  [a-z_]+:", line)]
    assert len(lines) == sum(len(section.entries) for section in sections().values())
    assert not [line for line in lines if not re.search(r"  # \S.{5,}", line)]


def test_every_key_of_a_plugins_entry_is_told() -> None:
    text = REFERENCE.read_text()
    assert all(re.search(rf"#\s+{key}:", text) for key in ("enabled", "before", "after", "config"))


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.name)
def test_no_configuration_names_another_file_of_the_checkout(path: Path) -> None:
    """They work from any working directory."""
    for entry in config.load(path, (), {"POINTSMAN_DSN": "postgresql://hub@db/hub"}).plugins:
        assert not entry.use.endswith(".py")
        assert "/" not in entry.use
