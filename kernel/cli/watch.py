"""Looks at one operation while it runs, and tells what it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio

from kernel.cli import show
from kernel.cli.client import Hub
from kernel.cli.exits import Exit
from kernel.cli.failure import Broken, CommandFailed, Unreachable
from kernel.cli.names import path_of
from kernel.cli.progress import Progress
from kernel.clock import SYSTEM
from kernel.intent import ENDED

QUIET = 0.5
"""Seconds before progress is looked for: most operations have ended by then."""
FIRST_LOOK, LAST_LOOK = 0.1, 1.0
"""Seconds between two looks; they grow from one to the other."""
LOOK_WITHIN = 5.0
"""Seconds for the answer to one look."""
Row = dict[str, Any]


class Watch:
    """Its dispatch is known by id, or found among those of `query` by the id of the request that made it."""

    def __init__(
        self,
        hub: Hub,
        what: str,
        progress: Progress,
        *,
        dispatch_id: str | None = None,
        request_id: str | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> None:
        self.what = what
        self.dispatch_id = dispatch_id
        self._hub = hub
        self._progress = progress
        self._request_id = request_id
        self._query = dict(query or {})

    async def keep_looking(self) -> None:
        """Looks once a second, as well as it can: the answer is on its way all the same."""
        await anyio.sleep(QUIET)
        while True:
            try:
                await self.look()
            except (Unreachable, Broken) as away:
                self._tell(away.message)
            except CommandFailed:
                self._tell("sent")
            await anyio.sleep(LAST_LOOK)

    async def until_ended(self, end: float) -> tuple[Row | None, CommandFailed | None]:
        """The dispatch as last seen, ended unless `end` came first; and why the last look saw nothing.

        A hub that is away meanwhile is looked for again. Raises: CommandFailed for every other refusal.
        """
        pause, seen = FIRST_LOOK, None
        while True:
            missing = None
            try:
                seen = await self.look() or seen
            except CommandFailed as failed:
                if failed.exit_code != Exit.NO_HUB:
                    raise
                missing = failed
                self._tell(failed.message)
            if (seen and seen.get("state") in ENDED) or SYSTEM.monotonic() + pause >= end:
                return seen, missing
            await anyio.sleep(pause)
            pause = min(pause * 1.5, LAST_LOOK)

    async def look(self) -> Row | None:
        """The dispatch as it stands, told; None while nobody knows its id."""
        if self.dispatch_id is None:
            self.dispatch_id = await self._find()
        if self.dispatch_id is None:
            self._tell("sent")
            return None
        dispatch: Row = await self._hub.get(path_of("dispatches", self.dispatch_id), within=LOOK_WITHIN)
        self._tell(await self._described(dispatch))
        return dispatch

    async def _find(self) -> str | None:
        page = await self._hub.get("/dispatches", within=LOOK_WITHIN, limit=20, **self._query)
        ours = (row for row in page["dispatches"] if row.get("requestId") == self._request_id)
        return next((str(row["id"]) for row in ours), None)

    async def _described(self, dispatch: Row) -> str:
        told = [str(dispatch.get("state"))]
        if attempts := dispatch.get("attempts"):
            told.append(f"attempt {attempts}")
        if dispatch.get("agentId"):
            try:
                agent = await self._hub.get(path_of("agents", str(dispatch["agentId"])), within=LOOK_WITHIN)
            except CommandFailed:
                return ", ".join(told)
            told.append("agent " + " ".join(str(agent[name]) for name in ("phase", "activity") if agent.get(name)))
        return ", ".join(told)

    def _tell(self, text: str) -> None:
        self._progress.tell(f"{self.what}: {text}")

    @contextmanager
    def left_on_interrupt(self) -> Iterator[None]:
        """Says where the operation can be found again: it goes on without its caller."""
        try:
            yield
        except anyio.get_cancelled_exc_class():
            if self.dispatch_id:
                show.note(f"{self.what} goes on: `pointsman dispatch show {self.dispatch_id}` tells what became of it")
            else:
                show.note(f"{self.what} may go on: look with `pointsman dispatch list`")
            raise
