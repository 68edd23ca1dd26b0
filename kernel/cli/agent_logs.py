"""`pointsman agent logs`: what an agent printed, once or as it goes on."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed
from kernel.cli.options import asks_hub, json_option
from kernel.cli.text import clean_block

if TYPE_CHECKING:
    from kernel.cli.client import Hub

Row = dict[str, Any]
WINDOW = 2000
"""Lines that each look of --follow asks for: what is printed between two looks has to fit in."""
FIRST_LOOK, LAST_LOOK = 0.5, 2.0
"""Seconds between two looks; they grow while nothing is printed."""
AWAY = 30.0
"""Seconds for which --follow bears a hub or broker that is away."""
WITHIN = 40.0
"""Seconds for the log itself: the hub asks the broker for it, and gives it 30."""
OVER = frozenset({"stopped", "error"})
REPORT = "::status {"
"""How a line begins by which an agent reports what it does: `agent show` tells that better than its log."""
LINE = re.compile(r"[^\n]*\n|[^\n]+")


@click.command("logs")
@click.argument("agent")
@click.option("--tail", type=click.IntRange(min=1), default=200, show_default=True, help="The last so many lines.")
@click.option("--raw", is_flag=True, help="With the lines by which it reports its status.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the agent has stopped, or Ctrl-C.")
@json_option
@asks_hub
async def logs(hub: Hub, agent: str, tail: int, raw: bool, follow: bool, as_json: bool) -> None:
    """Show what an agent printed, less its `::status` lines. --json shows the hub's answer, with all of them."""
    from kernel.cli.names import agent_named, path_of

    if follow and as_json:
        raise click.UsageError("--json is one document and --follow has no end: give one of them")
    row = await agent_named(hub, agent)
    log = Log(hub, path_of("agents", row["id"]))
    if as_json:
        show.document(await log.ask(tail))
    elif follow:
        await Following(log, Sieve(raw=raw), tail).run()
    else:
        _write(await log.last(tail, raw=raw))


def _write(text: str) -> None:
    """To a terminal only what cannot harm it; to a pipe what the agent printed."""
    if sys.stdout.isatty():
        text = clean_block(text, colour=not os.environ.get("NO_COLOR"))
    show.block(text)


class Log:
    """What the hub tells of one agent's log."""

    def __init__(self, hub: Hub, path: str) -> None:
        self._hub = hub
        self._path = path
        self._most = WINDOW

    async def ask(self, tail: int) -> Row:
        answer: Row = await self._hub.get(f"{self._path}/logs", within=WITHIN, tail=tail)
        return answer

    async def is_over(self) -> bool:
        """Asked before the log is read, so that the last lines of a stopped agent are not missed."""
        return (await self._hub.get(self._path)).get("phase") in OVER

    async def window(self, least: int = 0) -> str:
        """As many of its last lines as are looked at together: fewer where they would not fit into one answer."""
        self._most = max(self._most, least)
        while True:
            try:
                return str((await self.ask(self._most)).get("logs") or "")
            except CommandFailed as failed:
                if "too_large" not in f"{failed.code} {failed.message}" or self._most < 2:
                    raise
                self._most //= 2

    async def last(self, count: int, *, raw: bool) -> str:
        """Its last lines; of those that are shown as many as were asked for, where they are near enough."""
        text = str((await self.ask(count)).get("logs") or "")
        shown = Sieve(raw=raw).rest(text)
        if shown != text and text.count("\n") >= count:
            shown = Sieve(raw=raw).rest(await self.window(count))
        return last_lines(shown, count)


class Sieve:
    """Lets through what an agent says, and keeps back its reports; `raw` lets everything through."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._held = ""
        """The beginning of a line that may be a report: nothing of it was let through."""
        self._inside = False
        """The line that is not at its end yet is none."""

    def through(self, text: str) -> str:
        """What of `text`, which goes on where the last one ended, is shown."""
        if self._raw:
            return text
        lines = LINE.findall(self._held + text)
        self._held = ""
        return "".join([line for line in lines if self._passes(line)])

    def _passes(self, line: str) -> bool:
        ended = line.endswith("\n")
        goes_on, self._inside = self._inside, not ended
        if goes_on or not (line.startswith(REPORT) or (not ended and REPORT.startswith(line))):
            return True
        self._inside = False
        self._held = "" if ended else line
        return False

    def rest(self, text: str) -> str:
        """As `through`, where nothing more follows."""
        shown = self.through(text)
        return shown if self._held.startswith(REPORT) else shown + self._held


class Following:
    """Looks again and again, and prints what was not there before."""

    def __init__(self, log: Log, sieve: Sieve, tail: int) -> None:
        self._log = log
        self._sieve = sieve
        self._tail = tail
        self._seen: str | None = None

    async def run(self) -> None:
        import anyio

        pause, away = FIRST_LOOK, 0.0
        while True:
            try:
                over = await self._log.is_over()
                grew = await self._look()
                away = 0.0
            except CommandFailed as failed:
                away += pause
                if failed.exit_code != Exit.NO_HUB or self._seen is None or away >= AWAY:
                    raise
                grew = over = False
            if over:
                _write(self._sieve.rest(""))
                return
            pause = FIRST_LOOK if grew else min(pause * 1.5, LAST_LOOK)
            await anyio.sleep(pause)

    async def _look(self) -> bool:
        text = await self._log.window(self._tail)
        if self._seen is None:
            shown = last_lines(self._sieve.through(text), self._tail)
        else:
            shown = self._sieve.through(news(self._seen, text))
        grew, self._seen = text != self._seen, text
        if shown:
            _write(shown)
        return grew


def last_lines(text: str, count: int) -> str:
    start = len(text) - 1 if text.endswith("\n") else len(text)
    for _ in range(count):
        start = text.rfind("\n", 0, start)
        if start < 0:
            return text
    return text[start + 1 :]


def news(before: str, now: str) -> str:
    """What of `now` comes after `before`, of which the beginning may be gone by now.

    `now` may begin inside a line. A log that repeats one line for ever is told apart only while its beginning is
    still there.
    """
    for kept in (now, now[now.find("\n") + 1 :]):
        start = 0
        while start < len(before):
            if kept.startswith(before[start : start + 80]) and kept.startswith(before[start:]):
                return kept[len(before) - start :]
            start = before.find("\n", start) + 1 or len(before)
    return now
