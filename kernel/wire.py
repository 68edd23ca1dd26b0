"""The frames between hub and broker, typed, and the signature that both sides put on a request.

Imports nothing of ours: `broker/` imports this file and no other of the kernel (design/wire.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec

CONNECT_PATH = "/api/v1/runtime-brokers/connect"

# -- what a broker may announce in `connect` -----------------------------------------------------------------

DEDUPE = "dedupe"
EPOCH = "epoch"
WINDOW = "window"
BATCH = "batch"
RECONNECT = "reconnect"
PROGRESS = "progress"
CANCEL = "cancel"
SUSPEND = "suspend"
CAPABILITIES = (DEDUPE, EPOCH, WINDOW, BATCH, RECONNECT, PROGRESS, CANCEL, SUSPEND)

# -- headers, limits, words ----------------------------------------------------------------------------------

BROKER_ID = "X-Scion-Broker-ID"
TIMESTAMP = "X-Scion-Timestamp"
NONCE = "X-Scion-Nonce"
SIGNATURE = "X-Scion-Signature"
SIGNED_HEADERS = "X-Scion-Signed-Headers"
AGENT_TOKEN = "X-Scion-Agent-Token"  # noqa: S105 - the name of a header

DISPATCH_ID = "X-Dispatch-Id"
DISPATCH_ATTEMPT = "X-Dispatch-Attempt"
DISPATCH_EPOCH = "X-Dispatch-Epoch"
DISPATCH_TIMEOUT = "X-Dispatch-Timeout-Ms"
AGENT_ID = "X-Agent-Id"

FRAME_LIMIT = 1024 * 1024
STOCK_FRAME_LIMIT = 65_536
CLOCK_WINDOW = 300
"""Seconds by which a signer's clock may differ from the reader's."""
NONCE_BYTES = 16

PHASES = (
    "created", "provisioning", "cloning", "starting", "running", "suspended", "stopping", "stopped", "error",
)  # fmt: skip
ACTIVITIES = (
    "working", "thinking", "executing", "waiting_for_input", "blocked", "completed", "limits_exceeded", "stalled",
    "offline", "crashed",
)  # fmt: skip


class Close(IntEnum):
    """Close codes of the control channel."""

    ORDERLY = 1000
    TOO_BIG = 1009
    NO_PONG = 1011
    BAD_FRAMES = 4400
    NO_CONNECT = 4408
    REPLACED = 4409
    DELETED = 4410
    DRAINING = 4503
    NODE_LOST = 4503


class BadFrame(ValueError):
    """What came is no frame of this protocol; the text says why."""


# -- frames --------------------------------------------------------------------------------------------------


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", rename="camel", omit_defaults=True):
    """One JSON object with a `type`. Only fields that somebody reads are declared: wrong types elsewhere do no harm."""


LastEpoch = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Status = Annotated[int, msgspec.Meta(ge=100, le=599)]


class Connect(Frame, frozen=True, kw_only=True, tag="connect"):
    """broker → hub, first of all. Without capabilities it comes from a stock broker."""

    broker_id: str
    version: str | None = None
    capabilities: list[str] = []
    window: int | None = None
    last_epoch: LastEpoch = 0
    """The highest epoch that this broker has ever seen."""
    instance: str | None = None
    """UUID of the broker's process."""
    projects: Any = None
    groves: Any = None

    @property
    def project_names(self) -> list[str]:
        """What it serves, under the field's present or old name; whatever is no text is left out."""
        named = self.projects if self.projects is not None else self.groves
        return [one for one in named if isinstance(one, str)] if isinstance(named, list) else []


class Connected(Frame, frozen=True, kw_only=True, tag="connected"):
    """hub → broker, always the first frame; a hub of another make sends neither epoch, nodeId nor window."""

    broker_id: str
    session_id: str
    ping_interval_ms: int = 30_000
    epoch: int | None = None
    node_id: str | None = None
    window: int | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a broker, whatever carries it. `path` as on the wire, `query` without its question mark."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""


