"""The upgrade of the control channel: a broker's signed request becomes a link."""

from __future__ import annotations

import falcon
from falcon.asgi import WebSocket

from kernel.api.brokers import known_broker
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded
from kernel.api.protocols import SOCKET, Socket
from kernel.api.routes import route
from kernel.broker import Broker
from kernel.credentials import open_secret
from kernel.errors import BrokerAuthFailed, Malformed, RateLimited
from kernel.link import Closed


class Connect:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="broker.connect", access="broker")
    async def on_get(self, req: Asked, resp: Responded) -> None:
        raise Malformed("this path takes a WebSocket upgrade: send `Connection: Upgrade` and `Upgrade: websocket`")

    @route(action="broker.connect", access="broker", guard="upgrades")
    async def on_websocket(self, req: Asked, ws: WebSocket) -> None:
        broker_id, secret = await self._admitted(req)
        await ws.accept()
        await self._edge.links.serve(Upgraded(ws, req.scope["extensions"][SOCKET]), broker_id, secret)

    async def _admitted(self, req: Asked) -> tuple[str, bytes]:
        """Its id and its key. What else was read of it is not kept for the life of the socket."""
        broker = await known_broker(self._edge, req.principal.id)
        self._check_pace(broker)
        return broker.id, await self._secret(broker, req.principal.claims.get("keyId"))

    def _check_pace(self, broker: Broker) -> None:
        """Raises: RateLimited when it claims again and again: two with one identity, or one that cannot stay."""
        channel = self._edge.settings.channel
        rate = channel.claims if broker.instance else channel.stock_claims
        if self._edge.links.too_often(broker, channel.stock_claims.count, channel.claims.count, rate.seconds):
            raise RateLimited(f"broker {broker.name} connects more than {rate} times", retry_after=rate.seconds)

    async def _secret(self, broker: Broker, key_id: object) -> bytes:
        """The key that signed the upgrade: what goes through this socket is signed with it too."""
        for one in await self._edge.storage.broker_secrets(broker.id):
            if one.key_id == key_id:
                return open_secret(self._edge.host.keyring, one.sealed, broker.id, one.key_id)
        raise BrokerAuthFailed


class Upgraded:
    """The framework's WebSocket and the server's, as a link needs them (`kernel.link.Socket`)."""

    def __init__(self, ws: WebSocket, protocol: Socket) -> None:
        self._ws = ws
        self._protocol = protocol

    async def receive(self) -> str | bytes:
        """A binary message comes back as empty bytes: it is a bad frame, whatever it holds. Raises: Closed."""
        try:
            return await self._ws.receive_text()
        except falcon.PayloadTypeError:
            return b""
        except falcon.WebSocketDisconnected as gone:
            raise self._closed(gone) from gone

    async def send(self, text: str) -> None:
        """Raises: Closed."""
        try:
            await self._ws.send_text(text)
        except falcon.WebSocketDisconnected as gone:
            raise self._closed(gone) from gone

    def _closed(self, gone: falcon.WebSocketDisconnected) -> Closed:
        """Without a close frame there is no code, whatever the server reports in its place."""
        if gone.code in (None, 1005) and not self._protocol.said_goodbye:
            return Closed(1006)
        return Closed(gone.code or 1006)

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye and wait until the peer has gone; the server drops one that does not answer."""
        await self._ws.close(code, reason)
        await self._protocol.lost()

    def abort(self) -> None:
        self._protocol.abort()

    def heard_at(self) -> float:
        return self._protocol.heard_at
