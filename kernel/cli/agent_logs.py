"""`pointsman agent logs`: what an agent printed, once or as it goes on."""

from __future__ import annotations

import os
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


@click.command("logs")
@click.argument("agent")
@click.option("--tail", type=click.IntRange(min=1), default=200, show_default=True, help="The last so many lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the agent has stopped, or Ctrl-C.")
@json_option
@asks_hub
async def logs(hub: Hub, agent: str, tail: int, follow: bool, as_json: bool) -> None:
    """Show what an agent printed."""
    from kernel.cli.names import agent_named, path_of

    if follow and as_json:
        raise click.UsageError("--json is one document and --follow has no end: give one of them")
    row = await agent_named(hub, agent)
    path = path_of("agents", row["id"])
    if follow:
        await Following(hub, path, tail).run()
        return
    answer = await hub.get(f"{path}/logs", within=WITHIN, tail=tail)
    if as_json:
        show.document(answer)
    else:
        _write(str(answer.get("logs") or ""))


def _write(text: str) -> None:
    """To a terminal only what cannot harm it; to a pipe what the agent printed."""
    if sys.stdout.isatty():
        text = clean_block(text, colour=not os.environ.get("NO_COLOR"))
    show.block(text)


class Following:
    """Looks again and again, and prints what was not there before."""

    def __init__(self, hub: Hub, path: str, tail: int) -> None:
        self._hub = hub
        self._path = path
        self._tail = tail
        self._window = max(WINDOW, tail)
        self._seen: str | None = None

    async def run(self) -> None:
        import anyio

        pause, away = FIRST_LOOK, 0.0
        while True:
            try:
                over = await self._is_over()
                grew = await self._look()
                away = 0.0
            except CommandFailed as failed:
                away += pause
                if failed.exit_code != Exit.NO_HUB or self._seen is None or away >= AWAY:
                    raise
                grew = over = False
            if over:
                return
            pause = FIRST_LOOK if grew else min(pause * 1.5, LAST_LOOK)
            await anyio.sleep(pause)

    async def _is_over(self) -> bool:
        """Asked before the log is read, so that the last lines of a stopped agent are not missed."""
        return (await self._hub.get(self._path)).get("phase") in OVER

    async def _look(self) -> bool:
        text = await self._read()
        new = last_lines(text, self._tail) if self._seen is None else news(self._seen, text)
        self._seen = text
        if new:
            _write(new)
        return bool(new)

    async def _read(self) -> str:
        """The last lines of the log: fewer of them where they would not fit into one answer."""
        while True:
            try:
                answer = await self._hub.get(f"{self._path}/logs", within=WITHIN, tail=self._window)
                return str(answer.get("logs") or "")
            except CommandFailed as failed:
                if "too_large" not in f"{failed.code} {failed.message}" or self._window < 2:
                    raise
                self._window //= 2


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
