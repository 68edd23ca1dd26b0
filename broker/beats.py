"""Tells a hub over HTTP what a broker without a socket has to tell: how its agents are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec

from broker.dial import Backoff
from broker.identity import Identity
from broker.settings import BrokerSettings
from kernel import wire

log = logging.getLogger(__name__)

DEADLINE = 10.0
MOST_STATES = 500
"""Agents in one heartbeat."""


class Beats:
    """Hears what the reporter says (`broker.report.Hearer`); the newest state of each agent is what is told."""

    def __init__(self, settings: BrokerSettings, identity: Callable[[], Identity]) -> None:
        self._settings = settings
        self._identity = identity
        self._load: dict[str, Any] = {}
        self._states: dict[str, dict[str, Any]] = {}
        self._arrived = anyio.Event()

    def send(self, frame: wire.Frame) -> None:
        if not isinstance(frame, wire.Event):
            return
        payload = dict(frame.payload)
        states = payload.pop("agentStates", []) if frame.event == "heartbeat" else [payload]
        if frame.event == "heartbeat":
            self._load = payload
        self._states |= {state["agentId"]: state for state in states}
        self._arrived.set()

    async def run(self) -> None:
        """For ever. What no hub took is told again, unless something newer is to be told of the same agent."""
        import httpx2

        backoff = Backoff(self._settings.backoff, self._settings.backoff_most)
        async with httpx2.AsyncClient(timeout=DEADLINE, trust_env=False) as client:
            while True:
                await self._arrived.wait()
                self._arrived = anyio.Event()
                telling = dict(list(self._states.items())[:MOST_STATES])
                for agent_id in telling:
                    del self._states[agent_id]
                if await self._told(client, telling):
                    backoff.reset()
                else:
                    self._states = telling | self._states
                    await anyio.sleep(backoff.pause())
                if self._states:
                    self._arrived.set()

    async def _told(self, client: Any, states: dict[str, dict[str, Any]]) -> bool:
        identity = self._identity()
        path = f"/api/v1/runtime-brokers/{identity.broker_id}/heartbeat"
        body = msgspec.json.encode({**self._load, "agentStates": list(states.values())})
        for hub in self._settings.hubs or identity.hubs:
            url = f"{hub.rstrip('/')}{path}"
            if await self._posted(client, url, body, identity):
                return True
        return False

    async def _posted(self, client: Any, url: str, body: bytes, identity: Identity) -> bool:
        import httpx2

        signature = wire.signed_headers(
            identity.broker_id, identity.key(), "POST", urlsplit(url).path, body=body, now=int(time.time())
        )
        headers = {**signature, "Content-Type": "application/json"}
        try:
            answer = await client.post(url, content=body, headers=headers)
        except (httpx2.TransportError, httpx2.InvalidURL, OSError) as fault:
            log.warning("%s cannot be reached: %s", url, fault)
            return False
        if answer.status_code >= 300:
            log.warning("%s answered %d: %s", url, answer.status_code, answer.text[:200])
        return bool(answer.status_code < 300)
