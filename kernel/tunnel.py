"""Turns an intent into the broker's request, and the broker's answer into an outcome (design/wire.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec

from kernel.agent import Agent, AgentChange, Phase
from kernel.clock import is_uuid
from kernel.environment import Environment
from kernel.errors import Failure, RuntimeFailed
from kernel.intent import STARTS, Intent, Op, State
from kernel.project import Project
from kernel.wire import Call

LATER = frozenset({429, 503})
"""Answers that end nothing: the intent is tried again until its deadline."""
NO_ANSWER = frozenset({408, 412})
"""Our broker did not run it: too late, or from a stale epoch. The row decides."""
STOPPED_BY_CALLER = 499
RUNS = STARTS | {Op.FINALIZE_ENV}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the broker's HTTP handlers."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one attempt."""

    kind: Literal["end", "later", "lost", "dropped"]
    """`end`: it ended. `later`: the broker said so. `lost`: the link went away. `dropped`: it was not run."""
    reason: str
    state: State = State.DONE
    result: Any = None
    error: Failure | None = None
    change: AgentChange | None = None
    retry_in: float = 0.0
    failures: int = 0


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is about, beyond what its intent says."""

    agent: Agent
    project: Project
    environment: Environment = Environment()
    values: dict[str, str] = {}
    """What a caller supplied for one operation (finalize_env)."""
    token: str = ""
    hub: str = ""


# -- requests -----------------------------------------------------------------------------------------------


def call_for(intent: Intent, subject: Subject | None, *, suspends: bool, by_id: bool) -> Call:
    """The request of one intent. `suspends`: the broker announced suspend. `by_id`: a stock broker finalizes by id."""
    path = _path(intent.agent_slug)
    query = _query(intent.project_id)
    names: dict[str, Any] = {
        "projectId": intent.project_id,
        "groveId": intent.project_id,
        "grove_id": intent.project_id,
    }
    match intent.op:
        case Op.MESSAGE:
            return _post(f"{path}/message", query, {**intent.args, **names})
        case Op.STOP:
            return _post(f"{path}/stop", query, {"runId": intent.run_id, **names})
        case Op.SUSPEND:
            return _post(f"{path}/{'suspend' if suspends else 'stop'}", query, {"runId": intent.run_id, **names})
        case Op.DELETE:
            return Call(method="DELETE", path=path, query=_delete_query(intent, query))
        case Op.CHECK_PROMPT:
            return Call(method="GET", path=f"{path}/has-prompt", query=query)
    assert subject is not None, "every other operation says what its agent is"
    match intent.op:
        case Op.CREATE:
            return _post("/api/v1/agents", query, {**_create_body(intent, subject), **names})
        case Op.START | Op.RESTART:
            return _post(f"{path}/{intent.op}", query, {**_start_body(intent, subject), **names})
        case Op.FINALIZE_ENV:
            where = f"/api/v1/agents/{intent.agent_id}" if by_id else path
            body = {"env": {**subject.environment.values, **subject.values}, "runId": intent.run_id}
            return _post(f"{where}/finalize-env", query, {**body, **names})


@lru_cache(4096)
def _path(slug: str) -> str:
    return f"/api/v1/agents/{quote(slug, safe='')}"


@lru_cache(1024)
def _query(project_id: str) -> str:
    return urlencode({"projectId": project_id, "groveId": project_id})


def _post(path: str, query: str, body: Mapping[str, Any]) -> Call:
    return Call(method="POST", path=path, query=query, body=msgspec.json.encode(body))


def _delete_query(intent: Intent, query: str) -> str:
    flags: dict[str, str] = {
        name: "true" if intent.args[name] else "false"
        for name in ("deleteFiles", "removeBranch", "softDelete")
        if name in intent.args
    }
    return "&".join(filter(None, (query, urlencode(flags | {"runId": intent.run_id or ""}))))


def _start_body(intent: Intent, subject: Subject) -> dict[str, Any]:
    agent, project = subject.agent, subject.project
    body: dict[str, Any] = {
        "resume": bool(intent.args.get("resume")),
        "runId": intent.run_id,
        "agentId": agent.id,
        "resolvedEnv": _environment(subject),
        "resolvedSecrets": msgspec.to_builtins(subject.environment.secrets),
        "inlineConfig": agent.config,
        "harnessConfig": intent.args.get("harnessConfig") or agent.config.get("harness_config"),
        "projectSlug": project.slug,
        "groveSlug": project.slug,
        "sharedDirs": [],
        "agentToken": subject.token,
        "hubEndpoint": subject.hub,
    }
    if intent.args.get("task") is not None:
        body["task"] = intent.args["task"]
    return body


def _create_body(intent: Intent, subject: Subject) -> dict[str, Any]:
    agent = subject.agent
    return {
        **_start_body(intent, subject),
        "requestId": intent.id,
        "id": agent.id,
        "slug": agent.slug,
        "name": agent.name,
        "userId": agent.created_by,
        "config": _create_config(intent, agent),
        "provisionOnly": bool(intent.args.get("provisionOnly")),
        "gatherEnv": bool(intent.args.get("gatherEnv")),
    }


def _create_config(intent: Intent, agent: Agent) -> dict[str, Any]:
    """The stock broker's own form of what stands in the opaque config as well; `env` is a list there."""
    named = ("task", "template", "workspace", "branch", "profile", "harnessConfig", "image")
    config = {name: intent.args[name] for name in named if intent.args.get(name) is not None}
    if agent.image and "image" not in config:
        config["image"] = agent.image
    env = agent.config.get("env")
    config["env"] = [f"{name}={value}" for name, value in env.items()] if isinstance(env, dict) else []
    return config


