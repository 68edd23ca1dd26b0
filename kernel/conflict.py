"""Says that two processes use one broker's identity by turns, once in the log and on the broker."""

from __future__ import annotations

import logging

import anyio.abc

from kernel.broker import Broker
from kernel.errors import PointsmanError
from kernel.storage import BrokerEdit, Brokers

log = logging.getLogger(__name__)


class Conflicts:
    """Told of each time that two processes take the socket from each other."""

    def __init__(self, storage: Brokers, tasks: anyio.abc.TaskGroup) -> None:
        self._storage = storage
        self._tasks = tasks
        self.told = 0
        """How many conflicts were found, each counted once."""

    def tell(self, broker: Broker) -> None:
        self._tasks.start_soon(self._tell, broker)

    async def _tell(self, broker: Broker) -> None:
        if broker.conflict:
            return
        self.told += 1
        log.error(
            "broker %s (%s): two processes use its identity by turns; "
            "give each its own with `pointsman broker register`",
            broker.name,
            broker.id,
        )
        try:
            await self._storage.edit_broker(BrokerEdit(broker_id=broker.id, conflict=True))
        except PointsmanError as fault:
            log.warning("the conflict of broker %s is not stored: %s", broker.id, fault.message)
