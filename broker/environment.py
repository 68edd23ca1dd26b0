"""What an agent is started with: its environment, its task, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from broker.answer import Refusal

BASE = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TERM")
"""Names of the broker's own environment that every agent gets; nothing else of it leaks."""
MOST_TASK = 100_000
"""Bytes: a single value of an environment cannot be much larger."""


class Supplied(msgspec.Struct, frozen=True, kw_only=True):
    """What a create, start or restart brings for the agent."""

    resolved: dict[str, str]
    secrets: dict[str, str]
    hub: str
    token: str
    task: str | None
    resume: bool


def supplied(body: Mapping[str, Any], hub: str) -> Supplied:
    """Read the fields of a request's body. `hub` is where it came from. Raises: Refusal."""
    resolved = body.get("resolvedEnv") or {}
    if not isinstance(resolved, dict) or not all(_fits(name, value) for name, value in resolved.items()):
        raise Refusal(422, "invalid_environment", "resolvedEnv maps names to texts")
    config = body.get("config")
    task = body.get("task") or (config.get("task") if isinstance(config, dict) else None)
    return Supplied(
        resolved=resolved,
        secrets=_secrets(body.get("resolvedSecrets") or []),
        hub=_text(body, "hubEndpoint") or resolved.get("SCION_HUB_ENDPOINT") or hub,
        token=_text(body, "agentToken") or resolved.get("SCION_AUTH_TOKEN") or "",
        task=_task(task),
        resume=body.get("resume") is True,
    )


def environment(
    agent_id: str, run_id: str, config: Mapping[str, Any], given: Supplied, passed: tuple[str, ...]
) -> dict[str, str]:
    """Later ones win: broker, configuration, what every agent is told, what the hub resolved, secrets."""
    told = {
        "POINTSMAN_HUB": given.hub,
        "POINTSMAN_TOKEN": given.token,
        "POINTSMAN_AGENT_ID": agent_id,
        "POINTSMAN_RUN_ID": run_id,
    }
    if given.task is not None:
        told["POINTSMAN_TASK"] = given.task
    if given.resume:
        told["POINTSMAN_RESUME"] = "true"
    own = {name: os.environ[name] for name in (*BASE, *passed) if name in os.environ}
    return {**own, **(config.get("env") or {}), **told, **given.resolved, **given.secrets}


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Who has the values that an agent's configuration requires."""

    required: list[str]
    hub: list[str]
    broker: list[str]
    missing: list[str]

    def told(self, agent_id: str) -> dict[str, Any]:
        return {
            "agentId": agent_id,
            "required": self.required,
            "hubHas": self.hub,
            "brokerHas": self.broker,
            "needs": self.missing,
            "secretInfo": {},
        }


def needs(required: list[str], config: Mapping[str, Any], given: Supplied, passed: tuple[str, ...]) -> Needs:
    hub = {**given.resolved, **given.secrets}
    own = {*(config.get("env") or {}), *(name for name in (*BASE, *passed) if name in os.environ)}
    return Needs(
        required=required,
        hub=[name for name in required if name in hub],
        broker=[name for name in required if name in own],
        missing=[name for name in required if name not in hub and name not in own],
    )


def _secrets(listed: Any) -> dict[str, str]:
    """Secrets by the name that they have in the environment (`target`, else `name`)."""
    found: dict[str, str] = {}
    for secret in listed if isinstance(listed, list) else [listed]:
        if not isinstance(secret, dict) or secret.get("type", "environment") not in ("environment", "variable"):
            raise Refusal(422, "invalid_environment", "the process runtime takes secrets of the type environment")
        name, value = secret.get("target") or secret.get("name"), secret.get("value")
        if not _fits(name, value):
            raise Refusal(422, "invalid_environment", "a secret has a name and a text as value")
        found[str(name)] = str(value)
    return found


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name) or ""
    if not _fits(name, value):
        raise Refusal(422, "invalid_environment", f"{name} is a text")
    return str(value)


def _task(task: Any) -> str | None:
    if task is None:
        return None
    if not isinstance(task, str) or "\0" in task or len(task.encode()) > MOST_TASK:
        raise Refusal(422, "invalid_task", f"the task is a text of at most {MOST_TASK} bytes")
    return task


def _fits(name: Any, value: Any) -> bool:
    texts = isinstance(name, str) and isinstance(value, str)
    return texts and bool(name) and "=" not in name and "\0" not in name and "\0" not in value
