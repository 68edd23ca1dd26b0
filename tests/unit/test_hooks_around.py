"""Plugins around a dispatch: whatever they do, it runs once and its own result is what the caller gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kernel.config.settings import BreakerSettings
from kernel.errors import LinkLost
from kernel.hooks import Hooks, Implementation
from kernel.intent import Intent

pytestmark = pytest.mark.anyio

INTENT = cast("Intent", object())
Next = Callable[[Intent], Awaitable[Any]]


class Dispatch:
    """Counts how often it ran."""

    def __init__(self, *, error: Exception | None = None, takes: float = 0.0) -> None:
        self.runs = 0
        self.finished = 0
        self.result = object()
        self.error = error
        self.takes = takes

    async def __call__(self, intent: Intent) -> object:
        assert intent is INTENT
        self.runs += 1
        await anyio.sleep(self.takes)
        self.finished += 1
        if self.error:
            raise self.error
        return self.result


def plugged(*functions: Callable[[Intent, Next], Awaitable[Any]], deadline: float = 0.2) -> Hooks:
    found = [
        Implementation(plugin=f"p{n}", hook="around_dispatch", call=function, arguments=("intent", "call_next"))
        for n, function in enumerate(functions)
    ]
    return Hooks(found, BreakerSettings(deadline=deadline))


def faults(hooks: Hooks) -> list[int]:
    return [stat.faults for stat in hooks.stats()]


async def honest(intent: Intent, call_next: Next) -> Any:
    return await call_next(intent)


async def test_nobody_around_it_changes_nothing() -> None:
    dispatch = Dispatch()
    assert await Hooks().around_dispatch.call(INTENT, dispatch) is dispatch.result


async def test_plugins_wrap_each_other_in_their_order() -> None:
    steps: list[str] = []

    def wrapping(name: str) -> Callable[[Intent, Next], Awaitable[Any]]:
        async def around(intent: Intent, call_next: Next) -> Any:
            steps.append(f"{name} before")
            result = await call_next(intent)
            steps.append(f"{name} after")
            return result

        return around

    dispatch = Dispatch()
    hooks = plugged(wrapping("outer"), wrapping("inner"))
    assert await hooks.around_dispatch.call(INTENT, dispatch) is dispatch.result
    assert steps == ["outer before", "inner before", "inner after", "outer after"]
    assert (dispatch.runs, faults(hooks)) == (1, [0, 0])


async def raises_before(intent: Intent, call_next: Next) -> Any:
    raise ValueError("before")


async def raises_after(intent: Intent, call_next: Next) -> Any:
    await call_next(intent)
    raise ValueError("after")


async def sleeps_before(intent: Intent, call_next: Next) -> Any:
    await anyio.sleep_forever()


async def sleeps_after(intent: Intent, call_next: Next) -> Any:
    await call_next(intent)
    await anyio.sleep_forever()


async def forgets_to_call(intent: Intent, call_next: Next) -> Any:
    return None


async def forgets_to_return(intent: Intent, call_next: Next) -> Any:
    await call_next(intent)


async def lies(intent: Intent, call_next: Next) -> Any:
    await call_next(intent)
    return "all is well"


async def swallows(intent: Intent, call_next: Next) -> Any:
    try:
        return await call_next(intent)
    except BaseException:
        return "all is well"


async def raises_another(intent: Intent, call_next: Next) -> Any:
    try:
        return await call_next(intent)
    except LinkLost:
        raise ValueError("another") from None


async def exits(intent: Intent, call_next: Next) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "broken",
    [raises_before, raises_after, sleeps_before, sleeps_after, forgets_to_call, forgets_to_return, lies, exits],
)
async def test_fault_of_a_plugin_is_counted_and_the_result_is_kept(broken: Callable[..., Awaitable[Any]]) -> None:
    dispatch = Dispatch()
    hooks = plugged(honest, broken, honest)
    assert await hooks.around_dispatch.call(INTENT, dispatch) is dispatch.result
    assert (dispatch.runs, faults(hooks)) == (1, [0, 1, 0])


@pytest.mark.parametrize("broken", [swallows, raises_another, raises_before, sleeps_before, exits])
async def test_what_the_dispatch_raised_is_what_the_caller_gets(broken: Callable[..., Awaitable[Any]]) -> None:
    error = LinkLost()
    dispatch = Dispatch(error=error)
    hooks = plugged(honest, broken, honest)
    with pytest.raises(LinkLost) as caught:
        await hooks.around_dispatch.call(INTENT, dispatch)
    assert caught.value is error
    assert (dispatch.runs, faults(hooks)) == (1, [0, 1, 0])


async def test_error_of_the_dispatch_is_no_fault_of_who_lets_it_pass() -> None:
    hooks = plugged(honest, honest)
    with pytest.raises(LinkLost):
        await hooks.around_dispatch.call(INTENT, Dispatch(error=LinkLost()))
    assert faults(hooks) == [0, 0]


async def test_calling_twice_runs_it_once() -> None:
    async def twice(intent: Intent, call_next: Next) -> Any:
        assert await call_next(intent) is await call_next(intent)
        return await call_next(intent)

    dispatch = Dispatch()
    hooks = plugged(twice)
    assert await hooks.around_dispatch.call(INTENT, dispatch) is dispatch.result
    assert (dispatch.runs, faults(hooks)) == (1, [0])


async def test_calling_in_parallel_runs_it_once() -> None:
    async def parallel(intent: Intent, call_next: Next) -> Any:
        async def once() -> None:
            await call_next(intent)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(once)
            tasks.start_soon(once)
        return await call_next(intent)

    dispatch = Dispatch(takes=0.01)
    assert await plugged(parallel).around_dispatch.call(INTENT, dispatch) is dispatch.result
    assert dispatch.runs == 1


async def test_time_limit_of_a_plugin_ends_its_waiting_and_not_the_dispatch() -> None:
    async def impatient(intent: Intent, call_next: Next) -> Any:
        with anyio.move_on_after(0.02):
            return await call_next(intent)
        return "timed out"

    dispatch = Dispatch(takes=0.2)
    hooks = plugged(impatient)
    assert await hooks.around_dispatch.call(INTENT, dispatch) is dispatch.result
    assert (dispatch.runs, dispatch.finished) == (1, 1)
    assert faults(hooks) == [1]


async def test_time_of_the_dispatch_does_not_count_against_the_plugin() -> None:
    dispatch = Dispatch(takes=0.3)
    hooks = plugged(honest, honest, deadline=0.1)
    assert await hooks.around_dispatch.call(INTENT, dispatch) is dispatch.result
    assert faults(hooks) == [0, 0]
    assert all(stat.seconds < 0.3 for stat in hooks.stats())


async def test_cancellation_ends_plugin_and_dispatch_alike() -> None:
    ended: list[str] = []

    async def around(intent: Intent, call_next: Next) -> Any:
        try:
            return await call_next(intent)
        finally:
            ended.append("plugin")

    async def dispatch(intent: Intent) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("dispatch")

    hooks = plugged(around)
    with anyio.move_on_after(0.05) as scope:
        await hooks.around_dispatch.call(INTENT, dispatch)
    assert scope.cancelled_caught
    assert sorted(ended) == ["dispatch", "plugin"]
    assert faults(hooks) == [0]


async def test_dispatches_of_many_callers_do_not_meet() -> None:
    async def around(intent: Intent, call_next: Next) -> Any:
        await checkpoint()
        return await call_next(intent)

    hooks = plugged(around, honest)
    dispatches = [Dispatch(takes=0.01) for _ in range(50)]
    results: dict[int, object] = {}

    async def one(n: int) -> None:
        results[n] = await hooks.around_dispatch.call(INTENT, dispatches[n])

    async with anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(one, n)
    assert all(results[n] is dispatch.result and dispatch.runs == 1 for n, dispatch in enumerate(dispatches))


async def test_plugin_that_always_fails_is_switched_off() -> None:
    hooks = plugged(raises_before, honest)
    for _ in range(10):
        dispatch = Dispatch()
        assert await hooks.around_dispatch.call(INTENT, dispatch) is dispatch.result
    assert list(hooks.breaker.off) == ["p0"]
    assert hooks.around_dispatch.plugins == ("p1",)
