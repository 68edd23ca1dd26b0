"""auth.dev: one fixed user, one token, loopback only."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest

from kernel import Host, Misconfigured, Principal, Resource, User
from kernel.config import Settings
from plugins.auth.dev import DevConfig, Plugin

pytestmark = pytest.mark.anyio
DEV = "be67fbc9-c869-5d43-b15d-c28ca3e8d355"


class Users:
    """The one part of a storage that auth.dev needs."""

    def __init__(self) -> None:
        self.users: list[User] = []

    async def ensure_user(self, user: User) -> None:
        self.users.append(user)


class Hub:
    def __init__(self, host: str = "127.0.0.1") -> None:
        server = msgspec.structs.replace(Settings().server, host=host)
        self.settings = msgspec.structs.replace(Settings(), server=server)
        self.storage = Users()


class Asked:
    """A request with these headers."""

    def __init__(self, authorization: str | None) -> None:
        self.headers = {} if authorization is None else {"authorization": authorization}


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POINTSMAN_DEV_TOKEN", raising=False)


async def started(file: Path, hub: Hub | None = None) -> Plugin:
    plugin = Plugin(DevConfig(token_file=str(file)))
    await plugin.on_start(cast("Host", hub or Hub()))
    return plugin


async def known(plugin: Plugin, authorization: str | None) -> Principal | None:
    return plugin.authenticate(cast("Any", Asked(authorization)))


async def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "var" / "dev-token"
    first = (await started(file)).offer_token()
    assert first == file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert (await started(file)).offer_token() == first
    assert [one.name for one in file.parent.iterdir()] == ["dev-token"]


async def test_starting_together_they_agree_on_one_token(tmp_path: Path) -> None:
    file = tmp_path / "dev-token"
    tokens: list[str | None] = []

    async def start() -> None:
        tokens.append((await started(file)).offer_token())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(start)
    assert len(set(tokens)) == 1


async def test_an_empty_file_left_by_a_crash_is_filled(tmp_path: Path) -> None:
    file = tmp_path / "dev-token"
    file.touch()
    assert (await started(file)).offer_token()


async def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_DEV_TOKEN", "chosen")
    plugin = await started(tmp_path / "dev-token")
    assert plugin.offer_token() == "chosen"
    assert not (tmp_path / "dev-token").exists()


async def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match="POINTSMAN_DEV_TOKEN"):
        await started(tmp_path / "file" / "dev-token")


async def test_whoever_has_the_token_is_the_fixed_admin(tmp_path: Path) -> None:
    plugin = await started(tmp_path / "dev-token")
    found = await known(plugin, f"Bearer {plugin.offer_token()}")
    assert found == Principal(kind="user", id=DEV, name="dev@localhost", role="admin")
    assert await known(plugin, f"bearer  {plugin.offer_token()} ") == found


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic {}", "{}", "Bearer {}x", "Bearer ü"]
)
async def test_nobody_else_is_known(tmp_path: Path, header: str | None) -> None:
    plugin = await started(tmp_path / "dev-token")
    told = header.format(plugin.offer_token()) if header is not None else None
    assert await known(plugin, told) is None


async def test_before_the_start_nothing_is_a_token(tmp_path: Path) -> None:
    assert await known(Plugin(DevConfig(token_file=str(tmp_path / "x"))), "Bearer ") is None


async def test_the_user_has_a_row(tmp_path: Path) -> None:
    hub = Hub()
    await started(tmp_path / "dev-token", hub)
    assert [(user.id, user.email, user.role) for user in hub.storage.users] == [(DEV, "dev@localhost", "admin")]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
async def test_loopback_is_good(tmp_path: Path, host: str) -> None:
    assert (await started(tmp_path / "dev-token", Hub(host))).offer_token()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "hub.example", ""])
async def test_anything_else_stops_the_start_with_the_line_to_change(tmp_path: Path, host: str) -> None:
    with pytest.raises(Misconfigured) as told:
        await started(tmp_path / "dev-token", Hub(host))
    assert f"server.host: {host}" in told.value.message
    assert "host: 127.0.0.1" in told.value.message
    assert not (tmp_path / "dev-token").exists()


async def test_it_decides_for_its_own_user_only(tmp_path: Path) -> None:
    plugin = await started(tmp_path / "dev-token")
    mine = Principal(kind="user", id=DEV, name="dev@localhost", role="admin")
    decision = plugin.authorize(mine, "agent.delete", Resource(kind="agent"))
    assert decision is not None
    assert decision.allowed
    for other in (Principal(kind="user", id="x", name="x", role="admin"), Principal(kind="broker", id=DEV, name="b")):
        assert plugin.authorize(other, "agent.delete", Resource(kind="agent")) is None