def _environment(subject: Subject) -> dict[str, str]:
    """What every start carries, so that create and start can never differ, then what plugins resolved."""
    agent = subject.agent
    return {
        "SCION_AGENT_ID": agent.id,
        "SCION_AGENT_SLUG": agent.slug,
        "SCION_GROVE_ID": agent.project_id,
        "SCION_AUTH_TOKEN": subject.token,
        "SCION_HUB_ENDPOINT": subject.hub,
        **subject.environment.values,
        **subject.values,
    }


# -- answers ------------------------------------------------------------------------------------------------


def outcome_of(intent: Intent, answer: Answer, *, message_attempts: int = 3) -> Outcome:
    """What the broker's answer means for the intent (design/contract.md, Intents).

    `message_attempts`: how many answers of another 5xx a message gets before it has failed.
    """
    said = parsed(answer.body)
    if 200 <= answer.status < 300:
        return Outcome(kind="end", reason="answered", result=said, change=_change(intent, answer.status, said))
    if answer.status in NO_ANSWER:
        return Outcome(kind="dropped", reason=f"broker_{answer.status}", retry_in=1.0)
    if answer.status == STOPPED_BY_CALLER:
        return _cancelled(said)
    if answer.status in LATER:
        return _later(intent, answer, said)
    if intent.op is Op.MESSAGE and answer.status >= 500 and intent.failures + 1 < message_attempts:
        return _later(intent, answer, said)
    if intent.op is Op.DELETE and answer.status == 404:
        return Outcome(kind="end", reason="unknown_there", result=said, change=AgentChange(removal="soft"))
    return _failed(intent, answer.status, said)


def _later(intent: Intent, answer: Answer, said: Any) -> Outcome:
    backoff = min(30.0, 0.25 * 4.0 ** min(intent.failures, 4))
    asked = answer.headers.get("Retry-After") or answer.headers.get("retry-after") or ""
    pause = max(backoff, min(60.0, float(asked))) if asked.isdecimal() else backoff
    error = _failure(answer.status, said)
    return Outcome(kind="later", reason=f"broker_{answer.status}", retry_in=pause, failures=1, error=error)


def _cancelled(said: Any) -> Outcome:
    error = Failure(code="cancelled", message="the broker stopped it before it took effect", status=409)
    return Outcome(kind="end", reason="cancelled", state=State.CANCELLED, result=said, error=error)


