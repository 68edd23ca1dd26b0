"""The course of one dispatch, line by line: who accepted, woke, claimed, sent and ended it, with the time between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from kernel.cli.show import instant

Row = Mapping[str, Any]
LOST = {"link_lost": "the broker's socket was lost", "owner_lost": "its hub was lost", "unheard": "nobody heard of it"}
ENDS = ("done", "failed", "expired", "cancelled")


class Moment(NamedTuple):
    """One line, before the times between are known."""

    at: datetime
    node: str
    what: str


def timeline(dispatch: Row, transitions: Sequence[Row], known: Mapping[str, str] | None = None) -> list[str]:
    """Lines of text: milliseconds since it was accepted, since the line before, which hub, what happened.

    `dispatch` is `GET /dispatches/{id}`, `transitions` those of its explanation. Hubs are named A, B, … in the order
    in which they come, but for those that are `known` by a name already; the last lines say which is which.
    """
    moments = sorted(_moments(dispatch, transitions), key=lambda moment: moment.at)
    if not moments:
        return []
    named = _named([*(moment.node for moment in moments), *(_woken(step) for step in transitions)])
    names = named | dict(known or {})
    first, before = moments[0].at, moments[0].at
    lines = [_heading(dispatch, first)]
    for moment in moments:
        total, since = _milliseconds(moment.at - first), _milliseconds(moment.at - before)
        before = moment.at
        what = _with_names(moment.what, names)
        lines.append(f"{total:>10.1f} ms  {f'+{since:.1f}':>9}  {names.get(moment.node, '-')}  {what}")
    return lines + [f"{name} = hub {node}" for node, name in names.items() if node not in (known or {})]


def _heading(dispatch: Row, first: datetime) -> str:
    about = dispatch.get("agentSlug") or dispatch.get("agentId")
    at = first.astimezone().isoformat(sep=" ", timespec="milliseconds")
    return f"{dispatch.get('op')} {about} {dispatch.get('id')}: {dispatch.get('state')}; accepted {at}"


def _moments(dispatch: Row, transitions: Sequence[Row]) -> Iterator[Moment]:
    for step in transitions:
        at = instant(step.get("at"))
        if at:
            yield Moment(at, str(step.get("nodeId") or ""), _what(step))
    owner = str(dispatch.get("claimedBy") or _last_claimer(transitions))
    for field, what in (("sentAt", "sent to the broker"), ("acceptedAt", "taken by the broker")):
        at = instant(dispatch.get(field))
        if at:
            yield Moment(at, owner, what)


def _last_claimer(transitions: Sequence[Row]) -> str:
    claimed = [str(step.get("nodeId") or "") for step in transitions if step.get("to") == "in_progress"]
    return claimed[-1] if claimed else ""


def _what(step: Row) -> str:
    came_from, to, reason = step.get("from"), step.get("to"), str(step.get("reason") or "")
    if to == "routed":
        why = str((step.get("detail") or {}).get("reason") or "").replace("_", " ")
        woken = f"; hub {{{_woken(step)}}} is woken once it is recorded" if _woken(step) else ""
        return f"accepted, route {reason}{f' ({why})' if why else ''}{woken}"
    if came_from == "routed":
        return "recorded" if to == "pending" else f"in hand at once: attempt {step.get('attempt')}"
    if to == "in_progress":
        again = " again, the database had lost it" if reason == "reclaimed" else ""
        return f"claimed{again}: attempt {step.get('attempt')}, epoch {step.get('epoch')}"
    if to == "pending":
        return f"put back: {LOST.get(reason, reason.replace('_', ' '))}"
    return f"{to}: {reason.replace('_', ' ')}" if to in ENDS else f"{to} ({reason})"


def _woken(step: Row) -> str:
    return str((step.get("detail") or {}).get("to") or "")


def _named(nodes: Sequence[str]) -> dict[str, str]:
    """Node → a letter; a number after them, should there be more than the alphabet has."""
    known = [node for node in dict.fromkeys(nodes) if node]
    return {node: chr(ord("A") + n) if n < 26 else str(n) for n, node in enumerate(known)}


def _with_names(what: str, names: Mapping[str, str]) -> str:
    for node, name in names.items():
        what = what.replace(f"{{{node}}}", name)
    return what


def _milliseconds(span: Any) -> float:
    return float(span.total_seconds() * 1000)
