"""What a client of the hub does over HTTP, with a deadline for everything and a record of every call."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx2

from tests.harness.history import History
from tests.harness.processes import PATIENCE, eventually

ENDED = frozenset({"done", "failed", "expired", "cancelled"})
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer; `json` is None for an empty or other body."""

    status: int
    headers: Mapping[str, str]
    json: Any
    text: str
    took: float

    @property
    def dispatch(self) -> str:
        """The intent that the answer names. An answer of an operation always does."""
        found = self.headers.get("x-dispatch-id")
        assert found, f"no X-Dispatch-Id in {self.status} {self.text[:300]}"
        return found

    @property
    def code(self) -> str | None:
        """The error's code; None when the answer is no error."""
        return (self.json.get("error") or {}).get("code") if isinstance(self.json, dict) else None

    def expect(self, *statuses: int) -> Self:
        assert self.status in statuses, f"wanted {statuses}, got {self.status}: {self.text[:600]}"
        return self


class HubClient:
    """Speaks to one hub at a time; `move` follows it to another port after a restart."""

    def __init__(self, url: str, token: str, history: History, *, hub: str = "", patience: float = 90.0) -> None:
        """`hub` names the hub in the history, where several are recorded together."""
        self.history = history
        self._place = {"hub": hub} if hub else {}
        self._patience = patience
        self._former: list[httpx2.AsyncClient] = []
        self._http = self._open(url, token)

    def _open(self, url: str, token: str) -> httpx2.AsyncClient:
        self.url, self.token = url, token
        return httpx2.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=self._patience, trust_env=False
        )

    def move(self, url: str, token: str) -> None:
        """Speak to another address from now on; what is under way at the old one goes on."""
        if (url, token) != (self.url, self.token):
            self._former.append(self._http)
            self._http = self._open(url, token)

    async def close(self) -> None:
        for client in (*self._former, self._http):
            await client.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> Answered:
        """One request below `/api/v1`. `told` is kept with the call in the history."""
        call = str(uuid.uuid4())
        route = path if path.startswith(("/healthz", "/readyz", "/metrics")) else f"/api/v1{path}"
        extra = dict(headers or {})
        if content is not None:
            extra.setdefault("Content-Type", "application/json")
        told = {**self._place, **(told or {})}
        self.history.write("call", call=call, method=method, path=path, headers=dict(headers or {}), **told)
        began = time.monotonic()
        try:
            got = await self._http.request(method, route, json=json, content=content, headers=extra, params=params)
        except httpx2.HTTPError as broken:
            self.history.write("broken", call=call, why=repr(broken))
            raise
        answer = _answered(got, time.monotonic() - began)
        self.history.write(
            "answered",
            call=call,
            status=answer.status,
            code=answer.code,
            dispatch=answer.headers.get("x-dispatch-id"),
            key=extra.get("Idempotency-Key"),
            **told,
        )
        return answer

    async def get(self, path: str, **params: str) -> Any:
        return (await self.ask("GET", path, params=params)).expect(200).json

    # -- the fleet

    async def register_broker(self, name: str | None = None, **more: Any) -> Json:
        """Registers and joins: `{broker_id, secret}`, the secret in base64."""
        named = {"name": name or f"broker-{uuid.uuid4().hex[:8]}", "autoProvide": True, **more}
        made = (await self.ask("POST", "/brokers", named)).expect(201).json
        join = {"brokerId": made["brokerId"], "joinToken": made["joinToken"], "hostname": "here", "version": "t"}
        joined = (await self.ask("POST", "/brokers/join", join)).expect(200).json
        assert len(base64.b64decode(joined["secretKey"])) == 32
        return {"broker_id": made["brokerId"], "secret": joined["secretKey"]}

    async def broker(self, broker_id: str) -> Json:
        found: Json = await self.get(f"/runtime-brokers/{broker_id}")
        return found

    async def broker_is(self, broker_id: str, status: str, patience: float = PATIENCE) -> Json:
        async def probe() -> Json | None:
            found = await self.broker(broker_id)
            self.history.write("broker_status", broker=broker_id, status=found["status"])
            return found if found["status"] == status else None

        return await eventually(probe, f"broker {broker_id} {status}", patience=patience)

    # -- projects and agents

    async def create_project(self, name: str | None = None) -> str:
        made = await self.ask("POST", "/projects", {"name": name or f"project-{uuid.uuid4().hex[:8]}"})
        return str(made.expect(200, 201).json["id"])

    async def post_agent(
        self,
        project: str,
        broker: str | None,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answered:
        body = {"name": name or f"agent-{uuid.uuid4().hex[:8]}", "projectId": project, **more}
        body.setdefault("config", {"command": ["true"]})
        if broker is not None:
            body["runtimeBrokerId"] = broker
        return await self.ask("POST", "/agents", body, headers=headers, told={"op": "create", "lane": "control"})

    async def create_agent(self, project: str, broker: str, name: str | None = None, **more: Any) -> Json:
        """An agent as stored after its broker answered."""
        agent: Json = (await self.post_agent(project, broker, name, **more)).expect(200, 201).json["agent"]
        return agent

    async def agent(self, agent_id: str) -> Json:
        found: Json = await self.get(f"/agents/{agent_id}")
        return found

    async def agent_is(self, agent_id: str, phase: str, patience: float = PATIENCE) -> Json:
        async def probe() -> Json | None:
            found = await self.agent(agent_id)
            return found if found["phase"] == phase else None

        return await eventually(probe, f"agent {agent_id} {phase}", patience=patience)

    # -- operations

    async def do(self, op: str, agent_id: str, body: Any = None, **headers: str) -> Answered:
        """start, stop, restart, suspend, or `env`; `headers` in Python's spelling: `prefer="wait=2"`."""
        told = {"op": op, "agent": agent_id, "lane": "control"}
        return await self.ask("POST", f"/agents/{agent_id}/{op}", body, headers=_named(headers), told=told)

    async def delete(self, agent_id: str, **headers: str) -> Answered:
        told = {"op": "delete", "agent": agent_id, "lane": "control"}
        return await self.ask("DELETE", f"/agents/{agent_id}", headers=_named(headers), told=told)

    async def message(self, agent_id: str, text: str, *, more: Json | None = None, **headers: str) -> Answered:
        told = {"op": "message", "agent": agent_id, "lane": "message", "text": text[:80]}
        body = {"message": text, **(more or {})}
        return await self.ask("POST", f"/agents/{agent_id}/message", body, headers=_named(headers), told=told)

    # -- intents

    async def dispatch(self, dispatch_id: str) -> Json:
        found: Json = await self.get(f"/dispatches/{dispatch_id}")
        return found

    async def explain(self, dispatch_id: str) -> Json:
        found: Json = await self.get(f"/dispatches/{dispatch_id}/explain")
        return found

    async def cancel(self, dispatch_id: str) -> Answered:
        return await self.ask("POST", f"/dispatches/{dispatch_id}/cancel")

    async def state_is(self, dispatch_id: str, *states: str, patience: float = PATIENCE) -> Json:
        async def probe() -> Json | None:
            found = await self.dispatch(dispatch_id)
            return found if found["state"] in states else None

        return await eventually(probe, f"dispatch {dispatch_id} {'/'.join(states)}", patience=patience)

    async def ended(self, dispatch_id: str, patience: float = PATIENCE) -> Json:
        return await self.state_is(dispatch_id, *ENDED, patience=patience)

    async def all_dispatches(self, **filters: str) -> list[Json]:
        """Every page, to the end."""
        found: list[Json] = []
        cursor: dict[str, str] = {}
        while True:
            page = await self.get("/dispatches", limit="200", **filters, **cursor)
            found += page["dispatches"]
            if not page.get("nextCursor"):
                return found
            cursor = {"cursor": page["nextCursor"]}


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-").title(): value for name, value in headers.items()}


def _answered(got: httpx2.Response, took: float) -> Answered:
    try:
        body = got.json() if got.content else None
    except ValueError:
        body = None
    headers = {name.lower(): value for name, value in got.headers.items()}
    return Answered(status=got.status_code, headers=headers, json=body, text=got.text, took=took)
