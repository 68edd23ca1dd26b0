"""Runtime brokers: registration, the swap of a join token for a secret, and what may be done to them."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from kernel import wire
from kernel.api import instants, shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.limits import Limits
from kernel.api.pages import PageQuery, listed
from kernel.api.preferences import key_of
from kernel.api.projects import name_problems
from kernel.api.routes import route
from kernel.broker import Broker, BrokerId, endpoint_problem
from kernel.clock import is_uuid
from kernel.credentials import (
    JOIN_TOKEN_LIVES,
    new_join_token,
    new_secret,
    open_token,
    seal_secret,
    seal_token,
    token_hash,
)
from kernel.errors import Forbidden, InvalidJoinToken, NotFound, Unauthenticated
from kernel.project import slug_of
from kernel.session import Principal
from kernel.signals import SignalKind
from kernel.storage import BrokerEdit, BrokerJoin, BrokerRegistration

LONGEST_ID = 36
"""Characters of a UUID: what anybody sends in its place is not remembered whole."""


class NewBroker(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    broker_id: str | None = None
    auto_provide: bool = False
    labels: dict[str, str] = {}
    endpoint: str | None = None
    """Its own HTTP address, if hubs can reach it there."""

    def problems(self) -> dict[str, str]:
        found = {**name_problems(self.name), **_endpoint_problems(self.endpoint)}
        if self.broker_id is not None and not is_uuid(self.broker_id):
            found["brokerId"] = "expected a UUID with dashes"
        return found


class BrokerPatch(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str | None = None
    labels: dict[str, str] | None = None
    auto_provide: bool | None = None
    endpoint: str | None = None
    """An empty one takes it away."""

    def problems(self) -> dict[str, str]:
        named = {} if self.name is None else name_problems(self.name)
        return {**named, **_endpoint_problems(self.endpoint)}


def _endpoint_problems(endpoint: str | None) -> dict[str, str]:
    problem = endpoint_problem(endpoint) if endpoint else None
    return {"endpoint": problem} if problem else {}


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    broker_id: str
    join_token: str
    hostname: Any = None
    version: str | None = None
    capabilities: Any = None
    """A list of words from our broker; whatever a stock one sends is none of ours."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Both spellings of what a broker says of its agents (design/wire.md)."""

    projects: Any = None
    groves: Any = None
    agent_states: Any = None

    def payload(self) -> dict[str, Any]:
        return {"projects": self.projects, "groves": self.groves, "agentStates": self.agent_states}


