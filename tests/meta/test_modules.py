"""Every module stands on its own: importable first, and saying what it is for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernel

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("kernel", "plugins", "broker")
ALL = (*SHIPPED, "tests", "examples", "bench", "docs")
NO_PROMISE = {"utils", "util", "common", "base", "models", "manager", "handlers", "helpers", "misc"}

IMPORT_EACH = """
import importlib, json, os, sys
import alembic, anyio, click, falcon.asgi, httpx2, msgspec, sqlalchemy, uvicorn  # shared: only ours is imported anew
failed = {}
for name in json.load(sys.stdin):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        if text := told.read():
            failed[name] = text.decode()
    os.waitpid(child, 0)
json.dump(failed, sys.stdout)
"""


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_can_be_imported_first() -> None:
    """In a process that has imported nothing else of ours: a circle of imports shows here."""
    run_by_alembic = {"plugins.storage.migrations.env"}
    names = [name for name in map(module_of, files(*SHIPPED)) if name not in run_by_alembic]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EACH],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        cwd=ROOT,
    )
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize("folder", ALL)
def test_first_line_of_every_file_is_its_promise(folder: str) -> None:
    silent = [str(path.relative_to(ROOT)) for path in files(folder) if not _promise(path)]
    assert not silent


def _promise(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    start = 1 if lines and lines[0].startswith("#!") else 0
    return bool(ast.get_docstring(ast.parse(text))) and lines[start].startswith(('"""', 'r"""'))


def test_no_room_is_without_a_promise() -> None:
    assert not [module_of(path) for path in files(*SHIPPED) if set(module_of(path).split(".")) & NO_PROMISE]


# -- what is imported when -----------------------------------------------------------------------------------


def imported_by(statement: str) -> set[str]:
    """The modules in a fresh process after `statement`."""
    script = f"{statement}\nimport sys, json\njson.dump(sorted(sys.modules), sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(names)


HEAVY = {"falcon", "uvicorn", "sqlalchemy", "alembic", "httpx2", "cryptography", "joserfc", "prometheus_client", "yaml"}


def test_door_of_the_plugins_imports_nothing_until_it_is_asked() -> None:
    assert {name for name in imported_by("import kernel") if name.startswith("kernel.")} == set()


def test_wire_brings_nothing_of_ours_along() -> None:
    assert {name for name in imported_by("import kernel.wire") if name.startswith("kernel")} == {
        "kernel",
        "kernel.wire",
    }


def test_broker_brings_nothing_of_the_hub_along() -> None:
    found = imported_by("import broker.serve")
    assert {name for name in found if name.startswith("kernel")} == {"kernel", "kernel.wire"}
    assert not found & (HEAVY - {"httpx2"})


def test_help_of_the_command_line_imports_no_command() -> None:
    found = imported_by("import kernel.cli\nkernel.cli.main(['--help'])")
    assert not found & (HEAVY | {"anyio", "rich", "kernel.hub", "kernel.cli.serve", "kernel.cli.client"})


def test_a_plugins_import_brings_only_nouns_along() -> None:
    found = imported_by("import plugins.routes.local")
    assert not found & (HEAVY | {"kernel.hub", "kernel.dispatch", "kernel.loader", "kernel.hooks", "kernel.api"})


def test_every_name_of_the_door_is_there() -> None:
    for name in dir(kernel):
        assert getattr(kernel, name) is not None


def test_type_checkers_see_the_same_door() -> None:
    """Each module of the door is imported for them too."""
    tree = ast.parse((ROOT / "kernel/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        node.module.removeprefix("kernel.") for node in block.body if isinstance(node, ast.ImportFrom) and node.module
    }
    assert seen == set(kernel._NAMES)


def test_name_that_the_door_does_not_have_is_told() -> None:
    with pytest.raises(AttributeError, match="kernel has no Nothing for plugins"):
        _ = kernel.Nothing  # type: ignore[attr-defined]
