"""What a broker is told when it is started, and the one error that stops it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from kernel import wire


class Unusable(Exception):
    """The broker cannot run as it is set up; the text says what to do.

    `status` is the hub's HTTP status when a hub refused, 0 when no hub could be asked, None otherwise.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str = "") -> None:
        self.status = status
        self.code = code
        super().__init__(message)


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """With this a broker registers itself when it has no identity, or when the hub does not know it any more."""

    token: str
    """Of a user who may register brokers."""
    name: str
    auto_provide: bool = False
    labels: dict[str, str] = {}
    endpoint: str | None = None
    """The URL at which hubs reach what listens on `BrokerSettings.listen`."""


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `run_broker` takes. Times in seconds."""

    dir: Path
    """Its own folder: identity, inbox, agents. One broker at a time."""
    hubs: tuple[str, ...] = ()
    """Base URLs, dialled in turn; none: those that the identity names."""
    registration: Registration | None = None
    dial: bool = True
    """Keep a socket to a hub; otherwise hubs call what `listen` names."""
    listen: str | None = None
    """`HOST:PORT` at which its endpoints are served over HTTP, too."""
    stop_agents_on_exit: bool = False
    """An orderly stop stops the agents; otherwise they go on and the next broker in `dir` finds them."""
    stop_limit: float = 6.0
    """An orderly stop waits no longer for agents: then they are killed."""
    version: str = ""
    window: int = 64
    """Requests that the hub may have in flight here."""
    frame_limit: int = wire.FRAME_LIMIT
    ping: float = 10.0
    dead_after: float = 25.0
    handshake: float = 30.0
    send_deadline: float = 10.0
    heartbeat: float = 30.0
    progress: float = 10.0
    """While an operation runs, it says so this often."""
    first_progress: float = 1.0
    backoff: float = 0.5
    backoff_most: float = 30.0
    settled_after: float = 30.0
    """A session that stood this long ends the backoff."""
    other_instance_wait: float = 30.0
    message_wait: float = 5.0
    """An agent has this long to begin to read a message; then it is busy."""
    log_bytes: int = 5 * 1024 * 1024
    log_files: int = 3
    pass_env: tuple[str, ...] = ()
    """Names of the broker's own environment that agents get, besides PATH, HOME and their like."""
