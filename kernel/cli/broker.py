"""`pointsman broker`: register brokers, run one, look at them, take them out of service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernel.cli import show
from kernel.cli.exits import Exit
from kernel.cli.options import Pair, asks_hub, json_option

if TYPE_CHECKING:
    from broker import BrokerSettings, Unusable
    from kernel.cli.client import Hub
    from kernel.cli.failure import CommandFailed

FOLDER = Path("var/broker")
folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    help="The broker's own folder: identity, inbox, agents.",
)
token_option = click.option(
    "--token",
    envvar="POINTSMAN_TOKEN",
    show_envvar=True,
    help="Of a user who may register brokers [default: the one in var/ready.json]",
)
endpoint_option = click.option(
    "--endpoint", metavar="URL", help="Where hubs reach what it listens on; kept by the hub when it is registered."
)
provide_option = click.option("--auto-provide", is_flag=True, help="It may run the agents of every project.")


def _url(_: object, __: object, given: tuple[str, ...]) -> tuple[str, ...]:
    for one in given:
        if not one.startswith(("http://", "https://")):
            raise click.BadParameter(f"a hub is named by its URL, such as http://127.0.0.1:8080, not by {one!r}.")
    return given


@click.group()
def command() -> None:
    """Brokers: programs that run agents on a machine. A BROKER is named by name, slug or id."""


# -- running one -----------------------------------------------------------------------------------------------


@command.command("run")
@click.option(
    "--hub",
    "hubs",
    multiple=True,
    callback=_url,
    metavar="URL",
    help="A hub to dial; may be repeated [default: as it was registered]",
)
@folder_option
@click.option("--name", help="Register under this name first, if it has no identity yet or the hub forgot it.")
@token_option
@provide_option
@click.option("--listen", metavar="HOST:PORT", help="Serve hubs over HTTP here, too: they call while no socket stands.")
@endpoint_option
@click.option("--no-dial", is_flag=True, help="Keep no socket: be called over HTTP alone.")
@click.option("--stop-agents", is_flag=True, help="Stop the agents when the broker is stopped; else they go on.")
@click.option("--pass-env", multiple=True, metavar="NAME", help="A variable of its own that agents get; repeatable.")
def run(
    hubs: tuple[str, ...],
    folder: Path,
    name: str | None,
    token: str | None,
    auto_provide: bool,
    listen: str | None,
    endpoint: str | None,
    no_dial: bool,
    stop_agents: bool,
    pass_env: tuple[str, ...],
) -> Exit:
    """Run the broker of a folder until Ctrl-C. Its agents outlive it, and it finds them again."""
    from broker import BrokerSettings
    from kernel.cli.log import log_to_stderr

    log_to_stderr("httpx2", "uvicorn")
    settings = BrokerSettings(
        dir=folder,
        hubs=hubs or (_hub_and_token(None, token)[:1] if name else ()),
        registration=_registration(name, hubs, token, auto_provide, endpoint) if name else None,
        dial=not no_dial,
        listen=listen,
        stop_agents_on_exit=stop_agents,
        version=_version(),
        pass_env=pass_env,
    )
    _run(settings)
    return Exit.DONE


def _run(settings: BrokerSettings) -> None:
    import anyio

    from broker import Unusable
    from broker.run import run_until_signalled
    from kernel.cli.failure import innermost

    fault: Unusable | None = None
    try:
        anyio.run(run_until_signalled, settings)
    except* Unusable as faults:
        first = innermost(faults)
        assert isinstance(first, Unusable)
        fault = first
    if fault:
        raise _failed(fault)


@command.command("register")
@click.option(
    "--hub",
    "hubs",
    multiple=True,
    callback=_url,
    metavar="URL",
    help="A hub; repeated: all that it may dial, the first registers it [default: POINTSMAN_HUB, else var/ready.json]",
)
@token_option
@click.option("--name", required=True, help="What people call it; a broker of this name gets a new secret.")
@provide_option
@click.option("--label", "labels", type=Pair(), multiple=True, help="A label; may be repeated.")
@endpoint_option
@folder_option
def register(
    hubs: tuple[str, ...],
    token: str | None,
    name: str,
    auto_provide: bool,
    labels: tuple[tuple[str, str], ...],
    endpoint: str | None,
    folder: Path,
) -> Exit:
    """Register a broker, join it, and keep its identity in its folder."""
    import anyio

    from broker import BrokerSettings, Registration, Unusable
    from broker.identity import HubAway, register
    from kernel.cli.failure import Unreachable

    url, found = _hub_and_token(hubs[0] if hubs else None, token)
    registration = Registration(
        token=found, name=name, auto_provide=auto_provide, labels=dict(labels), endpoint=endpoint
    )
    settings = BrokerSettings(dir=folder, hubs=hubs or (url,), version=_version())
    try:
        identity = anyio.run(register, settings, registration)
    except HubAway as away:
        raise Unreachable(str(away), fix="is the hub running? Its /readyz says what it waits for") from None
    except Unusable as fault:
        raise _failed(fault) from None
    show.say(f"broker {name} ({identity.broker_id}) is registered; its secret is in {folder / 'identity.json'}")
    show.note(f"run it with: pointsman broker run --dir {folder}")
    return Exit.DONE


def _registration(name: str, hubs: tuple[str, ...], token: str | None, auto_provide: bool, endpoint: str | None) -> Any:
    from broker import Registration

    _, found = _hub_and_token(hubs[0] if hubs else None, token)
    return Registration(token=found, name=name, auto_provide=auto_provide, endpoint=endpoint)


def _hub_and_token(hub: str | None, token: str | None) -> tuple[str, str]:
    """The hub that was named, or the one of this working directory; its token goes to no other hub."""
    import os

    from kernel.cli.connection import find_hub
    from kernel.cli.failure import CommandFailed

    environment = {"POINTSMAN_HUB": hub} if hub else dict(os.environ)
    if token:
        environment["POINTSMAN_TOKEN"] = token
    connection = find_hub(environment, Path.cwd())
    if connection.token is None:
        fix = "give --token, or set POINTSMAN_TOKEN; a hub with auth.dev prints its token when it starts"
        raise CommandFailed("no token to register the broker with", Exit.USAGE, fix=fix)
    return connection.url, connection.token


def _failed(fault: Unusable) -> CommandFailed:
    from kernel.cli.exits import exit_of_answer
    from kernel.cli.failure import CommandFailed

    return CommandFailed(
        str(fault), Exit.MISCONFIGURED if fault.status is None else exit_of_answer(fault.status, fault.code)
    )


def _version() -> str:
    from importlib.metadata import version

    return version("pointsman")


# -- looking ---------------------------------------------------------------------------------------------------


@command.command("list")
@json_option
@asks_hub
async def list_brokers(hub: Hub, as_json: bool) -> None:
    """Show brokers, and who is connected."""
    listed = await hub.pages("/runtime-brokers", "brokers")
    if as_json:
        show.document(listed)
        return
    rows = [
        (row["name"], _status(row), row.get("version"), show.age(row.get("lastHeartbeat")), row["id"])
        for row in listed["brokers"]
    ]
    show.table(("NAME", "STATUS", "VERSION", "HEARD", "ID"), rows)
    if not rows:
        show.note("no brokers yet: `pointsman broker register --name NAME` makes one; `make run` brings its own")


@command.command("show")
@click.argument("broker")
@json_option
@asks_hub
async def show_broker(hub: Hub, broker: str, as_json: bool) -> None:
    """Show one broker."""
    from kernel.cli.names import broker_named

    row = await broker_named(hub, broker)
    if as_json:
        show.document(row)
        return
    pairs: list[tuple[str, Any]] = [
        ("id", row["id"]),
        ("status", row.get("status")),
        ("paused", row.get("paused") or None),
        ("conflict", "two processes use its identity by turns" if row.get("conflict") else None),
        ("version", row.get("version")),
        ("capabilities", row.get("capabilities")),
        ("endpoint", row.get("endpoint")),
        ("labels", show.labels(row.get("labels"))),
        ("hub", row.get("connectedHubId")),
        ("connected", show.clock_time(row.get("connectedAt"))),
        ("last heartbeat", show.clock_time(row.get("lastHeartbeat"))),
        ("created", show.clock_time(row.get("created"))),
    ]
    show.fields(f"broker {row['name']}", pairs)


def _status(row: dict[str, Any]) -> str:
    status = str(row.get("status"))
    more = [word for word in ("paused", "conflict") if row.get(word)]
    if status == "offline" and row.get("endpoint"):
        more.append("has an endpoint")
    return f"{status} ({', '.join(more)})" if more else status


# -- where hubs reach it ---------------------------------------------------------------------------------------


@command.command("endpoint")
@click.argument("broker")
@click.argument("url", required=False)
@click.option("--none", "nowhere", is_flag=True, help="Take its endpoint away.")
@json_option
@asks_hub
async def endpoint(hub: Hub, broker: str, url: str | None, nowhere: bool, as_json: bool) -> None:
    """Say at which URL hubs call a broker while it has no socket. Its owner and administrators may."""
    if (url is None) != nowhere:
        raise click.UsageError("give either a URL or --none")
    await _change(
        hub, broker, "PATCH", "has no endpoint" if nowhere else f"is called at {url}", as_json, endpoint=url or ""
    )


# -- in and out of service ---------------------------------------------------------------------------------------


@command.command("pause")
@click.argument("broker")
@json_option
@asks_hub
async def pause(hub: Hub, broker: str, as_json: bool) -> None:
    """Send a broker nothing new. Messages wait; what is under way goes on."""
    await _change(hub, broker, "POST", "paused", as_json, "pause")


@command.command("resume")
@click.argument("broker")
@json_option
@asks_hub
async def resume(hub: Hub, broker: str, as_json: bool) -> None:
    """Send a paused broker what waits for it, and what is new."""
    await _change(hub, broker, "POST", "resumed", as_json, "resume")


@command.command("delete")
@click.argument("broker")
@json_option
@asks_hub
async def delete(hub: Hub, broker: str, as_json: bool) -> None:
    """Delete a broker and its secret, once its agents are deleted."""
    await _change(hub, broker, "DELETE", "deleted", as_json)


async def _change(hub: Hub, name: str, method: str, past: str, as_json: bool, *step: str, **fields: str) -> None:
    from kernel.cli.client import Change
    from kernel.cli.names import broker_named, path_of

    row = await broker_named(hub, name)
    body = json.dumps(fields).encode() if fields else None
    answer = await hub.change(Change(method=method, path=path_of("runtime-brokers", row["id"], *step), body=body))
    if as_json:
        show.document(answer.document or row)
    else:
        show.say(f"broker {row['name']} {past}")