class Request(Frame, frozen=True, kw_only=True, tag="request"):
    """hub → broker: one signed HTTP request. `request_id` is new for each frame, the dispatch id is not."""

    request_id: str
    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = {}
    body: bytes = b""
    """Standard, padded base64 on the wire."""

    @classmethod
    def of(cls, request_id: str, call: Call, headers: dict[str, str]) -> Request:
        return cls(
            request_id=request_id, method=call.method, path=call.path, query=call.query, headers=headers, body=call.body
        )

    def header(self, name: str) -> str | None:
        return _header(self.headers, name)


class Response(Frame, frozen=True, kw_only=True, tag="response"):
    """broker → hub: the answer to a request; headers and body may be absent."""

    request_id: str
    status_code: Status
    headers: dict[str, str] = {}
    """What is no text in them is dropped when the frame is read."""
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return _header(self.headers, name)

    def json(self) -> Any:
        """The body as JSON; None when it is empty or something else."""
        try:
            return msgspec.json.decode(self.body) if self.body else None
        except (msgspec.DecodeError, RecursionError):
            return None


class Accepted(Frame, frozen=True, kw_only=True, tag="accepted"):
    """broker → hub: taken, work begins."""

    request_id: str


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    """hub → broker: stop it if you can; the answer still comes."""

    request_id: str
    dispatch_id: str | None = None


class Event(Frame, frozen=True, kw_only=True, tag="event"):
    """broker → hub: `heartbeat`, `agent_status`, `agent_output`, `stream_ready`, `stream_closed`."""

    event: str
    payload: dict[str, Any] = {}


class Reconnect(Frame, frozen=True, kw_only=True, tag="reconnect"):
    """hub → broker: after `after_ms` dial another hub, then close this socket; by `deadline_ms` it is closed anyway."""

    after_ms: int = 0
    deadline_ms: int | None = None


class StreamOpen(Frame, frozen=True, kw_only=True, tag="stream_open"):
    stream_id: str
    stream_type: str
    slug: str | None = None
    project_id: str | None = None
    cols: int | None = None
    rows: int | None = None


class Stream(Frame, frozen=True, kw_only=True, tag="stream"):
    stream_id: str
    data: bytes = b""


class StreamResize(Frame, frozen=True, kw_only=True, tag="stream_resize"):
    stream_id: str
    cols: int
    rows: int


class StreamClose(Frame, frozen=True, kw_only=True, tag="stream_close"):
    stream_id: str
    reason: str | None = None
    code: int | None = None


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Either way; answered with `pong`. Liveness itself uses WebSocket pings."""


class Pong(Frame, frozen=True, kw_only=True, tag="pong"):
    """The answer to `ping`."""


class Error(Frame, frozen=True, kw_only=True, tag="error"):
    """Either way: a frame that could not be served."""

    code: str = "internal_error"
    message: str = ""
    request_id: str | None = None
    stream_id: str | None = None


# -- text to frames and back ---------------------------------------------------------------------------------

_Streams = StreamOpen | Stream | StreamResize | StreamClose
_FromBroker = Connect | Response | Accepted | Event | _Streams | Ping | Pong | Error
_FromHub = Connected | Request | Cancel | Reconnect | _Streams | Ping | Pong | Error


class _Reader:
    """Reads one side's frames: well-formed ones in one step, all others by a slow way that can say what is wrong."""

    def __init__(self, frames: Any) -> None:
        self._one = msgspec.json.Decoder(frames)
        self._many = msgspec.json.Decoder(list[frames])
        self._kinds = {kind.__struct_config__.tag: kind for kind in frames.__args__}

    def read(self, text: str | bytes, *, batch: bool) -> Iterator[Frame]:
        if not isinstance(text, str):
            raise BadFrame("a binary frame: frames are JSON text")
        try:
            found = self._many.decode(text) if batch and text[:1] == "[" else [self._one.decode(text)]
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            yield from self._slowly(_parsed(text), batch)
        else:
            yield from found

    def _slowly(self, value: Any, batch: bool) -> Iterator[Frame]:
        if isinstance(value, list) and not batch:
            raise BadFrame("an array of frames, but `batch` was not announced")
        bad = None
        for one in value if isinstance(value, list) else [value]:
            try:
                frame = self._frame(one)
            except BadFrame as fault:
                bad = bad or fault
            else:
                yield frame
        if bad:
            raise bad

    def _frame(self, value: Any) -> Frame:
        if not isinstance(value, dict):
            raise BadFrame("no object: a frame is a JSON object with a `type`")
        tag = value.get("type")
        kind = self._kinds.get(tag) if isinstance(tag, str) else None
        if kind is None:
            raise BadFrame(f"unknown type {tag!r:.64}: this side takes {', '.join(sorted(self._kinds))}")
        present = {name: one for name, one in value.items() if one is not None}
        if kind is Response:
            present["headers"] = _texts(present.get("headers"))
        try:
            frame: Frame = msgspec.convert(present, kind)
        except msgspec.ValidationError as fault:
            raise BadFrame(f"{tag}: {fault}") from fault
        return frame


