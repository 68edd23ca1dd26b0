"""The four ways of calling plugins: what one does, or fails to do, never harms the one who asks."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

import anyio
import msgspec

from kernel.errors import Misbehaved, PointsmanError
from kernel.hooks.breaker import Breaker, Voice
from kernel.hookspecs import Rule
from kernel.intent import Intent

T = TypeVar("T")
R = TypeVar("R")


class Answer(msgspec.Struct, Generic[T], frozen=True):
    """What a plugin said, and which."""

    value: T
    plugin: str


class Chain:
    """The voices of one hook, in their order. Empty, it costs one test."""

    def __init__(self, rule: Rule, breaker: Breaker, monotonic: Callable[[], float]) -> None:
        self.rule = rule
        self._breaker = breaker
        self._monotonic = monotonic
        self._slow = rule.deadline or breaker.settings.slow
        self._deadline = rule.deadline or breaker.settings.deadline
        self._voices: tuple[Voice, ...] = ()

    def compile(self, voices: Iterable[Voice]) -> None:
        self._voices = tuple(voices)

    @property
    def plugins(self) -> tuple[str, ...]:
        return tuple(voice.plugin for voice in self._voices)

    def _ask(self, voice: Voice, arguments: tuple[object, ...]) -> tuple[Any, bool]:
        """One synchronous call: its answer, and whether it came in time and is of the right type."""
        started = self._monotonic()
        try:
            value = voice.call(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # nothing can rightly be cancelled or ended in here
            voice.spent(self._monotonic() - started)
            self._breaker.fault(voice, _told(error), error)
            return None, False
        seconds = self._monotonic() - started
        voice.spent(seconds)
        if seconds > self._slow:
            self._breaker.fault(voice, f"took {seconds:.3f} s, more than {self._slow:g} s,")
            return value, False
        return value, value is None or self._fits(voice, value)

    async def _await(self, voice: Voice, arguments: tuple[object, ...]) -> Any:
        """One asynchronous call; what answers without waiting is a plain function, and pays for no deadline.

        Raises:
            Misbehaved: it raised, took too long or gave nonsense; counted. What it raised is the cause.
            PointsmanError: one that the hook lets pass.
        """
        started = self._monotonic()
        cause: BaseException | None = None
        told, value, late = "", None, False
        try:
            value = voice.call(*arguments)
            if hasattr(type(value), "__await__"):
                value, late = await self._in_time(value)
            elif (took := self._monotonic() - started) > self._breaker.settings.slow:
                self._breaker.fault(voice, f"held the hub up for {took:.3f} s: where it waits it has to be async,")
            if late or self._monotonic() - started > self._deadline:
                told = f"took more than {self._deadline:g} s"
        except self.rule.passes:
            raise
        except (Exception, SystemExit) as error:
            told, cause = _told(error), error
        finally:
            voice.spent(self._monotonic() - started)
        if told:
            self._breaker.fault(voice, told, cause)
        elif value is None or self._fits(voice, value):
            return value
        raise Misbehaved(_complaint(voice, cause), plugin=voice.plugin, hook=voice.hook) from cause

    async def _in_time(self, waits: Awaitable[Any]) -> tuple[Any, bool]:
        """What it gives, and whether it was cut off."""
        value = None
        with anyio.move_on_after(self._deadline) as scope:
            value = await waits
        return value, scope.cancelled_caught

    def _fits(self, voice: Voice, value: object) -> bool:
        if self.rule.answer is None or isinstance(value, self.rule.answer):
            return True
        if inspect.iscoroutine(value):
            value.close()
        self._breaker.fault(voice, f"gave a {type(value).__name__} instead of a {self.rule.answer.__name__}")
        return False


class FirstSync(Chain, Generic[T]):
    """The first answer of a hook that does not wait."""

    def ask(self, *arguments: object, accept: Callable[[T], bool] | None = None) -> Answer[T] | None:
        """The first answer that `accept` takes; one that it refuses is a fault, and the next is asked."""
        for voice in self._voices:
            value, good = self._ask(voice, arguments)
            if value is None or not good:
                continue
            if accept is None or accept(value):
                return Answer(value, voice.plugin)
            self._breaker.fault(voice, "gave an answer that the question contradicts")
        return None


class FirstAsync(Chain, Generic[T]):
    """The first answer of a hook that waits. Fails closed: after a fault nobody else is asked."""

    async def ask(self, *arguments: object) -> Answer[T] | None:
        """Raises: Misbehaved, and what the hook lets pass."""
        for voice in self._voices:
            value = await self._await(voice, arguments)
            if value is not None:
                return Answer(value, voice.plugin)
        return None


class CollectSync(Chain, Generic[T]):
    """All answers of a hook that does not wait; who fails is left out."""

    def gather(self, *arguments: object) -> list[Answer[T]]:
        answers: list[Answer[T]] = []
        for voice in self._voices:
            value, _ = self._ask(voice, arguments)
            if value is not None and (self.rule.answer is None or isinstance(value, self.rule.answer)):
                answers.append(Answer(value, voice.plugin))
        return answers


class CollectAsync(Chain, Generic[T]):
    """All answers of a hook that waits, in order."""

    async def gather(self, *arguments: object) -> list[Answer[T]]:
        """Raises: Misbehaved where the work cannot go on without the answer; elsewhere who fails is left out."""
        answers: list[Answer[T]] = []
        for voice in self._voices:
            try:
                value = await self._await(voice, arguments)
            except Misbehaved:
                if self.rule.needed:
                    raise
                continue
            if value is not None:
                answers.append(Answer(value, voice.plugin))
        return answers


class Broadcast(Chain):
    def tell(self, *arguments: object) -> None:
        """Never raises."""
        for voice in self._voices:
            value, _ = self._ask(voice, arguments)
            if value is not None and inspect.iscoroutine(value):
                value.close()


class _Crossing:
    """Where a wrapping plugin, in a task of its own, meets the dispatch that it wraps."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.value: Any = None
        self.error: Exception | None = None
        self.told = ""
        self.cause: BaseException | None = None

    async def proceed(self, _intent: Intent | None = None) -> Any:
        """What a plugin has as `call_next`. Calling it again gives the same result again."""
        self.asked.set()
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value