def _failed(intent: Intent, status: int, said: Any) -> Outcome:
    error = _failure(status, said)
    change = None
    if intent.op is Op.CREATE:
        refused = 400 <= status < 500
        change = AgentChange(removal="row") if refused else AgentChange(phase=Phase.ERROR, message=error.message)
    return Outcome(
        kind="end", reason=f"broker_{status}", state=State.FAILED, result=said, error=error, change=change, failures=1
    )


def _failure(status: int, said: Any) -> Failure:
    code, message = _error_words(said)
    text = f"the broker answered {status}" + (f" {code}" if code else "") + (f": {message}" if message else "")
    details = {"status": status, "code": code, "message": message}
    if isinstance(said, dict) and isinstance(said.get("error"), dict) and said["error"].get("details"):
        details["details"] = said["error"]["details"]
    return RuntimeFailed(text, details=details).as_failure()


def _error_words(said: Any) -> tuple[str, str]:
    """Code and message of an error body: an envelope, a text under `error`, or plain text."""
    error = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(error, dict):
        return str(error.get("code") or ""), str(error.get("message") or "")[:1000]
    return "", str(error or "")[:1000]


DEEPEST = 100
"""Levels of nesting in a reply that is kept as JSON: what can be read here must be readable wherever it goes."""


def parsed(body: bytes) -> Any:
    """The whole reply, as JSON where it is JSON that can be stored, else as text."""
    if not body:
        return None
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return body.decode(errors="replace")
    return body.decode(errors="replace") if _deeper(said, DEEPEST) else said


def _deeper(value: Any, levels: int) -> bool:
    """Whether it is nested deeper than that."""
    level = [value]
    while level and levels:
        level = [inner for one in level for inner in _inside(one)]
        levels -= 1
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


PHASES_OF_OPS: dict[Op, Phase] = {
    Op.CREATE: Phase.STARTING,
    Op.FINALIZE_ENV: Phase.STARTING,
    Op.START: Phase.RUNNING,
    Op.RESTART: Phase.RUNNING,
    Op.STOP: Phase.STOPPED,
    Op.SUSPEND: Phase.SUSPENDED,
}
"""What a 2xx means when the reply names no phase."""


def _change(intent: Intent, status: int, said: Any) -> AgentChange | None:
    if intent.op is Op.DELETE:
        return AgentChange(removal="soft")
    if intent.op not in PHASES_OF_OPS:
        return None
    if intent.op in (Op.CREATE, Op.FINALIZE_ENV) and status == 202 and needs_env(said):
        return AgentChange(phase=Phase.PROVISIONING)
    told = said.get("agent") if isinstance(said, dict) and isinstance(said.get("agent"), dict) else said
    told = told if isinstance(told, dict) else {}
    return AgentChange(
        phase=_phase(intent, said, told),
        run_id=_run(told, intent) if intent.op in RUNS else None,
        activity=_text(told.get("activity")),
        image=_text(told.get("image")),
        runtime=_text(told.get("runtime")),
        detail=told["detail"] if isinstance(told.get("detail"), dict) else None,
    )


def needs_env(said: Any) -> bool:
    """Whether a reply to `create` asks for values (env-gather)."""
    return isinstance(said, dict) and bool(said.get("needs") or said.get("required"))


def _phase(intent: Intent, said: Any, told: dict[str, Any]) -> Phase:
    """Only a word of the phase list counts; suspend is stored as such even where it went as a stop."""
    if intent.op is Op.SUSPEND:
        return Phase.SUSPENDED
    for where in (said if isinstance(said, dict) else {}, told):
        for key in ("phase", "status"):
            if isinstance(where.get(key), str) and where[key] in Phase.__members__.values():
                return Phase(where[key])
    if intent.op is Op.CREATE and intent.args.get("provisionOnly"):
        return Phase.CREATED
    return PHASES_OF_OPS[intent.op]


def _run(told: dict[str, Any], intent: Intent) -> str | None:
    """The broker's own run, when it names one in the one form of ids."""
    named = _text(told.get("runId"))
    return named if named and is_uuid(named) else intent.run_id


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
