"""Asks the hub over HTTP: every request has a deadline, and every refusal becomes a command's failure."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2
import msgspec

from kernel.cli import show
from kernel.cli.connection import START_ONE, Connection, find_hub
from kernel.cli.exits import Exit, exit_of_answer
from kernel.cli.failure import Broken, CommandFailed, Cut, Unreachable
from kernel.clock import SYSTEM

CONNECT = 5.0
"""Seconds for a connection; past it the request was never sent."""
DEADLINE = 20.0
"""Seconds for an answer that waits for nothing but the hub."""
GRACE = 10.0
"""Seconds that an answer may take beyond the wait which its request asked for."""
PATIENCE = 10.0
"""Seconds for which a change is repeated even if its command does not wait."""
LONGEST_WAIT = 50.0
"""Seconds that one request may ask the hub to wait: proxies cut what is silent for a minute."""
PAGE = 200
FINAL_503 = frozenset({"runtime_broker_unavailable", "runtime_broker_paused", "wrong_node"})
"""Refusals that trying again does not mend: somebody has to do something."""
FIXES = {
    "runtime_broker_unavailable": "start the broker; `pointsman broker list` shows who is connected",
    "outcome_unknown": "look at the agent before you repeat it",
    "missing_env_vars": "give them with --env NAME=VALUE",
    "unavailable": "try again; the hub's /readyz says what it waits for",
    "draining": "try again: this hub is stopping",
}
T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the hub. `document` is its JSON, None for an empty body."""

    status: int
    headers: Mapping[str, str]
    document: Any = None

    @property
    def error(self) -> dict[str, Any] | None:
        """The error of the envelope; None when the hub did not refuse, or when it was not the hub that answered."""
        error = self.document.get("error") if isinstance(self.document, dict) else None
        return error if isinstance(error, dict) and isinstance(error.get("code"), str) else None

    @property
    def code(self) -> str:
        return str(self.error["code"]) if self.error else ""

    @property
    def dispatch_id(self) -> str | None:
        """The intent that it is about."""
        location = self.headers.get("location", "").rpartition("/")[2]
        return self.headers.get("x-dispatch-id") or location or None

    @property
    def is_later(self) -> bool:
        """Whether the same request is to be sent again after `pause`."""
        return self.status in (429, 503) and self.code not in FINAL_503

    @property
    def pause(self) -> float:
        try:
            return min(max(0.1, float(self.headers.get("retry-after", "1"))), 30.0)
        except ValueError:
            return 1.0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A request that changes something. Its key and body stay the same over all repeats."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = {}
    key: str = msgspec.field(default_factory=SYSTEM.uuid7)
    request_id: str = msgspec.field(default_factory=SYSTEM.uuid4)
    """Kept with the intent, which is found by it while its answer is still to come."""


