"""What was said to an agent: each message once, by its id, also when it is said again."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

REMEMBERED = 1_000
"""Ids that are remembered after their end; also the most that may wait for the agent to read."""

_TAKEN = float("inf")
Told = Callable[[dict[str, Any]], None]


class Message:
    """One message until it is delivered: `rest` is what the agent's input did not take yet."""

    def __init__(self, message_id: str, line: bytes, until: float) -> None:
        self.id = message_id
        self.line = line
        self.rest = line
        self.until = until
        self.told: list[Told] = []

    @property
    def begun(self) -> bool:
        return len(self.rest) < len(self.line)


class Mailbox:
    """Messages in the order in which they came, and what became of the last 1,000."""

    def __init__(self) -> None:
        self.waiting: deque[Message] = deque()
        self._by_id: dict[str, Message] = {}
        self._ended: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def take(self, message_id: str, line: bytes | None, until: float, told: Told) -> Message | None:
        """The message when it is new; a known one is joined or told at once. Without a line it is only asked about."""
        known = self._by_id.get(message_id)
        if known and known.until == _TAKEN:
            told({"result": "delivered"})
        elif known:
            known.told.append(told)
        elif message_id in self._ended:
            told(self._ended[message_id])
        elif line is None:
            told({"result": "unknown"})
        elif len(self.waiting) >= REMEMBERED:
            told({"result": "busy"})
        else:
            message = self._by_id[message_id] = Message(message_id, line, until)
            message.told.append(told)
            self.waiting.append(message)
            return message
        return None

    def end(self, message: Message, what: dict[str, Any]) -> None:
        """It was delivered, or failed for good: a repeat is told the same."""
        self._ended[message.id] = what
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        self._settle(message, what)

    def give_up(self, message: Message, result: str) -> None:
        """Nothing of it was delivered: a repeat is a new message."""
        self._settle(message, {"result": result})

    def withdraw(self, message_id: str) -> bool:
        """Take back one of which nothing was delivered yet."""
        known = self._by_id.get(message_id)
        if known is None or known.begun or known not in self.waiting:
            return False
        self.waiting.remove(known)
        self.give_up(known, "withdrawn")
        return True

    def overdue(self, now: float) -> None:
        """Give up those that the agent did not begin to read in time; one that it began counts as delivered."""
        for message in [one for one in self.waiting if one.until <= now]:
            if message.begun:
                message.until = _TAKEN
                self._tell(message, {"result": "delivered"})
            else:
                self.waiting.remove(message)
                self.give_up(message, "busy")

    def close(self, result: str) -> None:
        """The agent takes nothing more."""
        while self.waiting:
            message = self.waiting.popleft()
            if message.begun:
                self.end(message, {"result": "delivered"})
            else:
                self.give_up(message, result)

    def delivered(self) -> list[str]:
        """The ids of what ended."""
        return list(self._ended)

    def _settle(self, message: Message, what: dict[str, Any]) -> None:
        self._by_id.pop(message.id, None)
        self._tell(message, what)

    def _tell(self, message: Message, what: dict[str, Any]) -> None:
        for told in message.told:
            told(what)
        message.told.clear()
