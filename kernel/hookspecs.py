"""Every hook, in the order in which a request meets them.

A verb is asked: the first answer wins, None abstains. `on_…` is told after the fact, and no answer is read. The order
among plugins is the order of the YAML file. An implementation may take fewer arguments than stand here, and be a plain
function where an `async def` stands and there is nothing to wait for (not around_dispatch).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy

from kernel.environment import Environment
from kernel.errors import Misconfigured, PointsmanError, Refused, Unavailable
from kernel.route import PlacementRequest, RouteAdvice, RouteRequest
from kernel.session import Decision, Principal, Request, Resource

if TYPE_CHECKING:
    from kernel.agent import Agent
    from kernel.broker import Broker
    from kernel.config import Settings
    from kernel.finding import Finding
    from kernel.host import Host
    from kernel.intent import Intent
    from kernel.node import NodeId
    from kernel.storage import SchemaState, Storage
    from kernel.transition import Transition

PROJECT = "pointsman"
API = 1
"""The version that a plugin names as `api`. New arguments are only ever appended."""

F = TypeVar("F", bound=Callable[..., Any])
hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)


class Kind(StrEnum):
    FIRST = "first"
    """Asked one after the other until one answers."""
    COLLECT = "collect"
    """All are asked, all answers count."""
    AROUND = "around"
    """Each wraps the next; the innermost is the thing itself."""
    BROADCAST = "broadcast"
    """All are told; nobody waits for them."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How a hook is called."""

    name: str
    kind: Kind
    is_async: bool
    arguments: tuple[str, ...]
    needed: bool
    """The work cannot go on without an answer: a fault fails it, and no plugin is switched off for it. Elsewhere a
    fault is counted and skipped. Without this a stranger whose requests make an auth plugin fail could switch it off,
    and agents would start without the secrets of a plugin that was switched off."""
    answer: type | None
    """What an answer has to be an instance of; anything else is a fault."""
    passes: tuple[type[PointsmanError], ...]
    """Errors that are a plugin's rightful answer: they reach the asker and are no faults."""
    deadline: float | None
    """Seconds for one call; None: `breaker.deadline`, or for a synchronous hook `breaker.slow`."""


RULES: dict[str, Rule] = {}
"""By name, in the order of this file."""


def _hook(
    kind: Kind,
    *,
    needed: bool = False,
    answer: type | None = None,
    passes: tuple[type[PointsmanError], ...] = (),
    deadline: float | None = None,
) -> Callable[[F], F]:
    def mark(function: F) -> F:
        rule = Rule(
            name=function.__name__,
            kind=kind,
            is_async=inspect.iscoroutinefunction(function),
            arguments=tuple(inspect.signature(function).parameters),
            needed=needed,
            answer=answer,
            passes=passes,
            deadline=deadline,
        )
        RULES[rule.name] = rule
        return _hookspec(function)

    return mark


# -- once, at start ------------------------------------------------------------------------------------------


@_hook(Kind.FIRST, needed=True, passes=(Misconfigured, Unavailable), deadline=120.0)
async def open_storage(config: Settings, node_id: NodeId) -> Storage:  # type: ignore[empty-body]
    """Open and migrate the one backend for this node. Exactly one plugin implements this.

    Raises:
        Misconfigured: it cannot be used as it is configured.
    """


@_hook(Kind.FIRST, needed=True, passes=(Misconfigured, Unavailable), deadline=60.0)
async def check_storage(config: Settings) -> SchemaState | None:
    """Which schema the backend's database has; nothing is changed, and a hub may be using it. `pointsman db` asks.

    Raises:
        Misconfigured: it cannot be read.
    """


@_hook(Kind.COLLECT, answer=list, deadline=60.0)
async def diagnose(config: Settings) -> list[Finding]:  # type: ignore[empty-body]
    """What `pointsman doctor` should tell before a hub is started like this; nothing is changed, and hubs may be
    running. One finding for each thing that was looked at, the good ones too."""


