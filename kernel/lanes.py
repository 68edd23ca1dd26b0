"""One thing of an agent's lane after the other, many agents at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

from kernel.agent import Agent, Report
from kernel.intent import Intent, Lane
from kernel.link import Exchange, Link
from kernel.storage import AgentView, NewIntent


class Work:
    """An intent in this node's hands: claimed from its row, or LOCAL and not written anywhere yet."""

    def __init__(
        self,
        *,
        intent: Intent,
        link: Link,
        until: float,
        plan: NewIntent | None = None,
        view: AgentView | None = None,
        values: dict[str, str] | None = None,
    ) -> None:
        self.intent = intent
        self.link = link
        self.until = until
        """The deadline on the monotonic clock."""
        self.plan = plan
        """Of LOCAL work: what is recorded if it must be."""
        self.recorded = plan is None
        self.recording = anyio.Lock()
        """Held while LOCAL work gets its row, so that its end finds it either there or not."""
        self.view = view
        self.values = values
        self.cancelled = False
        self.accepted = False
        """The broker says that it took it."""
        self.progress = False
        """The broker told of progress since the row was last told."""
        self.report: Report | None = None
        """What its agent reported of the run that it makes, before its end is stored."""
        self.exchange: Exchange | None = None
        """The request in flight, once there is one."""
        self.noted: tuple[bool, bool] = (False, False)
        """What of (sent, accepted) its row knows."""
        self.agent: Agent | None = None
        """Its agent as stored with its end."""
        self.settled = anyio.Event()

    def finish(self) -> None:
        """Its end is decided: the next of the lane may go, and the window has a place more."""
        self.settled.set()
        full = self.link.in_hand >= self.link.window.size
        self.link.in_hand -= 1
        if full:
            self.link.wake()

    @property
    def attempt(self) -> int:
        return self.intent.attempts

    @property
    def sent(self) -> bool:
        return self.exchange is not None and self.exchange.sent.is_set()

    @property
    def answered(self) -> bool:
        return self.exchange is not None and self.exchange.response is not None

    @property
    def alone(self) -> bool:
        """Two broker processes died with it in flight: it is sent alone (design/dispatch.md, poison)."""
        return self.intent.broker_crashes >= 2


class Lanes:
    """The lanes of every agent that this node has work for. A lane is a queue and, while it holds work, a task."""

    def __init__(self, tasks: anyio.abc.TaskGroup, deliver: Callable[[Work], Awaitable[None]]) -> None:
        self._tasks = tasks
        self._deliver = deliver
        self._queues: dict[tuple[str, Lane], deque[Work]] = {}

    def enter(self, work: Work) -> None:
        """Take the last place in the agent's lane; the order of these calls is the order of delivery."""
        work.link.in_hand += 1
        key = (work.intent.agent_id, work.intent.lane)
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque([work])
            self._tasks.start_soon(self._run, key)
        else:
            queue.append(work)

    async def _run(self, key: tuple[str, Lane]) -> None:
        queue = self._queues[key]
        try:
            while queue:
                await self._deliver(queue[0])
                queue.popleft().finish()
        finally:
            del self._queues[key]

    def control_of(self, agent_id: str) -> Work | None:
        """The last of what is in hand in the agent's control lane: control goes before messages when both wait."""
        queue = self._queues.get((agent_id, Lane.CONTROL))
        return queue[-1] if queue else None

    def works(self) -> list[Work]:
        """Everything in hand, oldest first in each lane."""
        return [work for queue in self._queues.values() for work in queue]

    def find(self, intent_id: str) -> Work | None:
        return next((work for work in self.works() if work.intent.id == intent_id), None)

    def of_agent(self, agent_id: str) -> list[Work]:
        return [work for lane in Lane for work in self._queues.get((agent_id, lane), ())]

    def unrecorded(self) -> list[Work]:
        return [work for work in self.works() if not work.recorded]
