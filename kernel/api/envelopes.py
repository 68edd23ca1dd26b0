"""What a caller says to agents, and the envelope that each of them gets."""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.agent import HOLDS_MESSAGES, Agent, Phase
from kernel.errors import InvalidState, PayloadTooLarge
from kernel.intent import State
from kernel.message import TEXT_LIMIT, Message
from kernel.session import Principal

GROUPS = ("group[", "set[")
"""How a recipient begins that stands for many agents; the second is the old spelling."""


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Either a plain text or a whole envelope; who sent it is never the caller's to say."""

    message: str | None = None
    structured_message: dict[str, Any] | None = None
    interrupt: bool = False
    urgent: bool = False
    notify: bool = False
    wake: bool = False

    def problems(self) -> dict[str, str]:
        if (self.message is None) == (self.structured_message is None):
            return {"message": "expected either message or structured_message"}
        if self.structured_message is None:
            return {} if self.text.strip() else {"message": "must not be empty"}
        return self._envelope_problems(self.structured_message)

    def _envelope_problems(self, envelope: dict[str, Any]) -> dict[str, str]:
        found = {}
        if not self.text.strip():
            found["structured_message.msg"] = "must be a text that is not empty"
        if not isinstance(envelope.get("type", ""), str):
            found["structured_message.type"] = "expected a string"
        if self.to_group and not self.group:
            found["structured_message.recipient"] = "expected group[a,b], with at least one agent"
        return found

    @property
    def text(self) -> str:
        said = self.message if self.structured_message is None else self.structured_message.get("msg")
        return said if isinstance(said, str) else ""

    @property
    def is_urgent(self) -> bool:
        return self.urgent or bool((self.structured_message or {}).get("urgent"))

    @property
    def to_group(self) -> bool:
        return self._recipient.startswith(GROUPS)

    @property
    def group(self) -> tuple[str, ...]:
        """The agents of a group recipient, each once; none where it is no list that can be read."""
        inner = self._recipient.partition("[")[2]
        if not inner.endswith("]"):
            return ()
        names = (name.strip() for name in inner[:-1].split(","))
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def _recipient(self) -> str:
        return str((self.structured_message or {}).get("recipient", "")).strip()

    def check_length(self) -> None:
        """Raises: PayloadTooLarge."""
        if len(self.text.encode()) > TEXT_LIMIT:
            raise PayloadTooLarge(f"a message's text takes at most {TEXT_LIMIT} bytes; send a file some other way")

    def envelope(self, sender: Principal, agent: Agent, *, broadcasted: bool = False) -> dict[str, Any]:
        """The whole of what the broker is sent, now or when a lane is drained later."""
        flags = {name: True for name in ("interrupt", "urgent", "notify", "wake") if getattr(self, name)}
        told = {"sender": sender_of(sender), "sender_id": sender.id}
        if self.structured_message is None:
            return {"message": self.message, **told, **flags}
        addressed: dict[str, Any] = {"recipient": f"agent:{agent.slug}", "recipient_id": agent.id}
        if broadcasted:
            addressed["broadcasted"] = True
        return {"structured_message": {**self.structured_message, **told, **addressed}, **flags}

    def row(
        self,
        sender: Principal,
        agent: Agent,
        envelope: dict[str, Any],
        *,
        group_id: str | None = None,
        broadcasted: bool = False,
    ) -> Message:
        """Its row, but for the id, which is its intent's."""
        return Message(
            id="",
            project_id=agent.project_id,
            sender=sender_of(sender),
            sender_id=sender.id,
            recipient=f"agent:{agent.slug}",
            recipient_id=agent.id,
            recipient_agent_id=agent.id,
            msg=self.text,
            type=(self.structured_message or {}).get("type") or "instruction",
            urgent=self.is_urgent,
            agent_id=agent.id,
            group_id=group_id,
            broadcasted=broadcasted,
            envelope=envelope,
            dispatch_state=State.PENDING,
        )


def sender_of(principal: Principal) -> str:
    return f"{principal.kind}:{principal.name}"


def check_phase(agent: Agent, *, hold: bool) -> None:
    """Raises: InvalidState for an agent that does not run and is not about to."""
    if agent.phase is Phase.RUNNING or agent.phase in HOLDS_MESSAGES or hold:
        return
    raise InvalidState(
        f"agent {agent.slug} is {agent.phase}: start it first, or send `Prefer: deliver=hold` to have the message "
        "delivered after its next start"
    )