def _texts(headers: Any) -> dict[str, str]:
    """A broker's answer must not be lost over a header: those that are no text are left out."""
    named = headers if isinstance(headers, dict) else {}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except RecursionError as fault:
        raise BadFrame("not JSON that can be read: nested too deeply") from fault
    except (msgspec.DecodeError, UnicodeError) as fault:
        raise BadFrame(f"not JSON: {fault}") from fault


_from_broker = _Reader(_FromBroker)
_from_hub = _Reader(_FromHub)
_encoder = msgspec.json.Encoder()


def decode_from_broker(text: str | bytes, *, batch: bool) -> Iterator[Frame]:
    """The frames of one WebSocket message from a broker: one, or with `batch` an array of them.

    Every good frame of an array is given before the first bad one is raised.

    Raises: BadFrame.
    """
    return _from_broker.read(text, batch=batch)


def decode_from_hub(text: str | bytes, *, batch: bool) -> Iterator[Frame]:
    """The frames of one WebSocket message from a hub; otherwise as `decode_from_broker`.

    Raises: BadFrame.
    """
    return _from_hub.read(text, batch=batch)


def encode(frame: Frame) -> str:
    """Compact JSON without the fields that hold their default."""
    return _encoder.encode(frame).decode()


def _header(headers: Mapping[str, str], name: str) -> str | None:
    wanted = name.lower()
    return next((value for key, value in headers.items() if key.lower() == wanted), None)


# -- the signature (design/contract.md, Edge) ----------------------------------------------------------------


def canonical_string(
    method: str,
    path: str,
    query: str,
    timestamp: str,
    nonce: str,
    signed_headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
) -> bytes:
    """What is signed: each line ends with a newline, the body's hash does not. `path` is percent-decoded."""
    lines = [method.upper(), path, query, timestamp, nonce]
    lines += [f"{name.lower()}:{value.strip()}" for name, value in signed_headers]
    text = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    return text + base64.b64encode(hashlib.sha256(body).digest()) if body else text


def sign(secret: bytes, canonical: bytes) -> str:
    return base64.b64encode(hmac.digest(secret, canonical, "sha256")).decode()


def is_signed(secret: bytes, canonical: bytes, signature: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(sign(secret, canonical).encode(), signature.encode("utf-8", "replace"))


def covered(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers that a request names as signed, with the values it has for them; a missing one is empty."""
    names = (_header(headers, SIGNED_HEADERS) or "").split(";")
    return [(name.strip(), _header(headers, name.strip()) or "") for name in names if name.strip()]


def signed_headers(
    broker_id: str,
    secret: bytes,
    method: str,
    path: str,
    query: str = "",
    body: bytes = b"",
    *,
    now: int,
    nonce: str | None = None,
    cover: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers that sign a request; `path` as on the wire, `now` in Unix seconds, `cover` are further headers."""
    stamp, once = str(now), nonce or new_nonce()
    more = dict(cover or {})
    canonical = canonical_string(method, unquote(path), query, stamp, once, more.items(), body)
    headers = {BROKER_ID: broker_id, TIMESTAMP: stamp, NONCE: once, **more}
    if more:
        headers[SIGNED_HEADERS] = ";".join(more)
    return {**headers, SIGNATURE: sign(secret, canonical)}


def new_nonce() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(NONCE_BYTES)).decode()


def is_nonce(text: str) -> bool:
    """Whether it is padded, URL-safe base64 of 16 bytes, in the one form that has no twin."""
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == NONCE_BYTES and base64.urlsafe_b64encode(raw).decode() == text
