"""`pointsman serve`: run a hub until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernel.cli.failure import innermost
from kernel.cli.log import log_to_stderr
from kernel.errors import Misconfigured, PointsmanError

if TYPE_CHECKING:
    from kernel.hub import Companion
    from kernel.ready import Ready


@click.command("serve")
@click.option(
    "--config", type=click.Path(path_type=Path), help="YAML file [default: $POINTSMAN_CONFIG, conf/local.yaml]"
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override one setting; may be repeated.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes any free one.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Written when the hub is ready, removed at stop.")
@click.option("--with-broker", is_flag=True, help="Also run a broker, named `built-in`, in this process.")
@click.option("--safe-mode", is_flag=True, help="Load only plugins that ship with pointsman.")
def command(
    config: Path | None,
    assignments: tuple[str, ...],
    host: str | None,
    port: int | None,
    ready_file: Path | None,
    with_broker: bool,
    safe_mode: bool,
) -> None:
    """Run a hub until Ctrl-C."""
    import anyio

    from kernel import hub
    from kernel.loader import checked_settings

    log_to_stderr("alembic", "uvicorn", "websockets", "httpx2")
    named: list[str] = list(assignments)
    if host is not None:
        named.append(f"server.host={host}")
    if port is not None:
        named.append(f"server.port={port}")
    settings = checked_settings(config, named, safe_mode=safe_mode)
    companion = _built_in_broker() if with_broker else None
    try:
        anyio.run(
            _run, hub.run, settings, safe_mode, ready_file, companion, backend="asyncio", backend_options=_fast_loop()
        )
    except BaseExceptionGroup as group:
        # Ours is the reason, whatever else broke because of it.
        raise innermost(group.subgroup(PointsmanError) or group) from group


async def _run(run: Any, settings: Any, safe_mode: bool, ready_file: Path | None, companion: Companion | None) -> None:
    await run(settings, safe_mode=safe_mode, ready_path=ready_file, told=_tell, companion=companion)


def _tell(ready: Ready) -> None:
    print(f"pointsman listens on {ready.url}", flush=True)
    if ready.token:
        print(f"token: {ready.token}", flush=True)


def _fast_loop() -> dict[str, Any]:
    """uvloop where it is there: twice the requests for the same processor time."""
    try:
        import uvloop
    except ImportError:
        return {}
    return {"loop_factory": uvloop.new_event_loop}


def _built_in_broker() -> Companion:
    """A broker in the hub's process, over a real socket all the same; it registers and joins over HTTP once."""

    async def companion(ready: Ready) -> None:
        from importlib.metadata import version

        from broker.run import run_broker
        from broker.settings import BrokerSettings, Registration, Unusable

        if ready.token is None:
            raise Misconfigured("--with-broker signs in with the token of auth.dev: list it under `plugins:`")
        try:
            await run_broker(
                BrokerSettings(
                    dir=Path("var/broker"),
                    hubs=(ready.url,),
                    registration=Registration(token=ready.token, name="built-in", auto_provide=True),
                    stop_agents_on_exit=True,
                    version=version("pointsman"),
                )
            )
        except Unusable as fault:
            raise Misconfigured(f"the built-in broker cannot run: {fault}") from fault

    return companion
