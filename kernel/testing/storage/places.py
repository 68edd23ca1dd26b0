"""Projects, brokers with their credentials, people, and SQL for plugins' own tables."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import sqlalchemy as sa

from kernel.agent import AgentChange
from kernel.broker import Broker, BrokerId
from kernel.errors import (
    AlreadyExists,
    ExpiredJoinToken,
    Forbidden,
    IdempotencyConflict,
    InvalidJoinToken,
    InvalidState,
    NotFound,
)
from kernel.intent import Op
from kernel.project import Project
from kernel.storage import BrokerEdit, BrokerJoin, IdempotencyKey, ProjectEdit, User
from kernel.testing.storage.agents import MALFORMED
from kernel.testing.storage.contract import StorageContract
from kernel.testing.storage.world import World, uuid

KEY = IdempotencyKey(principal="user:test", key="key", request_hash="hash")


class ProjectContract(StorageContract):
    def _project(self, slug: str, **more: Any) -> Project:
        return Project(id=uuid(), name=f"Project {slug}", slug=slug, **more)

    async def test_everything_of_a_project_comes_back(self, world: World) -> None:
        asked = self._project("one", git_remote="git@x", labels={"ü": "1"}, annotations={"a": "b"}, created_by="user:x")
        made, repeated = await world.storage.create_project(asked, None)
        assert repeated is None
        assert (made.name, made.labels, made.annotations) == (asked.name, asked.labels, asked.annotations)
        for ref in (made.id, made.id.upper(), made.slug):
            assert await world.storage.find_project(ref) == made

    @pytest.mark.parametrize("ref", MALFORMED)
    async def test_what_is_malformed_is_not_found(self, world: World, ref: str) -> None:
        assert await world.storage.find_project(ref) is None
        assert await world.storage.list_providers(ref) == []
        with pytest.raises(NotFound):
            await world.storage.delete_project(ref)
        with pytest.raises(NotFound):
            await world.storage.edit_project(ProjectEdit(project_id=ref, name="new"))

    async def test_of_a_project_only_what_is_named_is_edited(self, world: World) -> None:
        asked = self._project("one", git_remote="git@x", labels={"a": "b"}, default_runtime_broker_id=world.broker.id)
        made, _ = await world.storage.create_project(asked, None)
        edited = await world.storage.edit_project(ProjectEdit(project_id=made.id, name="Neü", labels={}))
        assert (edited.name, edited.slug, edited.labels, edited.git_remote) == ("Neü", "one", {}, "git@x")
        assert edited.default_runtime_broker_id == world.broker.id
        assert edited.updated >= made.updated
        more = ProjectEdit(
            project_id=made.id.upper(),
            git_remote="git@y",
            annotations={"c": "d"},
            visibility="public",
            default_runtime_broker_id=uuid(),
        )
        again = await world.storage.edit_project(more)
        assert (again.git_remote, again.annotations, again.visibility) == ("git@y", {"c": "d"}, "public")
        assert again.default_runtime_broker_id == more.default_runtime_broker_id
        assert again == await world.storage.find_project(made.id)

    async def test_a_slug_that_is_taken_is_refused(self, world: World) -> None:
        await world.storage.create_project(self._project("one"), None)
        with pytest.raises(AlreadyExists):
            await world.storage.create_project(self._project("one"), KEY)

    async def test_a_key_makes_one_project(self, world: World) -> None:
        first, _ = await world.storage.create_project(self._project("one"), KEY)
        again, repeated = await world.storage.create_project(self._project("one"), KEY)
        assert again == first
        assert repeated is not None
        assert (repeated.status, repeated.intent_id) == (201, None)
        other = IdempotencyKey(principal=KEY.principal, key=KEY.key, request_hash="other")
        with pytest.raises(IdempotencyConflict):
            await world.storage.create_project(self._project("two"), other)

    async def test_calls_with_one_key_at_once_make_one_project(self, world: World) -> None:
        made: list[Project] = []

        async def make(number: int) -> None:
            made.append((await world.storage.create_project(self._project(f"p{number}"), KEY))[0])

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(make, number)
        assert len({one.id for one in made}) == 1

    async def test_a_project_with_live_agents_is_not_deleted(self, world: World) -> None:
        agent = await world.new_agent()
        with pytest.raises(InvalidState):
            await world.storage.delete_project(world.project.id)
        await world.end(await world.claimed(Op.DELETE, agent), change=AgentChange(removal="soft"))
        await world.storage.delete_project(world.project.id)
        assert await world.storage.find_project(world.project.id) is None
        with pytest.raises(NotFound):
            await world.storage.delete_project(world.project.id)

    async def test_providers_are_those_linked_and_those_for_all(self, world: World) -> None:
        assert await world.storage.list_providers(world.project.id) == []
        everywhere = await world.new_broker(auto_provide=True)
        await world.creation()
        found = {broker.id for broker in await world.storage.list_providers(world.project.id)}
        assert found == {world.broker.id, everywhere.id}
        other = await world.new_project()
        assert [broker.id for broker in await world.storage.list_providers(other.id)] == [everywhere.id]


class BrokerContract(StorageContract):
    async def _joined(self, world: World, **more: Any) -> tuple[Broker, BrokerJoin]:
        asked = world.registration(**more)
        registered = await world.storage.register_broker(asked)
        join = BrokerJoin(
            broker_id=registered.broker.id, token_hash=asked.token_hash, key_id=uuid(), sealed=b"\x00\xff", version="1"
        )
        return await world.storage.join_broker(join), join

    async def test_a_broker_is_found_by_id_slug_and_name(self, world: World) -> None:
        broker = await world.new_broker(name="Broker Ü", slug="broker-u", labels={"gpu": "2"})
        for ref in (broker.id, broker.id.upper(), broker.slug, broker.name):
            assert await world.storage.find_broker(ref) == broker
        assert broker.labels == {"gpu": "2"}

    @pytest.mark.parametrize("ref", MALFORMED)
    async def test_what_is_malformed_is_not_found(self, world: World, ref: str) -> None:
        assert await world.storage.find_broker(ref) is None
        assert await world.storage.broker_secrets(BrokerId(ref)) == []
        with pytest.raises(NotFound):
            await world.storage.edit_broker(BrokerEdit(broker_id=BrokerId(ref), paused=True))
        with pytest.raises(NotFound):
            await world.storage.delete_broker(BrokerId(ref))
        join = BrokerJoin(broker_id=BrokerId(ref), token_hash=uuid(), key_id="k", sealed=b"s")
        with pytest.raises(InvalidJoinToken):
            await world.storage.join_broker(join)

    async def test_a_registration_is_repeated_by_its_key(self, world: World) -> None:
        key = IdempotencyKey(principal="user:test", key="k", request_hash="h")
        first = await world.storage.register_broker(
            world.registration(name="one", slug="one", key=key, sealed_token=b"\x00first")
        )
        later = world.registration(name="one", slug="one", key=key, sealed_token=b"later")
        again = await world.storage.register_broker(later)
        assert first.sealed_token is None
        assert (again.broker, again.expires_at, again.reregistered, again.sealed_token) == (
            first.broker, first.expires_at, False, b"\x00first",
        )  # fmt: skip
        with pytest.raises(InvalidJoinToken):
            await world.storage.join_broker(
                BrokerJoin(broker_id=first.broker.id, token_hash=later.token_hash, key_id=uuid(), sealed=b"s")
            )
        other = IdempotencyKey(principal="user:test", key="k", request_hash="other")
        with pytest.raises(IdempotencyConflict):
            await world.storage.register_broker(world.registration(key=other))
        await world.storage.delete_broker(first.broker.id)
        with pytest.raises(NotFound):
            await world.storage.register_broker(later)

    async def test_its_owner_registers_a_broker_again(self, world: World) -> None:
        first = await world.storage.register_broker(world.registration(name="one", slug="one"))
        by_name = await world.storage.register_broker(world.registration(name="one", slug="one"))
        assert (by_name.broker.id, by_name.reregistered) == (first.broker.id, True)
        asked = world.registration(broker_id=first.broker.id, name="two", slug="two", labels={"a": "b"})
        by_id = await world.storage.register_broker(asked)
        assert (by_id.broker.id, by_id.broker.name, by_id.broker.labels) == (first.broker.id, "two", {"a": "b"})

    async def test_another_users_broker_is_not_taken_over(self, world: World) -> None:
        first = await world.new_broker(name="one", slug="one")
        for more in ({"name": "one"}, {"broker_id": first.id}):
            with pytest.raises(Forbidden):
                await world.storage.register_broker(world.registration(created_by="user:other", **more))
        by_admin = world.registration(created_by="user:admin", by_admin=True, name="one", slug="one")
        assert (await world.storage.register_broker(by_admin)).broker.created_by == "user:test"

    async def test_a_join_token_is_good_once(self, world: World) -> None:
        broker, join = await self._joined(world)
        assert broker.version == "1"
        [secret] = await world.storage.broker_secrets(broker.id)
        assert (secret.key_id, secret.sealed) == (join.key_id, b"\x00\xff")
        with pytest.raises(InvalidJoinToken):
            await world.storage.join_broker(join)

    async def test_a_join_is_the_end_of_a_conflict(self, world: World) -> None:
        """Whoever used a copy of the former secret is shut out."""
        asked = world.registration()
        broker_id = (await world.storage.register_broker(asked)).broker.id
        assert (await world.storage.edit_broker(BrokerEdit(broker_id=broker_id, conflict=True))).conflict
        join = BrokerJoin(broker_id=broker_id, token_hash=asked.token_hash, key_id=uuid(), sealed=b"s")
        assert not (await world.storage.join_broker(join)).conflict

    async def test_of_joins_with_one_token_at_once_one_succeeds(self, world: World) -> None:
        asked = world.registration()
        broker = (await world.storage.register_broker(asked)).broker
        outcomes = []

        async def join() -> None:
            try:
                key = BrokerJoin(broker_id=broker.id, token_hash=asked.token_hash, key_id=uuid(), sealed=b"s")
                await world.storage.join_broker(key)
                outcomes.append(key.key_id)
            except InvalidJoinToken:
                pass

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(join)
        assert [secret.key_id for secret in await world.storage.broker_secrets(broker.id)] == outcomes

    async def test_a_join_token_expires(self, world: World) -> None:
        asked = world.registration(token_lives=0.01)
        broker = (await world.storage.register_broker(asked)).broker
        await anyio.sleep(0.03)
        join = BrokerJoin(broker_id=broker.id, token_hash=asked.token_hash, key_id="k", sealed=b"s")
        with pytest.raises(ExpiredJoinToken):
            await world.storage.join_broker(join)
        assert await world.storage.broker_secrets(broker.id) == []

    async def test_a_join_token_is_for_its_broker_only(self, world: World) -> None:
        asked = world.registration()
        await world.storage.register_broker(asked)
        join = BrokerJoin(broker_id=world.broker.id, token_hash=asked.token_hash, key_id="k", sealed=b"s")
        with pytest.raises(InvalidJoinToken):
            await world.storage.join_broker(join)

    async def test_a_newer_registration_voids_the_older_token(self, world: World) -> None:
        asked = world.registration()
        await world.storage.register_broker(asked)
        await world.storage.register_broker(world.registration(broker_id=asked.broker_id, name=asked.name))
        join = BrokerJoin(broker_id=asked.broker_id, token_hash=asked.token_hash, key_id="k", sealed=b"s")
        with pytest.raises(InvalidJoinToken):
            await world.storage.join_broker(join)

    async def test_joining_again_revokes_the_secret_before(self, world: World) -> None:
        broker, first = await self._joined(world)
        _, second = await self._joined(world, broker_id=broker.id, name=broker.name, slug=broker.slug)
        assert [secret.key_id for secret in await world.storage.broker_secrets(broker.id)] == [second.key_id]
        assert first.key_id != second.key_id

    async def test_an_edit_changes_what_it_names(self, world: World) -> None:
        broker = await world.new_broker(labels={"a": "b"})
        paused = await world.storage.edit_broker(BrokerEdit(broker_id=broker.id, paused=True))
        assert (paused.paused, paused.conflict, paused.labels, paused.name) == (True, False, {"a": "b"}, broker.name)
        edit = BrokerEdit(broker_id=broker.id, conflict=True, name="new", labels={}, auto_provide=True)
        edited = await world.storage.edit_broker(edit)
        assert (edited.paused, edited.conflict, edited.labels, edited.name) == (True, True, {}, "new")
        assert edited.last_heartbeat is None
        assert (await world.storage.edit_broker(BrokerEdit(broker_id=broker.id, paused=False))).auto_provide

    async def test_a_name_that_is_taken_is_refused(self, world: World) -> None:
        await world.new_broker(name="one", slug="one")
        other = await world.new_broker()
        with pytest.raises(AlreadyExists):
            await world.storage.edit_broker(BrokerEdit(broker_id=other.id, name="one"))
        with pytest.raises(AlreadyExists):
            await world.new_broker(name="another", slug="one")

    async def test_a_broker_with_live_agents_is_not_deleted(self, world: World) -> None:
        await world.new_agent()
        with pytest.raises(InvalidState):
            await world.storage.delete_broker(world.broker.id)
        assert (await world.read_broker()).online

    async def test_a_deleted_broker_is_gone_and_its_secrets_are_revoked(self, world: World) -> None:
        broker, _ = await self._joined(world)
        count = await world.storage.count_brokers()
        await world.storage.delete_broker(broker.id)
        for ref in (broker.id, broker.slug, broker.name):
            assert await world.storage.find_broker(ref) is None
        assert await world.storage.broker_secrets(broker.id) == []
        assert await world.storage.count_brokers() == count - 1
        with pytest.raises(NotFound):
            await world.storage.delete_broker(broker.id)

    async def test_a_deleted_brokers_name_and_id_may_come_back(self, world: World) -> None:
        broker, _ = await self._joined(world, name="one", slug="one")
        await world.storage.delete_broker(broker.id)
        again = await world.storage.register_broker(world.registration(broker_id=broker.id, name="one", slug="one"))
        assert again.broker.deleted_at is None
        assert await world.storage.broker_secrets(broker.id) == []

    async def test_a_nonce_is_good_once_for_each_broker(self, world: World) -> None:
        other = await world.new_broker()
        assert await world.storage.use_nonce(world.broker.id, "n")
        assert not await world.storage.use_nonce(world.broker.id, "n")
        assert await world.storage.use_nonce(other.id, "n")

    async def test_of_uses_of_one_nonce_at_once_one_counts(self, world: World) -> None:
        outcomes = []

        async def use() -> None:
            outcomes.append(await world.storage.use_nonce(world.broker.id, "same"))

        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(use)
        assert sum(outcomes) == 1


class PlatformContract(StorageContract):
    """What a backend tells of itself, people, and SQL."""

    async def test_a_backend_answers_and_names_its_schema(self, world: World) -> None:
        await world.storage.ping()
        assert world.storage.name
        assert await world.storage.schema_version()
        assert isinstance(world.storage.can_signal, bool)

    async def test_statements_that_write_are_counted_and_others_are_not(self, world: World) -> None:
        before = await world.storage.statement_count()
        await world.storage.find_broker(world.broker.id)
        await world.claim()
        await world.storage.ping()
        assert await world.storage.statement_count() == before
        await world.storage.beat(world.node, draining=False)
        assert await world.storage.statement_count() == before + 1

    async def test_a_user_is_ensured_however_often(self, world: World) -> None:
        user = User(id=uuid(), email=" Dev@Example.COM ", display_name="Dev", role="admin")
        await world.storage.ensure_user(user)
        await world.storage.ensure_user(User(id=user.id, email="dev@example.com", display_name="New", role="member"))
        rows = await world.storage.sql.run(sa.text("SELECT email, display_name, role FROM users"))
        assert [tuple(row) for row in rows] == [("dev@example.com", "New", "member")]
        with pytest.raises(AlreadyExists):
            await world.storage.ensure_user(User(id=uuid(), email="DEV@example.com", display_name="x", role="viewer"))

    async def test_sql_runs_a_statement_with_its_parameters(self, world: World) -> None:
        sql = world.storage.sql
        await sql.run(sa.text("CREATE TABLE plugin_things (id INTEGER PRIMARY KEY, word TEXT)"))
        assert await sql.run(sa.text("INSERT INTO plugin_things VALUES (:id, :word)"), {"id": 1, "word": "ü"}) == []
        assert await sql.run(sa.text("SELECT word FROM plugin_things")) == [("ü",)]

    async def test_an_sql_transaction_is_all_or_nothing(self, world: World) -> None:
        sql = world.storage.sql
        await sql.run(sa.text("CREATE TABLE plugin_things (id INTEGER PRIMARY KEY)"))

        def fails(connection: sa.Connection) -> None:
            connection.execute(sa.text("INSERT INTO plugin_things VALUES (1)"))
            raise LookupError("no")

        def works(connection: sa.Connection) -> int:
            connection.execute(sa.text("INSERT INTO plugin_things VALUES (2)"))
            return int(connection.execute(sa.text("SELECT count(*) FROM plugin_things")).scalar_one())

        with pytest.raises(LookupError):
            await sql.transaction(fails)
        assert await sql.transaction(works) == 1

    async def test_sql_errors_are_the_kernels(self, world: World) -> None:
        sql = world.storage.sql
        await sql.run(sa.text("CREATE TABLE plugin_things (id INTEGER PRIMARY KEY)"))
        await sql.run(sa.text("INSERT INTO plugin_things VALUES (1)"))
        with pytest.raises(AlreadyExists):
            await sql.run(sa.text("INSERT INTO plugin_things VALUES (1)"))
