"""Carries out one operation on an agent and waits for its true outcome, whatever breaks on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

import anyio
import msgspec

from kernel.cli import show
from kernel.cli.client import PATIENCE, Answer, Change, Hub
from kernel.cli.exits import Exit
from kernel.cli.failure import Broken, CommandFailed, Unreachable
from kernel.cli.progress import Progress, open_progress
from kernel.clock import SYSTEM
from kernel.intent import ENDED

DEFAULT_WAIT = 120.0
HOLD_WAIT = 5.0
"""Seconds for which a held operation is waited for when nobody said how long: its broker may be here."""
QUIET = 0.5
"""Seconds before progress is looked for: most operations have ended by then."""
FIRST_LOOK, LAST_LOOK = 0.1, 1.0
"""Seconds between two looks; they grow from one to the other."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """How long a caller waits, and what becomes of the operation when nobody holds the broker."""

    seconds: float | None = None
    """None: as long as is usual."""
    follow: bool = True
    """False: its acceptance is all that is asked for."""
    delivery: Literal["hold", "now"] | None = None
    deadline: str | None = None
    """As `X-Dispatch-Deadline` takes it: seconds, or RFC 3339."""

    @property
    def budget(self) -> float:
        if not self.follow:
            return 0.0
        if self.seconds is not None:
            return self.seconds
        return HOLD_WAIT if self.delivery == "hold" else DEFAULT_WAIT

    @property
    def patience(self) -> float:
        """Seconds for which its request is repeated when no answer comes."""
        return self.budget if self.seconds is not None else max(self.budget, PATIENCE)

    @property
    def accepts_storing(self) -> bool:
        """Whether an operation that is stored and goes on is what the caller asked for."""
        return not self.follow or (self.delivery == "hold" and self.seconds is None)

    def headers(self, left: float) -> Mapping[str, str]:
        prefer = [f"deliver={self.delivery}"] if self.delivery else []
        prefer.append(f"wait={max(1, round(left))}" if self.follow else "respond-async")
        deadline = {"X-Dispatch-Deadline": self.deadline} if self.deadline else {}
        return {"Prefer": ", ".join(prefer), **deadline}


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """One operation: the request, and what people call it."""

    what: str
    """`start worker`: for messages."""
    op: str
    change: Change
    agent_id: str | None = None
    """None for an agent that is still to be made."""
    project_id: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it: done, or (`stored`) durable and going on as was asked for."""

    answer: Answer
    dispatch_id: str | None = None
    dispatch: dict[str, Any] | None = None
    """Where its end was followed; None when the answer told it."""
    stored: bool = False


async def carry_out(hub: Hub, wish: Wish, waiting: Waiting, *, silent: bool) -> Outcome:
    """Sends it and waits for its end as long as `waiting` says.

    Raises: CommandFailed: refused, ended badly, not known, or not ended yet.
    """
    end = SYSTEM.monotonic() + waiting.budget
    with open_progress(silent=silent) as progress:
        watch = Watch(hub, wish, progress)
        try:
            answer = await _send(hub, wish, waiting, watch)
            watch.dispatch_id = answer.dispatch_id or watch.dispatch_id
            return await _ended(hub, answer, waiting, watch, end)
        except anyio.get_cancelled_exc_class():
            watch.leave()
            raise


async def settled(hub: Hub, dispatch_id: str, what: str, waiting: Waiting, *, silent: bool) -> dict[str, Any]:
    """The dispatch once it ended, however it did; as it stands when the wait is over.

    Raises: CommandFailed when the hub refuses to tell.
    """
    wish = Wish(what=what, op="", change=Change(method="GET", path=""))
    with open_progress(silent=silent) as progress:
        watch = Watch(hub, wish, progress)
        watch.dispatch_id = dispatch_id
        seen, missing = await watch.until_ended(SYSTEM.monotonic() + waiting.budget)
    if seen is None:
        raise missing or _unseen(what)
    return seen


async def _send(hub: Hub, wish: Wish, waiting: Waiting, watch: Watch) -> Answer:
    """The answer to the request; progress is looked for while it is still to come."""
    result: Answer | CommandFailed
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.keep_looking)
        try:
            result = await hub.insist(
                wish.change,
                patience=waiting.patience,
                wait=waiting.budget,
                prefer=waiting.headers,
            )
        except CommandFailed as failed:
            # Raised outside: a task group would wrap it.
            result = failed
        tasks.cancel_scope.cancel()
    if isinstance(result, CommandFailed):
        raise result
    return result


async def _ended(hub: Hub, answer: Answer, waiting: Waiting, watch: Watch, end: float) -> Outcome:
    goes_on = answer.status == 202 and answer.dispatch_id is not None and not _is_gather(answer)
    in_doubt = answer.code == "outcome_unknown" and answer.dispatch_id is not None and SYSTEM.monotonic() < end
    if answer.status >= 400 and not in_doubt:
        raise hub.refused(answer)
    if goes_on and waiting.accepts_storing:
        return Outcome(answer=answer, dispatch_id=answer.dispatch_id, stored=True)
    if not goes_on and not in_doubt:
        return Outcome(answer=answer, dispatch_id=answer.dispatch_id)
    dispatch = await _follow(hub, watch, end, waiting.budget)
    return Outcome(answer=answer, dispatch_id=answer.dispatch_id, dispatch=dispatch)


