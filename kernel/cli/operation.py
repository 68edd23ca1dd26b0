"""Carries out one operation on an agent and waits for its true outcome, whatever breaks on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import anyio
import msgspec

from kernel.cli import show
from kernel.cli.client import PATIENCE, Answer, Change, Hub
from kernel.cli.exits import Exit
from kernel.cli.failure import CommandFailed
from kernel.cli.progress import Progress, open_progress
from kernel.cli.watch import Watch
from kernel.clock import SYSTEM
from kernel.intent import ENDED

DEFAULT_WAIT = 120.0
HOLD_WAIT = 5.0
"""Seconds for which a held operation is waited for when nobody said how long: its broker may be here."""
WITHOUT_HOLD = {
    "runtime_broker_unavailable": "the broker takes it",
    "runtime_broker_paused": "the broker is resumed (`pointsman broker resume`)",
    "invalid_state": "the agent's next start",
}
"""Refusals that may not come with --hold, and until when it would be kept."""


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

    def watched(self, hub: Hub, progress: Progress) -> Watch:
        where = {"agentId": self.agent_id} if self.agent_id else {"projectId": self.project_id}
        return Watch(hub, self.what, progress, request_id=self.change.request_id, query={"op": self.op, **where})

    def fix_for(self, refused: Answer, waiting: Waiting) -> str | None:
        """What the hub's own words cannot know: the options of this command line."""
        if refused.code == "no_runtime_broker":
            return _brokers_to_name(refused)
        until = WITHOUT_HOLD.get(refused.code)
        if until is None or waiting.delivery == "hold" or (refused.code == "invalid_state" and self.op != "message"):
            return None
        return f"--hold{' instead of --now' if waiting.delivery else ''} keeps it until {until}"


def _brokers_to_name(refused: Answer) -> str | None:
    listed = ((refused.error or {}).get("details") or {}).get("availableBrokers") or []
    online = [str(broker.get("name")) for broker in listed if broker.get("status") == "online"]
    return f"connected: {', '.join(online)}; name one with --broker" if online else None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it: done, or (`stored`) durable and going on as was asked for."""

    answer: Answer
    dispatch_id: str | None = None
    dispatch: dict[str, Any] | None = None
    """Where its end was followed; None when the answer told it."""
    stored: bool = False


def tell_stored(outcome: Outcome, what: str) -> None:
    """For people: that it goes on, and where it can be found again."""
    show.say(f"{what}: stored as {outcome.dispatch_id}")
    show.note(f"`pointsman dispatch show {outcome.dispatch_id}` tells what became of it")


async def carry_out(hub: Hub, wish: Wish, waiting: Waiting, *, silent: bool) -> Outcome:
    """Sends it and waits for its end as long as `waiting` says.

    Raises: CommandFailed: refused, ended badly, not known, or not ended yet.
    """
    end = SYSTEM.monotonic() + waiting.budget
    with open_progress(silent=silent) as progress:
        watch = wish.watched(hub, progress)
        with watch.left_on_interrupt():
            answer = await _send(hub, wish, waiting, watch)
            watch.dispatch_id = answer.dispatch_id or watch.dispatch_id
            return await _ended(hub, wish, answer, waiting, watch, end)


async def settled(hub: Hub, dispatch_id: str, what: str, waiting: Waiting, *, silent: bool) -> dict[str, Any]:
    """The dispatch once it ended, however it did; as it stands when the wait is over.

    Raises: CommandFailed when the hub does not tell.
    """
    with open_progress(silent=silent) as progress:
        watch = Watch(hub, what, progress, dispatch_id=dispatch_id)
        with watch.left_on_interrupt():
            seen, missing = await watch.until_ended(SYSTEM.monotonic() + waiting.budget)
    if seen is None:
        raise await _not_ended(hub, watch, None, missing, waiting.budget)
    return seen


async def followed(hub: Hub, dispatch_id: str, what: str, waiting: Waiting, *, silent: bool) -> dict[str, Any]:
    """The dispatch once it is done. Raises: CommandFailed: ended badly, not known, or not ended yet."""
    with open_progress(silent=silent) as progress:
        watch = Watch(hub, what, progress, dispatch_id=dispatch_id)
        with watch.left_on_interrupt():
            return await _follow(hub, watch, SYSTEM.monotonic() + waiting.budget, waiting.budget)


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
        if result.exit_code == Exit.UNKNOWN and watch.dispatch_id:
            result.fix = f"`pointsman dispatch show {watch.dispatch_id}` tells, once the hub is back"
        raise result
    return result


async def _ended(hub: Hub, wish: Wish, answer: Answer, waiting: Waiting, watch: Watch, end: float) -> Outcome:
    goes_on = answer.status == 202 and answer.dispatch_id is not None and not _is_gather(answer)
    in_doubt = answer.code == "outcome_unknown" and answer.dispatch_id is not None and SYSTEM.monotonic() < end
    if answer.status >= 400 and not in_doubt:
        raise hub.refused(answer, fix=wish.fix_for(answer, waiting))
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


def _judged(dispatch: dict[str, Any], watch: Watch) -> dict[str, Any]:
    if dispatch["state"] == "done":
        return dispatch
    error = dispatch.get("error") or {}
    unknown = error.get("code") == "outcome_unknown"
    raise CommandFailed(
        f"{watch.what}: {dispatch['state']}: {error.get('message') or error.get('code') or 'no reason is known'}",
        Exit.UNKNOWN if unknown else Exit.ENDED_BADLY,
        fix=f"`pointsman dispatch explain {dispatch.get('id')}` tells its course",
        document=dispatch,
    )


async def _not_ended(
    hub: Hub, watch: Watch, seen: dict[str, Any] | None, missing: CommandFailed | None, budget: float
) -> CommandFailed:
    reason = missing.message if missing else await _reason(hub, watch.dispatch_id)
    return CommandFailed(
        f"{watch.what}: not ended after {budget:g} s: {reason}",
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
