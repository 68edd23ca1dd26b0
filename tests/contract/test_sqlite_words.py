"""What a caller reads when the database refuses a name: words, and nothing of tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernel.broker import BrokerId
from kernel.errors import AlreadyExists
from kernel.project import Project
from kernel.storage import BrokerEdit
from kernel.testing.storage.world import World, uuid
from plugins.storage.sqlite.opening import Options, opened
from plugins.storage.sqlite.storage import SqliteStorage

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    storage = SqliteStorage(await opened(Options(path=str(tmp_path / "hub.db"))))
    yield await World.built(storage)
    await storage.close()


async def test_an_agents_name_is_taken_in_its_project(world: World) -> None:
    agent = await world.new_agent()
    with pytest.raises(AlreadyExists) as taken:
        await world.new_agent(slug=agent.slug)
    assert taken.value.message == "an agent of this name exists in this project already: choose another"


async def test_a_projects_name_is_taken(world: World) -> None:
    with pytest.raises(AlreadyExists) as taken:
        await world.storage.create_project(Project(id=uuid(), name="same", slug=world.project.slug), None)
    assert taken.value.message == "a project of this name exists already: choose another"


async def test_a_brokers_name_is_taken(world: World) -> None:
    other = await world.new_broker()
    with pytest.raises(AlreadyExists) as taken:
        await world.storage.edit_broker(BrokerEdit(broker_id=BrokerId(other.id), name=world.broker.name))
    assert taken.value.message == "a broker of this name exists already: choose another"
    with pytest.raises(AlreadyExists) as alike:
        await world.new_broker(slug=world.broker.slug)
    assert "a broker exists already whose name differs in" in alike.value.message


async def test_what_has_no_words_of_its_own_shows_no_table(world: World) -> None:
    with pytest.raises(AlreadyExists) as taken:
        await world.storage.create_project(Project(id=world.project.id, name="other", slug="other"), None)
    assert taken.value.message == "something with this name or id exists already: choose another"