class Hub:
    """One hub, over one client; `url` is for messages."""

    def __init__(self, connection: Connection, http: httpx2.AsyncClient) -> None:
        self.connection = connection
        self._http = http

    @property
    def url(self) -> str:
        return self.connection.url

    async def get(self, path: str, *, within: float = DEADLINE, **query: Any) -> Any:
        """The JSON of a read. Raises: CommandFailed."""
        asked = {name: str(value) for name, value in query.items() if value is not None}
        try:
            answer = await self.send("GET", path, query=asked, within=within)
        except Cut:
            # A kept connection that the hub closed meanwhile looks like this. Reading twice does no harm.
            answer = await self.send("GET", path, query=asked, within=within)
        if answer.status >= 400:
            raise self.refused(answer)
        return answer.document

    async def pages(self, path: str, name: str, *, limit: int | None = None, **query: Any) -> dict[str, Any]:
        """All pages of a list in one document, or its first `limit` entries with the cursor of the rest."""
        whole: dict[str, Any] = {}
        rows: list[Any] = []
        cursor: str | None = None
        while limit is None or len(rows) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(rows))
            page = await self.get(path, limit=size, cursor=cursor, **query)
            whole = {**page, **whole}
            rows.extend(page[name])
            whole[name], whole["nextCursor"] = rows, page.get("nextCursor")
            if not whole["nextCursor"] or whole["nextCursor"] == cursor:
                break
            cursor = whole["nextCursor"]
        return whole

    async def change(self, change: Change) -> Answer:
        """A change that waits for nothing but the hub. Raises: CommandFailed."""
        answer = await self.insist(change, patience=PATIENCE)
        if answer.status >= 400:
            raise self.refused(answer)
        return answer

    async def insist(
        self,
        change: Change,
        *,
        patience: float,
        wait: float = 0.0,
        prefer: Callable[[float], Mapping[str, str]] = lambda _: {},
    ) -> Answer:
        """Sends it with the same key until there is an answer, so that its outcome is not lost.

        The hub may wait for `wait` seconds in all; `prefer` gives the headers that tell it what is left of them.
        A hub that nobody ever reached is not asked twice.

        Raises: CommandFailed when nobody took it, or when an answer is still missing after `patience` seconds.
        """
        began = SYSTEM.monotonic()
        sent, pause = False, 0.1
        while True:
            left = min(max(0.0, began + wait - SYSTEM.monotonic()), LONGEST_WAIT)
            missing: CommandFailed
            try:
                answer = await self._repeat(change, prefer(left), left)
            except Unreachable as away:
                if not sent:
                    raise
                missing, pause = away, min(pause * 2, 2.0)
            except Broken as broken:
                sent, missing, pause = True, broken, min(pause * 2, 2.0)
            else:
                if not answer.is_later:
                    return answer
                missing, pause = self.refused(answer), answer.pause
                sent = sent or answer.code == "outcome_unrecorded"
            if SYSTEM.monotonic() + pause >= began + patience:
                raise _unknown(missing) if sent else missing
            await anyio.sleep(pause)

    async def _repeat(self, change: Change, preferences: Mapping[str, str], wait: float) -> Answer:
        headers = {
            **change.headers,
            **preferences,
            "Idempotency-Key": change.key,
            "X-Request-Id": change.request_id,
        }
        if change.body is not None:
            headers["Content-Type"] = "application/json"
        return await self.send(change.method, change.path, headers=headers, body=change.body, within=wait + GRACE)

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        within: float = DEADLINE,
        root: str = "/api/v1",
    ) -> Answer:
        """One request below `root`, once.

        Raises: Unreachable when it never left, Broken when no answer of a hub came, in time or at all.
        """
        try:
            with anyio.fail_after(within):
                got = await self._http.request(
                    method, f"{root}{path}", params=query or None, headers=dict(headers or {}), content=body
                )
        except TimeoutError as late:
            raise Broken(f"the hub at {self.url} did not answer within {within:g} s") from late
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.LocalProtocolError) as away:
            raise self._nobody(away) from away
        except httpx2.HTTPError as cut:
            raise Cut(f"the hub at {self.url} broke the connection before it answered ({_told(cut)})") from cut
        return self._read(got)

    def _read(self, got: httpx2.Response) -> Answer:
        try:
            document = msgspec.json.decode(got.content) if got.content else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            document = None
        answer = Answer(status=got.status_code, headers=got.headers, document=document)
        if got.status_code >= 300 and answer.error is None and got.status_code not in (429, 503):
            if got.status_code in (502, 504):
                raise Broken(f"what stands before the hub at {self.url} answered {got.status_code}")
            raise self._stranger(got)
        if got.content and document is None and got.status_code < 300:
            raise self._stranger(got)
        return answer

    def _stranger(self, got: httpx2.Response) -> CommandFailed:
        kind = got.headers.get("content-type", "nothing that it names")
        return CommandFailed(
            f"what answers at {self.url} is no pointsman hub: {got.status_code}, {kind}",
            Exit.NO_HUB,
            fix=f"{self.connection.source} named it: set POINTSMAN_HUB to the address of a hub",
        )

    def _nobody(self, away: Exception) -> Unreachable:
        gone = self.connection.is_stale
        left = f", and {self.connection.source} was left behind by a hub that is gone" if gone else ""
        return Unreachable(f"no hub at {self.url} ({_told(away)}){left}", fix=START_ONE)

    def refused(self, answer: Answer, *, fix: str | None = None) -> CommandFailed:
        """An answer from 400 on as the failure of a command: the hub's words, and what to do."""
        error = answer.error or {}
        message = str(error.get("message") or f"the hub at {self.url} answered {answer.status}")
        status = exit_of_answer(answer.status, answer.code)
        if answer.status == 401:
            fix = fix or self._token_fix()
        return CommandFailed(message, status, fix=fix or FIXES.get(answer.code), document=answer.document)

    def _token_fix(self) -> str:
        if self.connection.token is None:
            return f"set POINTSMAN_TOKEN to a token of the hub at {self.url}; `make run` prints its own"
        return f"the hub at {self.url} does not take this token: set POINTSMAN_TOKEN to one that it knows"


def _told(fault: Exception) -> str:
    return str(fault) or type(fault).__name__


def _unknown(missing: CommandFailed) -> CommandFailed:
    """Some request may have been obeyed, and no answer came: neither done nor refused."""
    return CommandFailed(
        f"{missing.message}: it may or may not have happened",
        Exit.UNKNOWN,
        fix="look with `pointsman dispatch list` and `pointsman agent list` before you repeat it",
        document=missing.document,
    )


def encode(document: Any) -> bytes:
    return msgspec.json.encode(document)


@asynccontextmanager
async def open_hub() -> AsyncIterator[Hub]:
    """The hub that environment and working directory name. Nothing is sent yet."""
    connection = find_hub(os.environ, Path.cwd())
    headers = {"User-Agent": "pointsman", "Accept": "application/json"}
    if connection.token:
        headers["Authorization"] = f"Bearer {connection.token}"
    async with httpx2.AsyncClient(
        base_url=connection.url,
        headers=headers,
        timeout=httpx2.Timeout(None, connect=CONNECT),
        # A proxy of the environment does not reach this machine's own loopback.
        trust_env=not connection.is_local,
        # Reading the system's certificates takes longer than most commands.
        verify=connection.url.startswith("https:"),
    ) as http:
        yield Hub(connection, http)


def talk(body: Callable[[Hub], Awaitable[T]], *, as_json: bool) -> T:
    """Runs one conversation with the hub. With `as_json` a refusal's own JSON goes to stdout."""

    async def converse() -> T:
        async with open_hub() as hub:
            return await body(hub)

    try:
        return anyio.run(converse)
    except CommandFailed as failed:
        if as_json and failed.document is not None:
            show.document(failed.document)
        raise
