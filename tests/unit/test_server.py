"""The hub's own socket: an address that cannot be had is told with the option that names another."""

from __future__ import annotations

import socket

import msgspec
import pytest

from kernel.config import Settings
from kernel.errors import Misconfigured
from kernel.server import listening_socket


def at(host: str, port: int) -> Settings:
    server = msgspec.structs.replace(Settings().server, host=host, port=port)
    return msgspec.structs.replace(Settings(), server=server)


def test_a_busy_port_is_told_with_the_option_for_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{port}: .*--port"):
            listening_socket(at("127.0.0.1", port)).__enter__()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_told_with_the_option_for_hosts(host: str) -> None:
    with pytest.raises(Misconfigured, match=f"cannot listen on {host}:0: .*--host"):
        listening_socket(at(host, 0)).__enter__()
