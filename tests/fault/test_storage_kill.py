"""A hub that is killed between commit and answer: what it had acknowledged is there, whole, when it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernel import IntentFilter, IntentId, Op, Page, State
from kernel.testing.storage.world import World
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

pytestmark = pytest.mark.anyio

RECORDS = """
import os, sys, anyio
from kernel import AgentChange, IdempotencyKey, Op, Phase, Recording
from kernel.testing.storage.world import World
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

def tell(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

async def messages(world, agent, name):
    number = 0
    while True:
        new = world.intent(Op.MESSAGE, agent)
        key = IdempotencyKey(principal=name, key=str(number), request_hash=new.id)
        await world.storage.record(Recording(intents=(new,), key=key))
        tell("recorded", new.id, name, str(number))
        number += 1

async def ends(world, agent):
    while True:
        claims = await world.claim(limit=4)
        for intent in claims.intents:
            settled = await world.end(intent, result={"was": intent.id}, change=AgentChange(phase=Phase.RUNNING))
            assert settled.accepted
            tell("ended", intent.id, intent.agent_id, str(settled.agent.state_version))

async def main():
    storage = SqliteStorage(await opened(Options(path=sys.argv[1])))
    world = await World.built(storage)
    agents = [await world.new_agent() for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for number, agent in enumerate(agents):
            tasks.start_soon(messages, world, agent, f"caller-{number}")
        tasks.start_soon(ends, world, agents[0])

anyio.run(main)
"""


def acknowledged_until_killed(path: Path, lines: int) -> list[list[str]]:
    """What the process said before it was killed, after at least `lines` of it."""
    read, write = os.pipe()
    with subprocess.Popen([sys.executable, "-c", RECORDS, str(path)], stdout=write) as process:
        os.close(write)
        with os.fdopen(read, "rb") as said:
            heard = [said.readline() for _ in range(lines)]
            assert all(heard), "the process ended by itself"
            process.send_signal(signal.SIGKILL)
            heard += said.readlines()
        process.wait(60)
    return [line.decode().split() for line in heard if line.endswith(b"\n")]


@pytest.mark.parametrize("lines", [1, 40, 300])
async def test_nothing_that_was_acknowledged_is_lost(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "hub.db"
    said = acknowledged_until_killed(path, lines)
    storage = SqliteStorage(await opened(Options(path=str(path))))
    recorded = [IntentId(words[1]) for words in said if words[0] == "recorded"]
    assert len(await storage.find_intents(recorded)) == len(recorded)
    await _ends_are_whole(storage, [words for words in said if words[0] == "ended"])
    await _all_are_whole(storage)
    await _work_goes_on(storage)
    await storage.close()


async def _ends_are_whole(storage: SqliteStorage, ended: list[list[str]]) -> None:
    """The outcome, the agent's change and the history came in one commit."""
    for _, intent_id, agent_id, version in ended:
        [intent] = await storage.find_intents([IntentId(intent_id)])
        assert (intent.state, intent.result) == (State.DONE, {"was": intent_id})
        view = await storage.find_agent(agent_id)
        assert view is not None
        assert view.agent.state_version >= int(version)


async def _all_are_whole(storage: SqliteStorage) -> None:
    """Whatever was committed but not acknowledged is whole too: its history leads to its state."""
    everything = await storage.list_intents(IntentFilter(), Page(limit=100_000))
    for intent in everything:
        view = await storage.explain(intent.id)
        assert view is not None
        assert view.history[-1].to_state == intent.state
        assert [step.n for step in view.history] == list(range(1, len(view.history) + 1))
    numbers = [intent.seq for intent in everything]
    assert len(set(numbers)) == len(numbers)


async def _work_goes_on(storage: SqliteStorage) -> None:
    """The next hub has what was in hand pending again, and ends it."""
    world = World(storage)
    everything = await storage.list_intents(IntentFilter(), Page(limit=100_000))
    unended = {intent.id for intent in everything if not intent.state.ended}
    [broker] = await storage.list_brokers(Page())
    node = (await storage.list_nodes())[0]
    joined = await storage.join_node(type(node)(id=world.node, started_at=node.started_at, beat_at=0, version="2"))  # type: ignore[arg-type]
    assert {intent.state for intent in joined.intents} <= {State.PENDING}
    world.broker = broker
    await world.connect()
    while claimed := (await world.claim()).intents:
        for intent in claimed:
            assert intent.op is Op.MESSAGE
            assert (await world.end(intent)).accepted
            unended.remove(intent.id)
    assert unended == set()
