"""`make demo`: three hubs on one PostgreSQL, two brokers, and a hub that is killed while it carries a command out.

Everything runs on loopback, in a folder of its own that is removed at the end, and is stopped by its process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from kernel.cli.timeline import timeline
from kernel.testing.postgres import Server

ROOT = Path(__file__).resolve().parents[1]
POINTSMAN = str(Path(sys.executable).with_name("pointsman"))
PATIENCE = 60.0
AGENT = """
import json, os, signal, sys, time
from pathlib import Path

diary = Path(sys.argv[1])


def note(what):
    with diary.open("a") as file:
        file.write(what + "\\n")


def put_away(*_):
    time.sleep(4)  # an agent that takes its time to put its things away: its restart is as slow
    os._exit(0)


signal.signal(signal.SIGTERM, put_away)
note("began")
for line in sys.stdin:
    note("heard " + json.loads(line)["message"])
"""
"""What the brokers run. Its diary tells how often anything really happened."""


class Demo:
    """The processes, and who asks them."""

    def __init__(self, folder: Path, server: Server, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.began = time.monotonic()
        self.env = {
            **os.environ,
            "POINTSMAN_DSN": server.create_database("demo"),
            "SESSION_SECRET": secrets.token_urlsafe(32),
            "POINTSMAN_DEV_TOKEN": secrets.token_urlsafe(24),
        }
        self.hubs: dict[str, subprocess.Popen[bytes]] = {}
        self.urls: dict[str, str] = {}
        self.names: dict[str, str] = {}
        """node → the letter that people know it by"""
        headers = {"Authorization": f"Bearer {self.env['POINTSMAN_DEV_TOKEN']}"}
        self.client = stack.enter_context(httpx2.Client(headers=headers, timeout=PATIENCE))

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    # -- processes

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Ended with the demo, whatever happens; in a session of its own, so that Ctrl-C reaches only this program."""
        home = self.folder / name
        home.mkdir()
        log = self.stack.enter_context((home / "log").open("wb"))
        child = subprocess.Popen(
            [POINTSMAN, *arguments], cwd=home, env=self.env, stdout=log, stderr=log, start_new_session=True
        )
        self.stack.callback(ended, child)
        return child

    def start_hubs(self, *names: str) -> None:
        for name in names:
            serve = ("serve", "--config", str(ROOT / "conf" / "postgres.yaml"), "--port", "0", "--ready-file", "ready")
            self.hubs[name] = self.start(f"hub {name}", *serve)
        for name in names:
            ready = eventually(lambda name=name: self._ready(name), f"hub {name}")
            self.urls[name], self.names[ready["nodeId"]] = ready["url"], name
        self.say(f"hubs {', '.join(f'{name} at {self.urls[name]}' for name in names)}")

    def _ready(self, name: str) -> Any:
        home = self.folder / f"hub {name}"
        if self.hubs[name].poll() is not None:
            raise SystemExit(f"hub {name} ended:\n{(home / 'log').read_text()}")
        return json.loads((home / "ready").read_text()) if (home / "ready").exists() else None

    def start_broker(self, name: str, order: str) -> str:
        """Knows the hubs in this order."""
        made = self.ask(order[0], "POST", "/brokers", {"name": name, "autoProvide": True})
        join = {"brokerId": made["brokerId"], "joinToken": made["joinToken"], "hostname": "demo"}
        joined = self.ask(order[0], "POST", "/brokers/join", join)
        identity = self.folder / f"{name}.json"
        identity.touch(0o600)
        identity.write_text(json.dumps({"brokerId": made["brokerId"], "secret": joined["secretKey"], "name": name}))
        identities = self.folder / f"of {name}"
        identities.mkdir(0o700)
        identity.rename(identities / "identity.json")
        hubs = [part for hub in order for part in ("--hub", self.urls[hub])]
        self.start(name, "broker", "run", "--dir", str(identities), "--stop-agents", *hubs)
        return str(made["brokerId"])

    # -- questions

    def ask(self, hub: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Any hub: that is the point. Raises: SystemExit when it says no."""
        answer = self.client.request(method, f"{self.urls[hub]}/api/v1{path}", json=body, headers=headers)
        if answer.status_code >= 400:
            raise SystemExit(f"{method} {path} at hub {hub}: {answer.status_code} {answer.text}")
        found = answer.json() if answer.content else {}
        return {**found, "dispatch": answer.headers.get("X-Dispatch-Id")} if isinstance(found, dict) else found

    def owner(self, broker: str, asked: str) -> str:
        """The hub that holds the broker's socket."""

        def holder() -> str | None:
            row = self.ask(asked, "GET", f"/runtime-brokers/{broker}")
            node = self.names.get(row.get("connectedHubId") or "")
            return node if row["status"] == "online" and node and self.hubs[node].poll() is None else None

        return str(eventually(holder, "the broker"))

    def show(self, hub: str, dispatch: str) -> dict[str, Any]:
        row = self.ask(hub, "GET", f"/dispatches/{dispatch}")
        steps = self.ask(hub, "GET", f"/dispatches/{dispatch}/explain")["transitions"]
        print()
        for line in timeline(row, steps, self.names):
            print(f"    {line}")
        print(flush=True)
        found: dict[str, Any] = row
        return found


def eventually(probe: Any, what: str) -> Any:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := probe():
            return found
        time.sleep(0.05)
    raise SystemExit(f"waited {PATIENCE:.0f} s for {what}")


def ended(child: subprocess.Popen[bytes]) -> None:
    """TERM, and after a while KILL."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="pointsman demo "))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> None:
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(folder())
        print("starting PostgreSQL and three hubs …", flush=True)
        demo = Demo(home, stack.enter_context(Server(durable=True)), stack)
        demo.start_hubs("A", "B", "C")
        story(demo)
    print("everything that was started is stopped")


def story(demo: Demo) -> None:
    attic, cellar = demo.start_broker("attic", "BCA"), demo.start_broker("cellar", "CBA")
    for name, broker in (("attic", attic), ("cellar", cellar)):
        demo.say(f"broker {name} has one socket, to hub {demo.owner(broker, 'A')}")
    project = demo.ask("A", "POST", "/projects", {"name": "demo"})["id"]
    agents = {name: create(demo, project, name, broker) for name, broker in (("ada", attic), ("bob", cellar))}
    through_the_wrong_hub(demo, agents["bob"])
    killed_in_the_middle(demo, agents["ada"], attic)


def create(demo: Demo, project: str, name: str, broker: str) -> str:
    """Through hub A, which holds neither broker."""
    program = demo.folder / f"{name}.py"
    program.write_text(AGENT)
    config = {"command": [sys.executable, str(program), str(diary(demo, name))]}
    body = {"name": name, "projectId": project, "runtimeBrokerId": broker, "config": config}
    made = demo.ask("A", "POST", "/agents", body)
    demo.say(f"agent {name} is {made['agent']['phase']}, asked of hub A")
    return str(made["agent"]["id"])


def diary(demo: Demo, name: str) -> Path:
    return demo.folder / f"{name}.diary"


def through_the_wrong_hub(demo: Demo, agent: str) -> None:
    demo.say("a message to bob, through hub A: recorded there, delivered by the hub with the socket, answered at A")
    sent = demo.ask("A", "POST", f"/agents/{agent}/message", {"message": "water the plants"}, Prefer="wait=30")
    row = demo.show("A", sent["dispatch"])
    eventually(lambda: "heard water the plants" in diary(demo, "bob").read_text(), "bob to hear it")
    promised(row["state"] == "done", "it ended done")


def killed_in_the_middle(demo: Demo, agent: str, broker: str) -> None:
    owner = demo.owner(broker, "A")
    demo.say(f"ada is restarted, through hub A: she needs four seconds, and hub {owner} has the socket")
    answers: list[Any] = []
    asked = threading.Thread(
        target=lambda: answers.append(demo.ask("A", "POST", f"/agents/{agent}/restart", Prefer="wait=60"))
    )
    asked.start()
    dispatch = eventually(lambda: sent_to_broker(demo), "the restart to be under way")
    time.sleep(1)
    demo.hubs[owner].kill()
    demo.hubs[owner].wait()
    demo.say(f"hub {owner} is killed (SIGKILL), in the middle of it")
    demo.say(f"broker attic dialled hub {demo.owner(broker, 'A')}")
    asked.join(PATIENCE)
    promised(bool(answers), "the caller, who asked hub A and waited, got the answer")
    demo.say(f"the caller's answer: {answers[0]['phase']}, dispatch {answers[0]['dispatch']}")
    row = demo.show("A", dispatch)
    promised(row["state"] == "done" and row["attempts"] > 1, "it was driven again and ended done")
    eventually(lambda: began(demo) >= 2, "ada to begin again")
    promised(began(demo) == 2, "ada began once when she was made and once by the restart: nothing happened twice")


def sent_to_broker(demo: Demo) -> str | None:
    found = demo.ask("A", "GET", "/dispatches?state=in_progress")["dispatches"]
    return next((str(row["id"]) for row in found if row["op"] == "restart"), None)


def began(demo: Demo) -> int:
    return diary(demo, "ada").read_text().count("began")


def promised(kept: bool, what: str) -> None:
    if not kept:
        raise SystemExit(f"NOT KEPT: {what}")
    print(f"          ✓ {what}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
