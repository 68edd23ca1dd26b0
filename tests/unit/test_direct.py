"""What a hub takes from an endpoint, and what it does not: on real connections to an endpoint that a test scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from kernel import wire
from kernel.broker import Broker, BrokerId, endpoint_problem
from kernel.clock import SYSTEM
from kernel.config import Settings
from kernel.credentials import seal_secret
from kernel.direct import Caller, HttpSocket, Unreached, greet
from kernel.directs import LONGEST_PAUSE, Directs, Silence
from kernel.errors import Invalid
from kernel.keyring import Keyring
from kernel.link import Closed
from kernel.links import Links
from kernel.node import NodeId
from kernel.storage import SealedSecret, SessionClaim, SessionClaimed
from tests.harness.endpoint import Endpoint, served

pytestmark = pytest.mark.anyio
CHANNEL = Settings().channel
ID = "0198c0de-0000-7000-8000-00000000b0b0"
OLD, NEW = bytes(32), bytes(range(32))
KEYRING = Keyring("a secret that is long enough for it")
OURS = {"brokerId": ID, "capabilities": ["dedupe", "epoch", "reconnect"], "window": 5, "epoch": 41, "instance": "i"}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with served(ID, OLD, NEW) as made:
        made.told("/api/v1/info", 200, OURS)
        yield made


async def greeted(url: str, *secrets: bytes) -> tuple[wire.Connect, bytes]:
    caller = Caller(CHANNEL)
    try:
        return await greet(caller, url, ID, secrets or (NEW,), SYSTEM)
    finally:
        await caller.close()


# -- who answers there -------------------------------------------------------------------------------------------------


async def test_an_endpoint_says_what_a_connect_frame_would_say(endpoint: Endpoint) -> None:
    hello, key = await greeted(endpoint.url)
    assert (hello.broker_id, hello.window, hello.last_epoch, hello.instance) == (ID, 5, 41, "i")
    assert hello.capabilities == ["dedupe", "epoch"], "there is no other hub to dial over HTTP"
    assert key == NEW


async def test_after_a_rotation_the_broker_may_still_have_its_old_key(endpoint: Endpoint) -> None:
    endpoint.keys = (OLD,)
    assert (await greeted(endpoint.url, NEW, OLD))[1] == OLD
    endpoint.keys = ()
    with pytest.raises(Unreached, match="none of the broker's keys"):
        await greeted(endpoint.url, NEW, OLD)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"brokerId": "0198c0de-0000-7000-8000-00000000ffff"}),
        (200, {"status": "ok"}),
        (200, ["brokerId", ID]),
        (200, None),
        (503, {"brokerId": ID}),
        (302, {"brokerId": ID}),
    ],
)
async def test_who_does_not_say_that_it_is_the_broker_is_not(endpoint: Endpoint, status: int, body: Any) -> None:
    endpoint.told("/api/v1/info", status, body, Location=f"{endpoint.url}/elsewhere")
    endpoint.told("/elsewhere", 200, OURS)
    with pytest.raises(Unreached):
        await greeted(endpoint.url)
    assert [line for line, _, _ in endpoint.seen] == ["GET /api/v1/info"], "a redirect is not followed"


async def test_fields_of_another_make_do_no_harm(endpoint: Endpoint) -> None:
    strange = {"version": 7, "capabilities": {"pty": True}, "window": "many", "epoch": -4, "instance": [], "working": 1}
    endpoint.told("/api/v1/info", 200, {"brokerId": ID.upper(), **strange})
    hello, _ = await greeted(endpoint.url)
    assert hello == wire.Connect(broker_id=ID)


async def test_nobody_there_is_unreached() -> None:
    with served(ID) as gone:
        url = gone.url
    with pytest.raises(Unreached):
        await greeted(url)


# -- the socket that is none -------------------------------------------------------------------------------------------


class Held:
    """A socket over HTTP, greeted as a hub greets it."""

    def __init__(self, socket: HttpSocket) -> None:
        self.socket = socket

    async def ask(self, path: str, **headers: str) -> str:
        """The id of a request that is on its way. Raises: Closed."""
        request_id = SYSTEM.uuid4()
        named = {wire.DISPATCH_ID: "d-1", **{name.replace("_", "-"): value for name, value in headers.items()}}
        call = wire.Call(method="POST", path=path, query="projectId=p", body=b"{}")
        await self.socket.send(wire.encode(wire.Request.of(request_id, call, named)))
        return request_id

    async def told(self) -> wire.Response:
        """Raises: Closed."""
        with anyio.fail_after(10):
            text = await self.socket.receive()
        [frame] = wire.decode_from_broker(text, batch=False)
        assert isinstance(frame, wire.Response)
        return frame


@pytest.fixture
async def held(endpoint: Endpoint) -> Any:
    caller = Caller(CHANNEL)
    hello, key = await greet(caller, endpoint.url, ID, (NEW,), SYSTEM)
    async with anyio.create_task_group() as tasks:
        socket = HttpSocket(
            caller=caller,
            base=endpoint.url,
            broker=Broker(id=BrokerId(ID), name="b", slug="b"),
            hello=hello,
            secret=key,
            settings=CHANNEL,
            clock=SYSTEM,
            tasks=tasks,
        )
        assert "connect" in await socket.receive()
        connected = wire.Connected(broker_id=ID, session_id="s", epoch=42, node_id="n", window=5)
        await socket.send(wire.encode(connected))
        yield Held(socket)
        tasks.cancel_scope.cancel()
    await caller.close()


async def test_a_hub_that_stops_reaches_nobody(endpoint: Endpoint) -> None:
    caller = Caller(CHANNEL)
    request = wire.Request(request_id="r", method="GET", path="/api/v1/nothing")
    await caller.ask(endpoint.url, request)
    await caller.close()
    with pytest.raises(Unreached, match="closed"):
        await caller.ask(endpoint.url, request)


async def test_what_a_request_says_of_its_dispatch_is_signed(endpoint: Endpoint, held: Held) -> None:
    endpoint.told("/api/v1/agents/a/stop", 200, {"phase": "stopped"})
    request_id = await held.ask("/api/v1/agents/a/stop", X_Dispatch_Epoch="42", X_Agent_Id="a")
    answer = await held.told()
    assert (answer.request_id, answer.status_code, answer.json()) == (request_id, 200, {"phase": "stopped"})
    line, headers, body = endpoint.seen[-1]
    assert (line, body) == ("POST /api/v1/agents/a/stop?projectId=p", b"{}")
    assert headers["X-Scion-Signed-Headers"] == "X-Dispatch-Id;X-Dispatch-Epoch;X-Agent-Id"


async def test_of_an_answer_beyond_a_frame_the_status_is_kept(endpoint: Endpoint, held: Held) -> None:
    endpoint.told("/api/v1/agents/a/stop", 200, "x" * CHANNEL.frame_limit)
    await held.ask("/api/v1/agents/a/stop")
    answer = await held.told()
    assert (answer.status_code, answer.body) == (200, b"")


@pytest.mark.parametrize("status", [500, 409, 412, 302])
async def test_an_answer_of_the_broker_is_one_whatever_its_status(endpoint: Endpoint, held: Held, status: int) -> None:
    endpoint.told("/api/v1/agents/a/stop", status, {"error": {"code": "c", "message": "m"}})
    await held.ask("/api/v1/agents/a/stop")
    assert (await held.told()).status_code == status


@pytest.mark.parametrize("status", [200, 502, 504])
async def test_an_answer_in_the_brokers_place_loses_the_link(endpoint: Endpoint, held: Held, status: int) -> None:
    endpoint.told("/api/v1/agents/a/stop", status, None, X_Scion_Broker_ID="a-gateway")
    await held.ask("/api/v1/agents/a/stop")
    with pytest.raises(Closed) as lost:
        await held.told()
    assert lost.value.code == 1006


async def test_a_key_that_is_not_known_any_more_loses_the_link(endpoint: Endpoint, held: Held) -> None:
    """Nothing was run: another key may do, and a 401 must not end the work as failed."""
    endpoint.keys = ()
    await held.ask("/api/v1/agents/a/stop")
    with pytest.raises(Closed):
        await held.told()
    with pytest.raises(Closed):
        await held.ask("/api/v1/agents/a/stop")


# -- when it is left alone, and where it may be ------------------------------------------------------------------------


class Refusing:
    """A storage that has the broker, and cannot keep what it says of itself."""

    def __init__(self, url: str) -> None:
        self.broker = Broker(id=BrokerId(ID), name="b", slug="b", endpoint=url)
        self.claims: list[SessionClaim] = []

    async def find_broker(self, ref: str) -> Broker:
        return self.broker

    async def broker_secrets(self, broker_id: BrokerId) -> list[SealedSecret]:
        return [SealedSecret(key_id="k", sealed=seal_secret(KEYRING, NEW, ID, "k"))]

    async def endpoints_waiting(self, limit: int) -> list[Broker]:
        return [self.broker]

    async def claim_session(self, claim: SessionClaim) -> SessionClaimed:
        self.claims.append(claim)
        raise Invalid(fields={"value": "the database cannot store it"})


async def test_what_an_endpoint_says_of_itself_ends_no_hub(endpoint: Endpoint) -> None:
    """Whatever cannot be stored: the broker is let be, and asked again in the hub's own time."""
    endpoint.told("/api/v1/info", 200, OURS | {"window": 10**24})
    storage: Any = Refusing(endpoint.url)
    links = Links(
        storage=storage,
        node_id=NodeId("n"),
        clock=SYSTEM,
        settings=CHANNEL,
        window=64,
        tells_conflict=lambda _: None,
    )
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            directs = Directs(
                storage=storage, links=links, keyring=KEYRING, clock=SYSTEM, settings=CHANNEL, every=60.0, tasks=tasks
            )
            tasks.start_soon(directs.run)
            await directs.hold(storage.broker)
            await anyio.sleep(0.2)
            assert [claim.window for claim in storage.claims] == [64]
            tasks.cancel_scope.cancel()


def test_a_silent_endpoint_is_left_alone_for_longer_and_longer() -> None:
    silence = Silence()
    pauses = []
    for _ in range(12):
        silence.add(0.0, SYSTEM)
        pauses.append(silence.until)
    assert 0.5 <= pauses[0] <= 0.7
    assert pauses[-1] <= LONGEST_PAUSE * 1.25
    assert pauses[:6] == sorted(pauses[:6])


@pytest.mark.parametrize("url", ["http://broker.example", "https://broker.example:8443/", "http://10.0.0.7:9810",
                                 "http://[fd00::7]:9810", "http://localhost:1"])  # fmt: skip
def test_an_address_of_a_broker_is_taken(url: str) -> None:
    assert endpoint_problem(url) is None


@pytest.mark.parametrize("url", ["", "https://", "//broker", "file:///etc/passwd", "http://b/path", "http://b?q", "http://b#f",
                                 "http://u@b", "http://b:x", "http://169.254.169.254", "http://[fe80::1%25eth0]",
                                 "http://224.0.0.1", "http://b\n", "http://" + "b" * 400])  # fmt: skip
def test_an_address_that_is_none_of_a_broker_is_refused(url: str) -> None:
    assert endpoint_problem(url)
