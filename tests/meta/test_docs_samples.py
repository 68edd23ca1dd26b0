"""Every command in the README and in the pages that tell what to do is run, and prints what they show."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import ROOT, Child
from tests.meta.samples import Command, File, missing, pattern, samples

PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/[th]*/*.md")))]
"""Tutorial and how-to: everything that a reader is told to do."""
SERVES = re.compile(r"make run|pointsman serve .*")
GOES_ON = re.compile(r"pointsman broker run .*")
LOOKS = re.compile(r"\b(list|show|logs|explain|running)\b|^curl (?!.*-(X|d) )")
"""Commands that may be repeated until what they tell has happened."""
ONLINE = Command(line="pointsman broker list", shown=["built-in  online  …"])
"""The built-in broker joins a moment after the hub is ready: readers take longer to change terminals."""
USUAL_ADDRESS = "http://127.0.0.1:8080"
PATIENCE = 60.0


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_what_happens(page: str, tmp_path: Path) -> None:
    walk = Walk(tmp_path)
    try:
        for sample in samples(ROOT / page):
            match sample:
                case File(name=name, text=text):
                    (tmp_path / name).write_text(text, encoding="utf-8")
                case Command():
                    walk.take(sample)
    finally:
        walk.end()


class Walk:
    """One reader: a directory, and the programs that run on in other terminals."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[Child] = []
        self._environ = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "NO_COLOR": "1",
            "TZ": "UTC",
        }
        for name in ("conf", "examples", "docs"):
            shutil.copytree(ROOT / name, directory / name)

    def take(self, command: Command) -> None:
        if SERVES.fullmatch(command.line):
            self._leave_running(command, _as_served(command.line))
            self._run(ONLINE)
        elif GOES_ON.fullmatch(command.line):
            self._leave_running(command, command.line)
        else:
            self._run(command)

    def end(self) -> None:
        for child in reversed(self._running):
            child.stop(patience=15)
        for pid in _at_work_in(self._directory):
            os.kill(pid, signal.SIGKILL)

    def _run(self, command: Command) -> None:
        """Exit 0, and the lines of the page in their order."""
        end = time.monotonic() + (PATIENCE if LOOKS.search(command.line) else 0.0)
        while True:
            done = self._shell(command.line)
            lacking = missing(command.shown, done.stdout)
            if (done.returncode == 0 and lacking is None) or time.monotonic() > end:
                break
            time.sleep(0.3)
        told = f"$ {command.line}\n{done.stdout}"
        assert done.returncode == 0, f"exit {done.returncode}: {told}"
        assert lacking is None, f"the page shows {lacking!r}, looked for as {pattern(lacking)}; printed was\n{told}"

    def _shell(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line.replace(USUAL_ADDRESS, self._address())],
            check=False,
            cwd=self._directory,
            env={**os.environ, **self._environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )

    def _address(self) -> str:
        """Where the hub of this walk listens, once there is one."""
        ready = self._directory / "var/ready.json"
        return str(json.loads(ready.read_text())["url"]) if ready.exists() else USUAL_ADDRESS

    def _leave_running(self, command: Command, line: str) -> None:
        """In a terminal of its own, until it has printed what the page shows."""
        log = self._directory / f"terminal-{len(self._running)}.log"
        child = Child(["bash", "-c", f"exec {line}"], log, cwd=self._directory, env=self._environ)
        self._running.append(child)
        end = time.monotonic() + PATIENCE
        while (lacking := missing(command.shown, child.tail(10_000))) is not None:
            assert child.alive, f"$ {line}\nended with exit {child.exit_code}:\n{child.tail()}"
            assert time.monotonic() < end, f"the page shows {lacking!r}; printed was\n{child.tail()}"
            time.sleep(0.1)


def _at_work_in(directory: Path) -> Iterator[int]:
    """Agents outlive their broker: those of a walk that failed half-way are still there."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
        except OSError:
            continue
        if directory in place.parents:
            yield int(process.name)


def _as_served(line: str) -> str:
    """`make run` as the Makefile does it, less the building of the environment; any port will do."""
    if line == "make run":
        line = "pointsman serve --config conf/local.yaml --ready-file var/ready.json --with-broker"
    return f"{line} --port 0"


# -- the reader of pages itself ------------------------------------------------------------------------------------


ONE_ID, ANOTHER_ID = "0190c7b2-6f1e-7cc3-98c4-dc0c0c07398f", "01a2104e-5efe-7068-888e-b69d01ccd5c2"


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (
            f"worker running ({ONE_ID})",
            f"worker running ({ANOTHER_ID})",
        ),
        ("NAME  STATE", "NAME      STATE"),
        ("done  3 s ago", "done  120 ms ago"),
        ("at 2026-01-31 12:00:00 UTC", "at 2026-11-25 01:20:14 UTC"),
        ("token: pm_dev_…", "token: pm_dev_abc"),
    ],
)
def test_what_varies_may_vary(shown: str, printed: str) -> None:
    assert missing([shown], f"something before\n{printed}\nand after") is None


@pytest.mark.parametrize("printed", ["worker stopped", "worker running now", "", "running"])
def test_what_does_not_vary_may_not(printed: str) -> None:
    assert missing(["worker running"], printed) == "worker running"


def test_lines_are_looked_for_in_their_order() -> None:
    assert missing(["one", "two"], "one\nthree\ntwo") is None
    assert missing(["two", "one"], "one\nthree\ntwo") == "one"


def test_a_command_may_go_on_in_the_next_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo one \\\n>   two\none two\n$ true\n```\n")
    assert [command.line for command in _of(page)] == ["echo one two", "true"]


def _of(page: Path) -> Iterator[Command]:
    return (sample for sample in samples(page) if isinstance(sample, Command))