def _is_gather(answer: Answer) -> bool:
    return isinstance(answer.document, dict) and bool(answer.document.get("envGather"))


async def _follow(hub: Hub, watch: Watch, end: float, budget: float) -> dict[str, Any]:
    seen, missing = await watch.until_ended(end)
    if seen is None or seen.get("state") not in ENDED:
        raise await _not_ended(hub, watch, seen, missing, budget)
    return _judged(seen, watch)


def _unseen(what: str) -> CommandFailed:
    return CommandFailed(f"{what}: nothing is known of it yet", Exit.UNKNOWN)


def _judged(dispatch: dict[str, Any], watch: Watch) -> dict[str, Any]:
    if dispatch["state"] == "done":
        return dispatch
    error = dispatch.get("error") or {}
    unknown = error.get("code") == "outcome_unknown"
    raise CommandFailed(
        f"{watch.wish.what}: {dispatch['state']}: {error.get('message') or error.get('code') or 'no reason is known'}",
        Exit.UNKNOWN if unknown else Exit.ENDED_BADLY,
        fix=f"`pointsman dispatch explain {dispatch.get('id')}` tells its course",
        document=dispatch,
    )


async def _not_ended(
    hub: Hub, watch: Watch, seen: dict[str, Any] | None, missing: CommandFailed | None, budget: float
) -> CommandFailed:
    reason = missing.message if missing else await _reason(hub, watch.dispatch_id)
    return CommandFailed(
        f"{watch.wish.what}: not ended after {budget:g} s: {reason}",
        Exit.UNKNOWN,
        fix=f"it goes on: `pointsman dispatch show {watch.dispatch_id}` tells its state, "
        f"`pointsman dispatch cancel {watch.dispatch_id}` ends it",
        document=seen,
    )


async def _reason(hub: Hub, dispatch_id: str | None) -> str:
    try:
        explained = await hub.get(f"/dispatches/{dispatch_id}/explain")
        return str(explained["sentence"])
    except (CommandFailed, LookupError, TypeError):
        return "its reason is not known"


class Watch:
    """What is known of one operation while it runs."""

    def __init__(self, hub: Hub, wish: Wish, progress: Progress) -> None:
        self.wish = wish
        self.dispatch_id: str | None = None
        self._hub = hub
        self._progress = progress
        self._began = SYSTEM.monotonic()

    async def keep_looking(self) -> None:
        """Looks once a second, as well as it can: the answer is on its way all the same."""
        await anyio.sleep(QUIET)
        while True:
            try:
                await self.look()
            except (Unreachable, Broken) as away:
                self._progress.tell(f"{self.wish.what}: {away.message}")
            except CommandFailed:
                self._progress.tell(f"{self.wish.what}: sent")
            await anyio.sleep(LAST_LOOK)

    async def until_ended(self, end: float) -> tuple[dict[str, Any] | None, CommandFailed | None]:
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
                self._progress.tell(f"{self.wish.what}: {failed.message}")
            if (seen and seen.get("state") in ENDED) or SYSTEM.monotonic() + pause >= end:
                return seen, missing
            await anyio.sleep(pause)
            pause = min(pause * 1.5, LAST_LOOK)

    async def look(self) -> dict[str, Any] | None:
        """The dispatch as it stands, told; None while nobody knows its id."""
        if self.dispatch_id is None:
            self.dispatch_id = await self._find()
        if self.dispatch_id is None:
            self._progress.tell(f"{self.wish.what}: sent")
            return None
        dispatch: dict[str, Any] = await self._hub.get(f"/dispatches/{quote(self.dispatch_id, safe='')}")
        self._progress.tell(f"{self.wish.what}: {await self._told(dispatch)}")
        return dispatch

    async def _find(self) -> str | None:
        """The intent that our request made, by the request id that it keeps."""
        query = {"agentId": self.wish.agent_id} if self.wish.agent_id else {"projectId": self.wish.project_id}
        page = await self._hub.get("/dispatches", op=self.wish.op, limit=20, **query)
        ours = (row for row in page["dispatches"] if row.get("requestId") == self.wish.change.request_id)
        return next((str(row["id"]) for row in ours), None)

    async def _told(self, dispatch: dict[str, Any]) -> str:
        told = [str(dispatch.get("state"))]
        if attempts := dispatch.get("attempts"):
            told.append(f"attempt {attempts}")
        if dispatch.get("agentId"):
            try:
                agent = await self._hub.get(f"/agents/{quote(str(dispatch['agentId']), safe='')}")
            except CommandFailed:
                return ", ".join(told)
            told.append("agent " + " ".join(str(agent[name]) for name in ("phase", "activity") if agent.get(name)))
        return ", ".join(told)

    def leave(self) -> None:
        """Says where the operation can be found again: it goes on without its caller."""
        if self.dispatch_id:
            show.note(f"{self.wish.what} goes on: `pointsman dispatch show {self.dispatch_id}` tells what became of it")
        else:
            show.note(f"{self.wish.what} may go on: look with `pointsman dispatch list`")