@_hook(Kind.COLLECT, needed=True, passes=(Misconfigured,), deadline=60.0)
async def on_start(hub: Host) -> None:
    """The storage is open and the address is known; nothing is served yet.

    Raises:
        Misconfigured: the hub must not start like this. The message says what to change.
    """


@_hook(Kind.FIRST, answer=str)
def offer_token() -> str | None:
    """A token with which whoever owns this process may sign in at once: printed at start, kept in the ready file."""


# -- a request comes in --------------------------------------------------------------------------------------


@_hook(Kind.FIRST, needed=True, answer=Principal, passes=(Refused, Unavailable), deadline=10.0)
async def authenticate(request: Request) -> Principal | None:
    """Who is asking; None if the request carries no credential of this plugin's kind.

    Fails closed: whatever else it raises, and a call that takes too long, denies the request. This hook only lets
    in; what keeps out belongs into `authorize`.

    Raises:
        Refused: the credential is of this plugin's kind and is not good.
        Unavailable: nobody can tell now.
    """


@_hook(Kind.FIRST, needed=True, answer=Decision, passes=(Refused, Unavailable))
async def authorize(principal: Principal, action: str, resource: Resource) -> Decision | None:
    """Whether `principal` may do `action` (`agent.start`) to `resource`. What nobody decides is denied.

    Fails closed, as `authenticate` does.
    """


# -- a call is routed ----------------------------------------------------------------------------------------


@_hook(Kind.FIRST, answer=RouteAdvice)
def rank_route(request: RouteRequest) -> RouteAdvice | None:
    """Which way the call should go. Pure: no I/O, no waiting, the same answer to the same request.

    An advice that the request contradicts (LOCAL without a socket) is a fault. The kernel's own order is always
    asked last, and the kernel alone claims, fences and sends.
    """


@_hook(Kind.FIRST, answer=tuple)
def rank_brokers(request: PlacementRequest) -> tuple[Broker, ...] | None:
    """Which of the candidates should run a new agent, the best first. Pure, as `rank_route`."""


# -- an intent is carried out --------------------------------------------------------------------------------


@_hook(Kind.COLLECT, needed=True, answer=Environment, deadline=10.0)
async def resolve_environment(agent: Agent, intent: Intent) -> Environment | None:
    """What the agent's process finds around it. Asked by the owner when it executes, never stored; later plugins
    override earlier ones by name. A fault ends the intent `failed` and names the plugin."""


@_hook(Kind.AROUND)
async def around_dispatch(intent: Intent, call_next: Callable[[Intent], Awaitable[Any]]) -> Any:
    """Do something before and after an intent is sent: `return await call_next(intent)`.

    What `call_next` gave or raised is what happened: another answer is a fault and changes nothing. It runs once at
    most, in the dispatch's own task, so a time limit around it ends the plugin's waiting and not the dispatch. Only
    the time before and after it counts against the deadline.
    """


# -- and told ------------------------------------------------------------------------------------------------


@_hook(Kind.BROADCAST)
def on_transition(transition: Transition) -> None:
    """An intent took a step, and the row says so already."""


@_hook(Kind.BROADCAST)
def on_stage(stage: str, seconds: float) -> None:
    """One stage of a dispatch took this long: authenticate, route, record, signal, wake, claim, resolve, send, answer,
    end, reply, drain."""


@_hook(Kind.BROADCAST)
def on_request(route: str, method: str, status: int, seconds: float) -> None:
    """One HTTP request was answered. `route` is the template, not the path: `/api/v1/agents/{agent}`."""


@_hook(Kind.COLLECT, answer=str, deadline=1.0)
def collect_metrics(hub: Host) -> str:  # type: ignore[empty-body]
    """Lines in Prometheus' text format, for `GET /metrics`."""


# -- and stops -----------------------------------------------------------------------------------------------


@_hook(Kind.COLLECT)
async def on_stop(hub: Host) -> None:
    """Nothing is served any more; the storage is still open."""


SPECIFICATIONS = sys.modules[__name__]
"""What pluggy validates implementations against."""
