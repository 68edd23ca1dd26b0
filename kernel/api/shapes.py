"""Kernel values as the JSON that leaves: camelCase, instants as RFC 3339."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.agent import Agent
from kernel.api import instants
from kernel.broker import Broker
from kernel.clock import Instant
from kernel.explain import Explanation
from kernel.intent import Intent, State
from kernel.loader import PluginRow
from kernel.message import Message
from kernel.node import Node
from kernel.project import Project
from kernel.storage import LaneView
from kernel.transition import Transition


def time_or_none(instant: Instant | None) -> str | None:
    return None if instant is None else instants.written(instant)


def agent(row: Agent) -> dict[str, Any]:
    return {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "projectId": row.project_id,
        "runtimeBrokerId": row.runtime_broker_id,
        "phase": row.phase,
        "activity": row.activity,
        "runId": row.run_id,
        "stateVersion": row.state_version,
        "template": row.template,
        "image": row.image,
        "runtime": row.runtime,
        "taskSummary": row.task_summary,
        "message": row.message,
        "labels": row.labels,
        "annotations": row.annotations,
        "config": row.config,
        "detail": row.detail,
        "createdBy": row.created_by,
        "ownerId": row.owner_id,
        "ancestry": row.ancestry,
        "created": instants.written(row.created),
        "updated": instants.written(row.updated),
        "lastSeen": time_or_none(row.last_seen),
        "startedAt": time_or_none(row.started_at),
        "deletedAt": time_or_none(row.deleted_at),
    }


def project(row: Project) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "slug": row.slug,
        "gitRemote": row.git_remote,
        "defaultRuntimeBrokerId": row.default_runtime_broker_id,
        "labels": row.labels,
        "annotations": row.annotations,
        "visibility": row.visibility,
        "createdBy": row.created_by,
        "ownerId": row.owner_id,
        "created": instants.written(row.created),
        "updated": instants.written(row.updated),
    }


def broker(row: Broker) -> dict[str, Any]:
    seen = [at for at in (row.renewed_at, row.last_heartbeat, row.disconnected_at) if at is not None]
    return {
        "id": row.id,
        "name": row.name,
        "slug": row.slug,
        "status": broker_status(row),
        "conflict": row.conflict,
        "paused": row.paused,
        "version": row.version,
        "capabilities": row.capabilities,
        "endpoint": row.endpoint,
        "connectedHubId": row.connected_hub_id,
        "connectedAt": time_or_none(row.connected_at),
        "lastHeartbeat": time_or_none(row.last_heartbeat),
        "lastSeen": time_or_none(max(seen, default=None)),
        "labels": row.labels,
        "autoProvide": row.auto_provide,
        "created": instants.written(row.created),
        "updated": instants.written(row.updated),
    }


def broker_status(row: Broker) -> str:
    return "online" if row.online else "offline"


def broker_choice(row: Broker) -> dict[str, Any]:
    """What a caller needs to name it."""
    return {"id": row.id, "name": row.name, "slug": row.slug, "status": broker_status(row), "paused": row.paused}


def message(row: Message) -> dict[str, Any]:
    return {
        "id": row.id,
        "projectId": row.project_id,
        "sender": row.sender,
        "senderId": row.sender_id,
        "recipient": row.recipient,
        "recipientId": row.recipient_id,
        "msg": row.msg,
        "type": row.type,
        "urgent": row.urgent,
        "read": row.read,
        "agentId": row.agent_id,
        "groupId": row.group_id,
        "broadcasted": row.broadcasted,
        "dispatchState": row.dispatch_state,
        "created": instants.written(row.created),
    }


def dispatch(row: Intent) -> dict[str, Any]:
    shown = {
        "id": row.id,
        "op": row.op,
        "lane": row.lane,
        "state": row.state,
        "agentId": row.agent_id,
        "agentSlug": row.agent_slug,
        "brokerId": row.broker_id,
        "projectId": row.project_id,
        "seq": row.seq,
        "attempts": row.attempts,
        "failures": row.failures,
        "route": row.route,
        "claimedBy": row.claimed_by,
        "claimedEpoch": row.claimed_epoch,
        "created": instants.written(row.created_at),
        "claimedAt": time_or_none(row.claimed_at),
        "sentAt": time_or_none(row.sent_at),
        "acceptedAt": time_or_none(row.accepted_at),
        "endedAt": time_or_none(row.ended_at),
        "deadlineAt": instants.written(row.deadline_at),
        "nextAttemptAt": time_or_none(_next_attempt(row)),
        "principal": row.principal,
        "requestId": row.request_id,
        "nodeId": row.node_id,
        "traceparent": row.traceparent,
        "runId": row.run_id,
        "hold": row.hold,
        "result": row.result,
        "error": None if row.error is None else msgspec.to_builtins(row.error),
    }
    if row.requeued_from:
        shown["requeuedFrom"] = row.requeued_from
    return shown


def _next_attempt(row: Intent) -> Instant | None:
    return row.next_attempt_at if row.state is State.PENDING else None


def node(row: Node, brokers: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "version": row.version,
        "startedAt": instants.written(row.started_at),
        "beatAt": instants.written(row.beat_at),
        "silentSeconds": round(row.silent_for, 3),
        "draining": row.draining,
        "lostAt": time_or_none(row.lost_at),
        "brokers": brokers,
    }


def explanation(view: LaneView, told: Explanation) -> dict[str, Any]:
    intent, row = view.intent, view.broker
    return {
        "id": intent.id,
        "state": intent.state,
        "code": told.code,
        "sentence": told.sentence,
        "nextAttemptAt": time_or_none(told.next_attempt_at),
        "deadlineAt": instants.written(intent.deadline_at),
        "behind": {"id": view.behind.id, "op": view.behind.op} if view.behind else None,
        "owner": _owner(view),
        "broker": {"status": broker_status(row), "since": time_or_none(_since(row))} if row else None,
        "transitions": [transition(one) for one in view.history],
    }


def plugin(row: PluginRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "use": row.use,
        "origin": row.origin,
        "state": row.state,
        "reason": row.reason or None,
        "faults": sum(one.faults for one in row.hooks),
        "hooks": [
            {
                "hook": one.hook,
                "calls": one.calls,
                "seconds": round(one.seconds, 6),
                "faults": one.faults,
                "lastFault": one.last_fault or None,
            }
            for one in row.hooks
        ],
    }


def _owner(view: LaneView) -> dict[str, Any] | None:
    """The node whose claim the broker's row carries."""
    row = view.broker
    if row is None or row.connected_hub_id is None:
        return None
    return {
        "nodeId": row.connected_hub_id,
        "epoch": row.connection_epoch,
        "alive": view.owner_alive,
        "renewedAt": time_or_none(row.renewed_at),
    }


def _since(row: Broker) -> Instant | None:
    return row.connected_at if row.online else row.disconnected_at


def transition(one: Transition) -> dict[str, Any]:
    return {
        "at": instants.written(one.at),
        "from": one.from_state,
        "to": one.to_state,
        "reason": one.reason,
        "nodeId": one.node_id,
        "epoch": one.epoch,
        "attempt": one.attempt,
        "detail": one.detail,
    }