class Brokers:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="broker.register", access="user", body=NewBroker)
    async def on_post_register(self, req: Asked, resp: Responded, body: NewBroker) -> None:
        """With a key a repeat is given the same token: nobody would know the first one any more."""
        token = new_join_token()
        keyring = self._edge.host.keyring
        key = key_of(req.lower_headers, str(req.principal), req.method, req.path, await req.raw())
        registered = await self._edge.storage.register_broker(
            BrokerRegistration(
                broker_id=BrokerId(body.broker_id.lower() if body.broker_id else self._edge.clock.uuid7()),
                name=body.name,
                slug=slug_of(body.name),
                auto_provide=body.auto_provide,
                labels=body.labels,
                endpoint=_trimmed(body.endpoint) or None,
                created_by=req.principal.id,
                by_admin=req.principal.role == "admin",
                token_id=self._edge.clock.uuid7(),
                token_hash=token_hash(token),
                token_lives=JOIN_TOKEN_LIVES,
                key=key,
                sealed_token=seal_token(keyring, token, key.key) if key else b"",
            )
        )
        if key and registered.sealed_token:
            token = open_token(keyring, registered.sealed_token, key.key)
        answer = {
            "brokerId": registered.broker.id,
            "joinToken": token,
            "expiresAt": instants.written(registered.expires_at),
            "reregistered": registered.reregistered,
        }
        tell(resp, answer, 201)

    @route(action="broker.list", access="user", query=PageQuery)
    async def on_get(self, req: Asked, resp: Responded, query: PageQuery) -> None:
        storage = self._edge.storage
        rows = await storage.list_brokers(query.page)
        total = await storage.count_brokers()
        tell(
            resp, listed("brokers", rows, query.page, created=lambda row: row.created, show=shapes.broker, total=total)
        )

    @route(action="broker.show", access="user")
    async def on_get_one(self, req: Asked, resp: Responded, broker: str) -> None:
        tell(resp, shapes.broker(await known_broker(self._edge, broker)))

    @route(action="broker.edit", access="user", body=BrokerPatch)
    async def on_patch_one(self, req: Asked, resp: Responded, broker: str, body: BrokerPatch) -> None:
        row = await self._owned(req.principal, broker)
        edit = BrokerEdit(
            broker_id=row.id,
            name=body.name,
            labels=body.labels,
            auto_provide=body.auto_provide,
            endpoint=_trimmed(body.endpoint),
        )
        edited = await self._edge.storage.edit_broker(edit)
        if body.endpoint is not None:
            await self._edge.directs.moved(row.id)
            self._edge.notices.tell_holder(row.id, SignalKind.CHANGED)
        tell(resp, shapes.broker(edited))

    @route(action="broker.delete", access="user")
    async def on_delete_one(self, req: Asked, resp: Responded, broker: str) -> None:
        row = await self._owned(req.principal, broker)
        await self._edge.storage.delete_broker(row.id)
        self._edge.links.hang_up(row.id, wire.Close.DELETED, "deleted")
        self._edge.notices.tell_holder(row.id, SignalKind.CHANGED)
        resp.status = 204

    @route(action="broker.pause", access="user")
    async def on_post_pause(self, req: Asked, resp: Responded, broker: str) -> None:
        await self._pause(req, resp, broker, paused=True)

    @route(action="broker.resume", access="user")
    async def on_post_resume(self, req: Asked, resp: Responded, broker: str) -> None:
        await self._pause(req, resp, broker, paused=False)

    async def _pause(self, req: Asked, resp: Responded, broker: str, *, paused: bool) -> None:
        row = await self._owned(req.principal, broker)
        edited = await self._edge.storage.edit_broker(BrokerEdit(broker_id=row.id, paused=paused))
        self._edge.links.pause(row.id, paused=paused)
        self._edge.notices.tell_holder(row.id, SignalKind.CHANGED)
        self._edge.notices.wake(row.id)
        tell(resp, shapes.broker(edited))

    @route(action="broker.heartbeat", access="broker", body=Heartbeat)
    async def on_post_heartbeat(self, req: Asked, resp: Responded, broker: str, body: Heartbeat) -> None:
        await self._edge.reports.heartbeat(await known_broker(self._edge, broker), body.payload())
        tell(resp, {})

    async def _owned(self, principal: Principal, ref: str) -> Broker:
        """Raises: NotFound; Forbidden for whoever neither made the broker nor is an administrator."""
        row = await known_broker(self._edge, ref)
        if principal.role != "admin" and row.created_by != principal.id:
            raise Forbidden(f"broker {row.name} belongs to somebody else")
        return row


class Join:
    """Open to all: the join token is the proof."""

    def __init__(self, edge: Edge, limits: Limits) -> None:
        self._edge = edge
        self._limits = limits

    @route(action="broker.join", access="public", body=JoinRequest)
    async def on_post(self, req: Asked, resp: Responded, body: JoinRequest) -> None:
        names = (f"address {req.peer}", f"broker {body.broker_id[:LONGEST_ID].lower()}")
        for name in names:
            self._limits.failed_joins.check(name)
        self._limits.joins.check(req.peer)
        try:
            joined, secret = await self._join(body)
        except Unauthenticated:
            for name in names:
                self._limits.failed_joins.note(name)
            raise
        self._limits.joins.note(req.peer)
        self._edge.links.hang_up(joined.id, wire.Close.DELETED, "secret_revoked")
        if joined.connected_session_id:
            self._edge.notices.tell_holder(joined.id, SignalKind.REVOKED, joined.connected_session_id)
        answer = {
            "secretKey": base64.b64encode(secret).decode(),
            "hubEndpoint": self._edge.host.address(),
            "brokerId": joined.id,
        }
        tell(resp, answer)

    async def _join(self, body: JoinRequest) -> tuple[Broker, bytes]:
        """Its row, which names the session that stands on the old secret, and the new secret."""
        broker_id = body.broker_id.lower()
        if not is_uuid(broker_id):
            raise InvalidJoinToken
        secret, key_id = new_secret(), self._edge.clock.uuid7()
        said = body.capabilities if isinstance(body.capabilities, list) else []
        joined = await self._edge.storage.join_broker(
            BrokerJoin(
                broker_id=BrokerId(broker_id),
                token_hash=token_hash(body.join_token),
                key_id=key_id,
                sealed=seal_secret(self._edge.host.keyring, secret, broker_id, key_id),
                version=body.version,
                capabilities=tuple(one for one in said if isinstance(one, str)),
            )
        )
        return joined, secret


def _trimmed(endpoint: str | None) -> str | None:
    return endpoint and endpoint.rstrip("/")


async def known_broker(edge: Edge, ref: str) -> Broker:
    """By id, slug or name. Raises: NotFound."""
    found = await edge.storage.find_broker(ref)
    if found is None:
        raise NotFound(f"there is no runtime broker {ref}")
    return found
