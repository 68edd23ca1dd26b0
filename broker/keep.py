"""The keeper: the parent of one agent, which outlives the broker.

It holds the agent's standard input, writes its log, takes messages over a unix socket and remembers their ids, stops
the agent's process group, and writes down the exit code. A program of its own, with the standard library only.

On its standard input it gets its orders (one JSON object); on its standard output it tells once whether the agent runs.
Its state file is replaced as a whole, and before whatever it tells of happens: a kill at any line leaves either no
agent or one that the file names.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from broker.keeping.agentlog import AgentLog
from broker.keeping.child import Child, adopt_orphans, ended_children, started_at
from broker.keeping.door import Client, Door
from broker.keeping.job import Job, Jobs, Over
from broker.keeping.mailbox import Mailbox

STATE = "state.json"
SOCKET = "sock"
_STRAGGLERS = 1.0
"""Seconds that an agent's own children have to end when it ended by itself."""
_AFTER_KILL = 0.5
_FLUSH = 1.0
_MESSAGE_COMMAND = 60.0


class Keeper:
    """One agent's run, from its start to its end."""

    def __init__(self, orders: dict[str, Any], umask: int) -> None:
        self._orders = orders
        self._umask = umask
        self._log = AgentLog(Path(orders["log"]), orders["logBytes"], orders["logFiles"])
        self._selector = selectors.DefaultSelector()
        self._mail = Mailbox()
        self._jobs = Jobs(self._selector, self._spawn)
        self._execs: dict[tuple[Client, int], Job] = {}
        self._status: dict[str, Any] = {}
        self._asked: str | None = None
        self._exit: int | None = None
        self._ended: dict[str, Any] | None = None
        self._failed: str | None = None
        self._kill_at = self._over_at = float("inf")
        self._child: Child | None = None
        self._keep()
        self._door = Door(self._selector, SOCKET, self._hello, self._do)

    @property
    def _agent(self) -> Child:
        assert self._child is not None, "it was started before the loop"
        return self._child

    def begin(self) -> str | None:
        """Start the agent. Answers why it could not be started."""
        adopt_orphans()
        self._hear_signals()
        self._child = self._spawn(self._orders["command"])
        self._keep()
        self._failed = self._child.open_gate()
        if self._failed:
            self._keep()
            return self._failed
        self._selector.register(self._child.stdout, selectors.EVENT_READ, self._drain)
        return None

    def run(self) -> None:
        """Keep the agent until it ended."""
        while self._ended is None:
            for key, _ in self._selector.select(self._pause()):
                current = self._selector.get_map().get(key.fd)
                if current and current.data == key.data:
                    key.data()
            self._keep_time(time.monotonic())
            self._feed()
        self._mail.close("ended")
        self._jobs.end_all()
        self._keep()
        self._door.tell_all({"event": "ended", "ended": self._ended})
        until = time.monotonic() + _FLUSH
        while not self._door.flush() and time.monotonic() < until:
            time.sleep(0.005)
        Path(SOCKET).unlink(missing_ok=True)

    def _spawn(self, command: list[str]) -> Child:
        return Child(command, self._orders["env"], self._orders["workdir"], self._umask)

    def _keep(self) -> None:
        """Replace the state file: who keeps, who is kept, what was asked and how it ended."""
        agent = self._child if self._exit is None else None
        told = {
            "run": self._orders["run"],
            "keeper": {"pid": os.getpid(), "start": started_at(os.getpid())},
            "agent": {"pid": agent.pid, "start": started_at(agent.pid)} if agent else None,
            "began": self._child is not None and self._failed is None,
            "failed": self._failed,
            "asked": self._asked,
            "exitCode": self._exit,
            "ended": self._ended,
            "messages": self._mail.delivered() if self._ended else [],
        }
        new = Path(f"{STATE}.new")
        new.write_text(json.dumps(told), encoding="utf-8")
        new.replace(STATE)

    # -- time and signals --------------------------------------------------------------------------------------------

    def _pause(self) -> float:
        """Seconds until something is due; while the agent's group dies, look again and again."""
        if self._exit is not None:
            return 0.02
        due = [self._kill_at, *(one.until for one in self._mail.waiting), *self._jobs.due()]
        return max(0.0, min(3600.0, min(due) - time.monotonic()))

    def _keep_time(self, now: float) -> None:
        self._mail.overdue(now)
        self._jobs.overdue(now)
        if self._kill_at <= now:
            self._kill_at = float("inf")
            self._agent.signal_group(signal.SIGKILL)
        if self._exit is not None:
            self._settle(now)

    def _hear_signals(self) -> None:
        heard, wakeup = os.pipe()
        os.set_blocking(heard, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self._selector.register(heard, selectors.EVENT_READ, lambda: self._signalled(heard))

    def _signalled(self, heard: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in os.read(heard, 512):
                self._stop("stop")
        for pid, code in ended_children():
            if pid == self._agent.pid:
                self._exit = code
                self._left()
            else:
                self._jobs.ended(pid, code)

    # -- the agent's end ---------------------------------------------------------------------------------------------

    def _stop(self, asked: str) -> None:
        """Signal the group now, and kill it when its grace is over. The last word about why is kept."""
        if self._exit is not None:
            return
        first = self._asked is None
        self._asked = asked
        self._keep()
        if first:
            self._kill_at = time.monotonic() + self._orders["stopGrace"]
            self._agent.signal_group(self._orders["stopSignal"])

    def _left(self) -> None:
        """The agent itself ended: what it started has the rest of its grace."""
        now = time.monotonic()
        self._keep()
        if self._kill_at == float("inf"):
            self._agent.signal_group(signal.SIGTERM)
            self._kill_at = now + _STRAGGLERS
        self._over_at = max(now, self._kill_at) + _AFTER_KILL

    def _settle(self, now: float) -> None:
        """The run is over when nothing of the group is left."""
        if now < self._over_at and self._agent.signal_group(0):
            return
        while self._drain():
            pass
        self._ended = {
            "exitCode": self._exit,
            "asked": self._asked,
            "at": int(time.time()),
            "tail": self._log.tail(),
        }

    def _drain(self) -> bool:
        """Take what the agent printed; False when there is nothing now."""
        data = self._agent.read()
        if data == b"":
            self._forget(self._agent.stdout)
        if not data:
            return False
        statuses = self._log.write(data)
        for status in statuses:
            self._status = {**self._status, **status}
        if statuses:
            self._door.tell_all({"event": "status", "status": self._status})
        return True

    def _forget(self, pipe: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(pipe)

    # -- messages ----------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Write waiting messages, or start the command that delivers the next one."""
        if self._exit is not None:
            self._mail.close("ended")
            return
        if self._orders["messageCommand"]:
            self._deliver_next()
            return
        while self._mail.waiting:
            message = self._mail.waiting[0]
            try:
                message.rest = message.rest[self._agent.write(message.rest) :]
            except BrokenPipeError:
                self._mail.close("closed")
                break
            if message.rest:
                break
            self._mail.waiting.popleft()
            self._mail.end(message, {"result": "delivered"})
        self._forget(self._agent.stdin)
        if self._mail.waiting:
            self._selector.register(self._agent.stdin, selectors.EVENT_WRITE, lambda: None)

    def _deliver_next(self) -> None:
        if not self._mail.waiting or self._jobs.deliver():
            return
        message = self._mail.waiting.popleft()

        def over(told: dict[str, Any]) -> None:
            delivered = told["exitCode"] == 0
            self._mail.end(message, {"result": "delivered"} if delivered else {"result": "failed", **told})

        self._jobs.start(self._orders["messageCommand"], message.line, _MESSAGE_COMMAND, over, delivers=True)

    # -- what brokers ask --------------------------------------------------------------------------------------------

    def _hello(self) -> dict[str, Any]:
        return {"event": "hello", "run": self._orders["run"], "status": self._status}

    def _do(self, client: Client, told: dict[str, Any]) -> None:
        """One request; its answer carries its number."""

        def answer(what: dict[str, Any]) -> None:
            client.tell({"n": told["n"], **what})

        match told["do"]:
            case "message":
                line = told["line"]
                until = time.monotonic() + told["wait"]
                self._mail.take(told["id"], None if line is None else line.encode(), until, answer)
            case "withdraw":
                answer({"result": "withdrawn" if self._mail.withdraw(told["id"]) else "kept"})
            case "stop":
                self._stop(told["asked"])
                answer({"result": "stopping"})
            case "exec":
                self._exec(client, told, answer)
            case "abort":
                job = self._execs.get((client, told["of"]))
                if job:
                    job.kill()
                answer({"result": "killed" if job else "unknown"})

    def _exec(self, client: Client, told: dict[str, Any], answer: Over) -> None:
        key = (client, told["n"])

        def over(what: dict[str, Any]) -> None:
            self._execs.pop(key, None)
            answer(what)

        job = self._jobs.start(told["command"], b"", told["timeout"], over, delivers=False)
        if job:
            self._execs[key] = job


def main() -> None:
    """Take the orders, start the agent, tell how that went, keep it."""
    with contextlib.suppress(PermissionError):
        os.setsid()
    umask = os.umask(0o077)
    orders = json.loads(sys.stdin.buffer.read())
    os.chdir(orders["runDir"])
    os.set_inheritable(orders["lock"], False)
    keeper = Keeper(orders, umask)
    failed = keeper.begin()
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps({"failed": failed}).encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    if failed is None:
        keeper.run()


if __name__ == "__main__":
    main()
