"""A test's hand on a scripted broker's process: commands, signals, and what its history says."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, Self

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.harness.history import Event, matching, read
from tests.harness.processes import PATIENCE, ROOT, Child, Late, eventually


class CommandFailed(AssertionError):
    """The scripted broker could not do what it was told."""


class BrokerProcess:
    """One directory, and the process that runs in it now; `restart` keeps the directory."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        """`settings` are those of `scripted_broker.Settings`, without `directory`."""
        self.directory = directory
        self.settings = settings
        self.child: Child | None = None
        self._port = 0
        self._lifeline: SocketStream | None = None

    @property
    def broker_id(self) -> str:
        return str(self.settings["broker_id"])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # -- the process

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        file = self.directory / "settings.json"
        file.write_text(json.dumps({**self.settings, "directory": str(self.directory)}))
        arguments = [sys.executable, "-m", "tests.harness.scripted_broker", str(file)]
        child = self.child = Child(arguments, self.directory / "broker.log", cwd=ROOT)

        async def told() -> dict[str, Any] | None:
            if not child.alive:
                raise CommandFailed(f"scripted broker ended at its start:\n{child.tail()}")
            return json.loads(ready.read_text()) if ready.exists() else None

        self._port = (await eventually(told, "scripted broker ready", every=0.01))["port"]
        self._lifeline = await anyio.connect_tcp("127.0.0.1", self._port)
        await self._lifeline.send(b'{"do": "lifeline"}\n')

    def kill(self) -> None:
        if self.child:
            self.child.kill()

    async def stop(self) -> None:
        if self._lifeline:
            with contextlib.suppress(OSError, anyio.BrokenResourceError):
                await self._lifeline.aclose()
            self._lifeline = None
        if self.child:
            self.child.stop()

    async def restart(self, **settings: Any) -> None:
        """The process anew on the same directory, after `kill` or an orderly stop."""
        await self.stop()
        self.settings |= settings
        await self.start()

    # -- commands

    async def tell(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One command, done when this returns. Raises: CommandFailed."""
        with anyio.fail_after(PATIENCE):
            async with await anyio.connect_tcp("127.0.0.1", self._port) as stream:
                await stream.send(json.dumps({"do": do, **arguments}).encode() + b"\n")
                line = await BufferedByteReceiveStream(stream).receive_until(b"\n", 8 << 20)
        answer: dict[str, Any] = json.loads(line)
        if wrong := answer.get("wrong"):
            raise CommandFailed(wrong)
        return answer

    async def rule(self, **rule: Any) -> None:
        """Adds a rule (`script.Rule`); rules are tried in the order in which they were added."""
        await self.tell("rule", **rule)

    async def release(self, gate: str) -> None:
        await self.tell("release", gate=gate)

    async def disconnect(self, *, abort: bool = False, code: int = 1000) -> None:
        """No socket any more and no further dials, until `connect`."""
        await self.tell("auto", on=False)
        for n in (await self.tell("state"))["open"]:
            await (self.tell("abort", socket=n) if abort else self.tell("close", socket=n, code=code))
        await self.until_closed()

    async def connect(self, url: str | None = None) -> Event:
        """Dials from now on, and waits for the next `connected`."""
        before = len(self.history())
        if url is not None:
            await self.tell("urls", urls=[url])
        await self.tell("auto", on=True)
        return await self.seen(what="connected", after=before)

    async def until_closed(self) -> None:
        async def none_open() -> bool:
            return not (await self.tell("state"))["open"]

        await eventually(none_open, "all sockets of the scripted broker closed")

    # -- history

    def history(self) -> list[Event]:
        return read(self.directory / "history.jsonl")

    def events(self, **wanted: Any) -> list[Event]:
        """Events with these members; a callable is asked instead of compared."""
        return list(matching(self.history(), wanted))

    def effects(self, **wanted: Any) -> list[Event]:
        return self.events(what="effect", **wanted)

    async def seen(self, *, after: int = 0, times: int = 1, patience: float = PATIENCE, **wanted: Any) -> Event:
        """The `times`-th event with these members behind the first `after` lines of the history. Raises: Late."""

        async def find() -> Event | None:
            found = list(matching(self.history()[after:], wanted))
            return found[times - 1] if len(found) >= times else None

        try:
            return await eventually(find, f"{times} × {wanted} in the broker's history", patience=patience, every=0.02)
        except Late as late:
            last = "\n".join(json.dumps(event)[:300] for event in self.history()[-25:])
            raise Late(f"{late}; its last events:\n{last}") from None
