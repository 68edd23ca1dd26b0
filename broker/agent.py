"""One agent as its broker knows it."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel import wire

MOST_DETAIL = 16_384
"""Bytes of JSON that an agent may report about itself."""


class AgentRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Kept on disk by the agent's id; a slug belongs to one agent of its project."""

    id: str
    slug: str
    name: str
    project_id: str
    phase: str
    run_id: str | None = None
    """The run that its keeper was started for: what answers and reports name."""
    activity: str | None = None
    detail: dict[str, Any] = {}
    task: str | None = None
    config: dict[str, Any] = {}
    gathered: bytes | None = None
    """The body of a create that waits for values of its environment."""

    def told(self) -> dict[str, Any]:
        """The agent in answers."""
        return {
            "id": self.id,
            "slug": self.slug,
            "name": self.name,
            "projectId": self.project_id,
            "phase": self.phase,
            "status": self.phase,
            "activity": self.activity,
            "runId": self.run_id,
            "runtime": "process",
            "detail": self.detail,
        }


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    exit_code: int | None
    """128 + n for signal n; None when nobody saw it."""
    asked: str | None = None
    """The operation that asked for it; None when nobody did."""
    tail: str = ""
    """The last lines that the agent printed, or why its end was not seen."""


_ASKED_PHASES = {"suspend": "suspended"}


def after_end(record: AgentRecord, ended: Ended) -> AgentRecord:
    """An end asked for is that operation's phase whatever its code; one nobody asked for is an error unless it is 0."""
    detail: dict[str, Any] = {} if ended.exit_code is None else {"exitCode": ended.exit_code}
    if ended.asked is not None:
        phase = _ASKED_PHASES.get(ended.asked, "stopped")
    elif ended.exit_code == 0:
        phase = "stopped"
    else:
        phase = "error"
        detail["message"] = ended.tail or f"it ended with exit code {ended.exit_code} and printed nothing"
    return msgspec.structs.replace(record, phase=phase, activity=None, detail=detail)


def after_status(record: AgentRecord, status: dict[str, Any]) -> AgentRecord:
    """What a status line changes: activity and detail; a text as detail is its message."""
    activity, detail = status.get("activity"), status.get("detail")
    if isinstance(detail, str):
        detail = {"message": detail}
    return msgspec.structs.replace(
        record,
        activity=activity if activity in wire.ACTIVITIES else record.activity,
        detail=_merged(record.detail, detail) if isinstance(detail, dict) else record.detail,
    )


def _merged(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What is new comes to what is known, as long as a report of it stays small."""
    for detail in ({**known, **new}, new):
        if len(msgspec.json.encode(detail)) <= MOST_DETAIL:
            return detail
    return {**known, "message": f"a status with more than {MOST_DETAIL} bytes of detail was dropped"}
