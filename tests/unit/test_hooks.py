"""What plugins do, and fail to do, inside a hook: the one who asks gets what is true, or is told who failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from kernel.config.settings import BreakerSettings
from kernel.environment import Environment
from kernel.errors import Forbidden, LinkLost, Misbehaved, Misconfigured, StorageUnavailable, Unauthenticated
from kernel.hooks import Answer, Hooks, Implementation
from kernel.hookspecs import RULES
from kernel.route import Route, RouteAdvice
from kernel.session import Decision, Principal

pytestmark = pytest.mark.anyio

LOCAL = RouteAdvice(route=Route.LOCAL, reason="test")
HOLD = RouteAdvice(route=Route.HOLD, reason="test")
SOMEBODY = Principal(kind="user", id="1", name="somebody")
BREAKER = BreakerSettings(faults=3, within=60.0, slow=0.2, deadline=0.2)


class Ticks:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plugged(hook: str, *functions: Callable[..., Any], settings: BreakerSettings = BREAKER, **more: Any) -> Hooks:
    """Hooks in which plugins p0, p1, … implement `hook`, each with all of its arguments."""
    found = [
        Implementation(plugin=f"p{n}", hook=hook, call=function, arguments=RULES[hook].arguments)
        for n, function in enumerate(functions)
    ]
    return Hooks(found, settings, **more)


def faults(hooks: Hooks) -> dict[str, int]:
    return {stat.plugin: stat.faults for stat in hooks.stats()}


def raises(*_: object) -> Any:
    raise ValueError("broken")


def abstains(*_: object) -> None:
    return None


def says(value: object) -> Callable[..., Any]:
    return lambda *_: value


def awaits(value: object) -> Callable[..., Awaitable[Any]]:
    async def function(*_: object) -> Any:
        return value

    return function


async def fails(*_: object) -> Any:
    raise ValueError("broken")


async def sleeps(*_: object) -> Any:
    await anyio.sleep_forever()


# -- first answer, synchronous -------------------------------------------------------------------------------


def test_first_answer_wins_and_names_its_plugin() -> None:
    hooks = plugged("rank_route", abstains, says(LOCAL), says(HOLD))
    assert hooks.rank_route.ask(object()) == Answer(LOCAL, "p1")


def test_nobody_answers_when_there_is_nobody() -> None:
    assert Hooks().rank_route.ask(object()) is None


def test_answer_that_the_question_contradicts_is_a_fault_and_the_next_is_asked() -> None:
    hooks = plugged("rank_route", says(LOCAL), says(HOLD))
    assert hooks.rank_route.ask(object(), accept=lambda advice: advice is HOLD) == Answer(HOLD, "p1")
    assert faults(hooks) == {"p0": 1, "p1": 0}


@pytest.mark.parametrize("nonsense", [5, "local", object(), Route.LOCAL])
def test_nonsense_is_a_fault_and_the_next_is_asked(nonsense: object) -> None:
    hooks = plugged("rank_route", says(nonsense), says(HOLD))
    assert hooks.rank_route.ask(object()) == Answer(HOLD, "p1")
    assert faults(hooks) == {"p0": 1, "p1": 0}


def test_coroutine_in_a_synchronous_hook_is_a_fault_and_leaves_no_warning() -> None:
    hooks = plugged("rank_route", awaits(LOCAL), says(HOLD))
    assert hooks.rank_route.ask(object()) == Answer(HOLD, "p1")
    assert faults(hooks)["p0"] == 1


def test_strategy_that_raises_is_counted_and_skipped() -> None:
    hooks = plugged("rank_route", raises, says(HOLD))
    assert hooks.rank_route.ask(object()) == Answer(HOLD, "p1")
    assert faults(hooks) == {"p0": 1, "p1": 0}
    assert hooks.stats()[0].last_fault == "raised ValueError: broken"


@pytest.mark.parametrize("error", [SystemExit, anyio.BrokenResourceError, GeneratorExit, RecursionError])
def test_no_error_of_a_strategy_gets_out(error: type[BaseException]) -> None:
    def strategy(_: object) -> None:
        raise error

    assert plugged("rank_route", strategy, says(HOLD)).rank_route.ask(object()) == Answer(HOLD, "p1")


def test_interrupt_of_the_process_gets_out() -> None:
    def strategy(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plugged("rank_route", strategy).rank_route.ask(object())


def test_slow_strategy_is_counted_and_skipped() -> None:
    clock = Ticks()

    def slow(_: object) -> RouteAdvice:
        clock.now += 0.3
        return LOCAL

    hooks = plugged("rank_route", slow, says(HOLD), monotonic=clock)
    assert hooks.rank_route.ask(object()) == Answer(HOLD, "p1")
    assert faults(hooks) == {"p0": 1, "p1": 0}


def test_implementation_gets_only_the_arguments_that_it_takes_in_its_own_order() -> None:
    told: list[tuple[object, ...]] = []
    found = [
        Implementation(plugin="none", hook="on_request", call=lambda: told.append(()), arguments=()),
        Implementation(plugin="one", hook="on_request", call=lambda a: told.append((a,)), arguments=("status",)),
        Implementation(
            plugin="two", hook="on_request", call=lambda a, b: told.append((a, b)), arguments=("seconds", "route")
        ),
    ]
    hooks = Hooks(found)
    hooks.on_request.tell("/x", "GET", 200, 0.5)
    assert told == [(), (200,), (0.5, "/x")]
    assert sum(faults(hooks).values()) == 0


# -- broadcast and collect -----------------------------------------------------------------------------------


def test_telling_never_raises_and_reaches_everybody() -> None:
    told: list[object] = []
    hooks = plugged("on_transition", raises, told.append, awaits(None))
    hooks.on_transition.tell("step")
    assert told == ["step"]
    assert faults(hooks) == {"p0": 1, "p1": 0, "p2": 0}


def test_metrics_of_a_broken_exporter_are_left_out() -> None:
    hooks = plugged("collect_metrics", says("a 1\n"), raises, says(5), says("b 2\n"), abstains)
    assert hooks.collect_metrics.gather(object()) == [Answer("a 1\n", "p0"), Answer("b 2\n", "p3")]
    assert faults(hooks) == {"p0": 0, "p1": 1, "p2": 1, "p3": 0, "p4": 0}


async def test_environments_are_gathered_in_order() -> None:
    one, two = Environment(values={"A": "1"}), Environment(values={"A": "2"})
    hooks = plugged("resolve_environment", awaits(one), awaits(None), awaits(two))
    assert await hooks.resolve_environment.gather(object(), object()) == [Answer(one, "p0"), Answer(two, "p2")]


@pytest.mark.parametrize("broken", [fails, sleeps, awaits(5)])
async def test_environment_that_fails_names_its_plugin(broken: Callable[..., Any]) -> None:
    hooks = plugged("resolve_environment", awaits(Environment()), broken)
    hooks.resolve_environment._deadline = 0.05
    with pytest.raises(Misbehaved, match="plugin p1 failed in resolve_environment") as caught:
        await hooks.resolve_environment.gather(object(), object())
    assert (caught.value.plugin, caught.value.hook) == ("p1", "resolve_environment")
    assert faults(hooks) == {"p0": 0, "p1": 1}


async def test_message_of_a_foreign_error_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def leaks(*_: object) -> None:
        raise RuntimeError("token=hunter2")

    hooks = plugged("resolve_environment", leaks)
    with pytest.raises(Misbehaved) as caught:
        await hooks.resolve_environment.gather(object(), object())
    assert "hunter2" not in caught.value.message
    assert "RuntimeError" in caught.value.message
    assert "hunter2" in caplog.text


async def test_end_is_told_to_everybody_although_one_fails() -> None:
    told: list[object] = []

    async def listens(hub: object) -> None:
        told.append(hub)

    await plugged("on_stop", fails, sleeps, listens).on_stop.gather("hub")
    assert told == ["hub"]


async def test_start_stops_at_the_first_plugin_that_cannot() -> None:
    async def refuses(_: object) -> None:
        raise Misconfigured("bind to loopback")

    with pytest.raises(Misconfigured, match="bind to loopback"):
        await plugged("on_start", refuses).on_start.gather(object())
    with pytest.raises(Misbehaved, match="p0"):
        await plugged("on_start", fails).on_start.gather(object())


# -- first answer, asynchronous: fails closed ----------------------------------------------------------------


async def test_first_plugin_that_knows_the_caller_answers() -> None:
    hooks = plugged("authenticate", awaits(None), awaits(SOMEBODY), fails)
    assert await hooks.authenticate.ask(object()) == Answer(SOMEBODY, "p1")


@pytest.mark.parametrize("broken", [fails, raises, sleeps, awaits("root"), awaits(True), says("root")])
async def test_broken_authentication_denies_although_another_would_let_in(broken: Callable[..., Any]) -> None:
    hooks = plugged("authenticate", broken, awaits(SOMEBODY), settings=BREAKER)
    hooks.authenticate._deadline = 0.05
    with pytest.raises(Misbehaved):
        await hooks.authenticate.ask(object())
    assert faults(hooks) == {"p0": 1, "p1": 0}


async def test_plugin_that_waits_for_nothing_is_a_plain_function() -> None:
    hooks = plugged("authenticate", abstains, says(SOMEBODY), fails)
    assert await hooks.authenticate.ask(object()) == Answer(SOMEBODY, "p1")


async def test_plain_function_may_begin_to_wait() -> None:
    hooks = plugged("authenticate", lambda request: sleeps() if request else None, awaits(SOMEBODY))
    hooks.authenticate._deadline = 0.05
    assert await hooks.authenticate.ask(0) == Answer(SOMEBODY, "p1")
    with pytest.raises(Misbehaved, match=r"took more than 0\.05 s"):
        await hooks.authenticate.ask(1)


@pytest.mark.parametrize("error", [Unauthenticated, Forbidden, StorageUnavailable])
@pytest.mark.parametrize("waits", [True, False])
async def test_refusal_is_no_fault(error: type[Exception], waits: bool) -> None:
    def refuses(_: object) -> None:
        raise error

    async def refuses_later(_: object) -> None:
        raise error

    hooks = plugged("authenticate", refuses_later if waits else refuses, awaits(SOMEBODY))
    with pytest.raises(error):
        await hooks.authenticate.ask(object())
    assert faults(hooks) == {"p0": 0, "p1": 0}


async def test_other_errors_of_ours_are_faults_of_authentication() -> None:
    async def confused(_: object) -> None:
        raise LinkLost

    with pytest.raises(Misbehaved):
        await plugged("authenticate", confused).authenticate.ask(object())


async def test_stranger_cannot_switch_authentication_off() -> None:
    async def crashes(_: object) -> Principal:
        raise ValueError

    hooks = plugged("authenticate", crashes)
    for _ in range(20):
        with pytest.raises(Misbehaved):
            await hooks.authenticate.ask(object())
    assert faults(hooks) == {"p0": 20}
    assert not hooks.breaker.off


async def test_plugin_that_blocks_its_asynchronous_hook_is_counted() -> None:
    def blocks(*_: object) -> Decision:
        time.sleep(0.3)
        return Decision(allowed=True, reason="late")

    async def blocks_awaited(*_: object) -> Decision:
        return blocks()

    for one in (blocks, blocks_awaited):
        with pytest.raises(Misbehaved, match=r"took more than 0\.2 s"):
            await plugged("authorize", one).authorize.ask(object(), "agent.start", object())


async def test_plain_function_that_holds_the_hub_up_is_counted_and_heard() -> None:
    def slow(_: object) -> Principal:
        time.sleep(0.3)
        return SOMEBODY

    hooks = plugged("authenticate", slow)  # it may take ten seconds, when it waits
    assert await hooks.authenticate.ask(object()) == Answer(SOMEBODY, "p0")
    assert faults(hooks) == {"p0": 1}


async def test_cancellation_passes_through_a_hook_untouched() -> None:
    hooks = plugged("authenticate", sleeps)
    with anyio.move_on_after(0.05) as scope:
        await hooks.authenticate.ask(object())
    assert scope.cancelled_caught
    assert faults(hooks) == {"p0": 0}


async def test_timeout_of_the_plugins_own_is_an_error_like_any_other() -> None:
    async def gives_up(*_: object) -> None:
        with anyio.fail_after(0.01):
            await anyio.sleep_forever()

    with pytest.raises(Misbehaved) as caught:
        await plugged("authenticate", gives_up).authenticate.ask(object())
    assert isinstance(caught.value.__cause__, TimeoutError)


# -- the breaker ---------------------------------------------------------------------------------------------


def test_plugin_that_fails_again_and_again_is_switched_off_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hooks = plugged("rank_route", raises, says(HOLD))
    for _ in range(10):
        assert hooks.rank_route.ask(object()) == Answer(HOLD, "p1")
    stats = {stat.plugin: stat for stat in hooks.stats()}
    assert (stats["p0"].calls, stats["p0"].faults, stats["p0"].switched_off) == (3, 3, True)
    assert (stats["p1"].calls, stats["p1"].faults, stats["p1"].switched_off) == (10, 0, False)
    assert hooks.rank_route.plugins == ("p1",)
    (told,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert told.startswith("plugin p0 is switched off until the next start: 3 faults within 60 s; the last: raised")


def test_faults_far_apart_switch_nothing_off() -> None:
    clock = Ticks()
    hooks = plugged("rank_route", raises, monotonic=clock)
    for _ in range(10):
        hooks.rank_route.ask(object())
        clock.now += 31.0
    assert not hooks.breaker.off
    assert faults(hooks) == {"p0": 10}


def test_faults_in_different_hooks_of_one_plugin_add_up() -> None:
    found = [
        Implementation(plugin="p", hook=hook, call=raises, arguments=RULES[hook].arguments)
        for hook in ("rank_route", "on_transition", "collect_metrics")
    ]
    hooks = Hooks(found, BREAKER)
    hooks.rank_route.ask(object())
    hooks.on_transition.tell(object())
    hooks.collect_metrics.gather(object())
    assert list(hooks.breaker.off) == ["p"]
    assert not any(chain.plugins for chain in hooks.chains())


async def test_plugin_switched_off_keeps_what_the_work_cannot_go_on_without() -> None:
    ended: list[object] = []

    async def ends(hub: object) -> None:
        ended.append(hub)

    kept = {"open_storage": awaits("storage"), "authenticate": awaits(SOMEBODY), "authorize": awaits(None)}
    found = [
        Implementation(plugin="p", hook=hook, call=call, arguments=RULES[hook].arguments)
        for hook, call in {**kept, "on_transition": raises, "around_dispatch": fails, "on_stop": ends}.items()
    ]
    hooks = Hooks(found, BREAKER)
    for _ in range(3):
        hooks.on_transition.tell(object())
    assert {chain.rule.name for chain in hooks.chains() if chain.plugins} == {*kept, "on_stop"}
    await hooks.on_stop.gather("hub")
    assert ended == ["hub"]


def test_log_is_not_flooded_by_one_hook(caplog: pytest.LogCaptureFixture) -> None:
    hooks = plugged("on_transition", raises, settings=BreakerSettings(faults=1000))
    for _ in range(100):
        hooks.on_transition.tell(object())
    assert len(caplog.records) == 1


def test_switching_off_in_the_middle_of_a_broadcast_reaches_the_others() -> None:
    told: list[object] = []
    hooks = plugged("on_transition", raises, told.append, settings=BreakerSettings(faults=1))
    hooks.on_transition.tell(1)
    hooks.on_transition.tell(2)
    assert told == [1, 2]
    assert faults(hooks)["p0"] == 1


def test_time_spent_is_kept_for_each_hook_of_each_plugin() -> None:
    clock = Ticks()

    def works(_: object) -> None:
        clock.now += 0.01

    hooks = plugged("on_transition", works, abstains, monotonic=clock)
    for _ in range(5):
        hooks.on_transition.tell(object())
    assert [(stat.plugin, stat.hook, stat.calls, round(stat.seconds, 3)) for stat in hooks.stats()] == [
        ("p0", "on_transition", 5, 0.05),
        ("p1", "on_transition", 5, 0.0),
    ]
