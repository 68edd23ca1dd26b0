"""The proxy does to a connection what its method says, and nothing else."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.harness.proxy import Proxy

SOON = 0.3


class Echo(socketserver.BaseRequestHandler):
    """Sends back in capitals; remembers how each connection ended."""

    ends: list[str]

    def handle(self) -> None:
        try:
            while piece := self.request.recv(4096):
                self.request.sendall(piece.upper())
            self.ends.append("closed")
        except ConnectionResetError:
            self.ends.append("reset")


class EchoServer(socketserver.ThreadingTCPServer):
    """On a free port."""

    daemon_threads = True

    def __init__(self) -> None:
        self.ends: list[str] = []
        super().__init__(("127.0.0.1", 0), type("ThisEcho", (Echo,), {"ends": self.ends}))

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def saw(self, *ends: str) -> bool:
        """Connections ended like this, in this order, soon."""
        late = time.monotonic() + 20
        while tuple(self.ends) != ends and time.monotonic() < late:
            time.sleep(0.01)
        return tuple(self.ends) == ends


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[Proxy]:
    with Proxy(echo.port) as made:
        yield made


@pytest.fixture
def dialled(proxy: Proxy) -> Iterator[socket.socket]:
    with dial(proxy) as client:
        assert answer(client, b"first") == b"FIRST"
        yield client


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=20)


def answer(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(4096)


def silent(client: socket.socket) -> bool:
    client.settimeout(SOON)
    try:
        client.recv(4096)
    except TimeoutError:
        return True
    finally:
        client.settimeout(20)
    return False


def test_it_carries_both_ways_and_an_orderly_end(echo: EchoServer, proxy: Proxy, dialled: socket.socket) -> None:
    assert answer(dialled, b"x" * 1000) == b"X" * 1000
    assert (proxy.open, proxy.accepted) == (1, 1)
    dialled.shutdown(socket.SHUT_WR)
    assert dialled.recv(10) == b""
    assert echo.saw("closed")


def test_refused_means_that_nobody_listens(proxy: Proxy, dialled: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
    assert answer(dialled, b"still") == b"STILL"
    proxy.heal()
    with dial(proxy) as again:
        assert answer(again, b"back") == b"BACK"


def test_reset_hits_new_connections_only(proxy: Proxy, dialled: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError), dial(proxy) as new:
        answer(new, b"no")
    assert answer(dialled, b"still") == b"STILL"


def test_cut_resets_both_ends_of_existing_connections(echo: EchoServer, proxy: Proxy, dialled: socket.socket) -> None:
    assert proxy.cut() == 1
    with pytest.raises(ConnectionResetError):
        dialled.recv(10)
    with dial(proxy) as again:
        assert answer(again, b"back") == b"BACK"
        assert echo.saw("reset")


def test_stalled_bytes_arrive_when_it_is_healed(proxy: Proxy, dialled: socket.socket) -> None:
    proxy.stall()
    dialled.sendall(b"late")
    assert silent(dialled)
    with dial(proxy) as new:
        new.sendall(b"too")
        assert silent(new)
        proxy.heal()
        assert dialled.recv(10) == b"LATE"
        assert new.recv(10) == b"TOO"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_one_direction_can_be_stalled(direction: str, proxy: Proxy, dialled: socket.socket) -> None:
    proxy.stall("up" if direction == "up" else "down")
    dialled.sendall(b"one")
    assert silent(dialled)
    proxy.heal()
    assert dialled.recv(10) == b"ONE"


def test_stall_of_new_connections_leaves_existing_ones(proxy: Proxy, dialled: socket.socket) -> None:
    proxy.stall(existing=False)
    with dial(proxy) as new:
        new.sendall(b"no")
        assert silent(new)
    assert answer(dialled, b"still") == b"STILL"


def test_stall_of_existing_connections_leaves_new_ones(proxy: Proxy, dialled: socket.socket) -> None:
    proxy.stall(new=False)
    dialled.sendall(b"no")
    with dial(proxy) as new:
        assert answer(new, b"yes") == b"YES"
    assert silent(dialled)


def test_an_end_is_not_told_while_it_is_stalled(echo: EchoServer, proxy: Proxy, dialled: socket.socket) -> None:
    proxy.stall()
    dialled.close()
    with Proxy(proxy.target) as other, dial(other) as witness:
        assert answer(witness, b"time passes") == b"TIME PASSES"
        assert echo.ends == []
        assert proxy.open == 1
        proxy.heal()
        assert echo.saw("closed")


def test_delay_holds_each_piece_for_that_long(proxy: Proxy, dialled: socket.socket) -> None:
    proxy.delay(SOON)
    dialled.sendall(b"slow")
    assert silent(dialled)
    assert dialled.recv(10) == b"SLOW"


def test_half_open_tells_one_end_only(echo: EchoServer, proxy: Proxy, dialled: socket.socket) -> None:
    proxy.half_open("server")
    dialled.sendall(b"hello?")
    assert silent(dialled)
    assert echo.saw("reset")


def test_half_open_the_other_way(echo: EchoServer, proxy: Proxy, dialled: socket.socket) -> None:
    proxy.half_open("client")
    with pytest.raises(ConnectionResetError):
        dialled.recv(10)
    assert echo.ends == []


def test_a_dead_target_resets_who_dials(proxy: Proxy) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy.retarget(closed.getsockname()[1])
        with pytest.raises(ConnectionResetError), dial(proxy) as new:
            answer(new, b"no")


def test_retarget_moves_new_connections(proxy: Proxy, dialled: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        proxy.retarget(other.getsockname()[1])
        with dial(proxy), other.accept()[0]:
            assert answer(dialled, b"still") == b"STILL"