class Around(Chain):
    """Plugins that wrap a dispatch. The dispatch runs once, in the caller's task, whatever they do."""

    async def call(self, intent: Intent, call_next: Callable[[Intent], Awaitable[R]]) -> R:
        """What `call_next` gives or raises."""
        return await self._level(self._voices, intent, call_next)

    async def _level(self, voices: tuple[Voice, ...], intent: Intent, call_next: Callable[[Intent], Awaitable[R]]) -> R:
        if not voices:
            return await call_next(intent)
        voice, *inner = voices
        crossing = _Crossing()
        started = self._monotonic()
        within = 0.0
        async with anyio.create_task_group() as tasks:
            crossing.scope.deadline = anyio.current_time() + self._deadline
            tasks.start_soon(self._speak, voice, intent, crossing)
            await crossing.asked.wait()
            crossing.scope.deadline = float("inf")
            before = self._monotonic()
            try:
                crossing.value = await self._level(tuple(inner), intent, call_next)
            except Exception as error:
                crossing.error = error
            within = self._monotonic() - before
            crossing.scope.deadline = anyio.current_time() + self._deadline
            crossing.done.set()
        voice.spent(self._monotonic() - started - within)
        if crossing.told:
            self._breaker.fault(voice, crossing.told, crossing.cause)
        if crossing.error is not None:
            raise crossing.error
        result: R = crossing.value
        return result

    async def _speak(self, voice: Voice, intent: Intent, crossing: _Crossing) -> None:
        answer, raised = None, None
        try:
            with crossing.scope:
                answer = await voice.call(intent, crossing.proceed)
        except (Exception, SystemExit) as error:
            raised = error
        finally:
            skipped = not crossing.asked.is_set()
            crossing.asked.set()
        if crossing.scope.cancelled_caught:
            crossing.told = f"took more than {self._deadline:g} s"
        elif raised is not None and raised is not crossing.error:
            crossing.told, crossing.cause = _told(raised), raised
        elif raised is None and (skipped or crossing.error is not None or answer is not crossing.value):
            crossing.told = "did not return what call_next gave"


def _told(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {error}" if str(error) else f"raised {type(error).__name__}"


def _complaint(voice: Voice, cause: BaseException | None) -> str:
    """For whoever asked. Only our own errors are written to be read by anybody: another may quote a secret."""
    told = voice.last_fault
    if cause is not None and not isinstance(cause, PointsmanError):
        told = f"raised {type(cause).__name__}; the log of the hub says more"
    return f"plugin {voice.plugin} failed in {voice.hook}: it {told}"
