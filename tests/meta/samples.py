"""Takes the samples out of a page, and says whether what a command printed is what the page shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
MOMENT = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z| UTC|[+-]\d\d:\d\d)?"
SPAN = r"\d+(?:\.\d+)? (?:ms|s|min|h|d)\b"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
CLOCK = r"\d\d:\d\d:\d\d\.\d{3}"
ADDRESS = r"http://127\.0\.0\.1:\d+"
TOKEN = r"pm_dev_\w+"
VARIABLE = (
    (UUID, UUID),
    (MOMENT, MOMENT),
    (CLOCK, CLOCK),
    (ADDRESS, ADDRESS),
    (SPAN, SPAN),
    (TOKEN, TOKEN),
    ("…", ".*"),
    (" +", r"\s+"),
)
"""What differs from run to run, as a page shows it and as it is looked for; `…` stands for anything."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that a reader of the page is told to write."""

    name: str
    text: str


@dataclass(kw_only=True)
class Command:
    """One line after a `$ `, and the lines that the page shows below it."""

    line: str
    shown: list[str] = field(default_factory=list)


def samples(page: Path) -> Iterator[File | Command]:
    """In the order of the page."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["file"]:
            yield File(name=block["file"], text=block["text"])
        elif block["kind"] == "console":
            yield from _commands(block["text"])


def _commands(text: str) -> Iterator[Command]:
    """A command goes on while its lines end in a backslash."""
    command: Command | None = None
    for line in text.splitlines():
        if command and command.line.endswith("\\"):
            command.line = f"{command.line[:-1].rstrip()} {line.removeprefix('>').strip()}"
        elif line.startswith("$ "):
            if command:
                yield command
            command = Command(line=line.removeprefix("$ "))
        else:
            assert command, f"output before any command: {line}"
            command.shown.append(line)
    if command:
        yield command


def missing(shown: list[str], printed: str) -> str | None:
    """The first line of the page that was not printed, in its order; None when all were."""
    lines = iter(printed.splitlines())
    for wanted in shown:
        if wanted.strip() and not any(re.fullmatch(pattern(wanted), line.strip()) for line in lines):
            return wanted
    return None


def pattern(shown: str) -> str:
    """A line of a page as a regular expression in which what varies may vary."""
    found = re.compile("|".join(f"({seen})" for seen, _ in VARIABLE))
    parts: list[str] = []
    end = 0
    line = shown.strip()
    for match in found.finditer(line):
        parts += [re.escape(line[end : match.start()]), VARIABLE[(match.lastindex or 1) - 1][1]]
        end = match.end()
    return "".join([*parts, re.escape(line[end:])])
