"""The keeper's memory of messages: each one once, by its id."""

from __future__ import annotations

from typing import Any

from broker.keeping.mailbox import REMEMBERED, Mailbox, Message


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, told: dict[str, Any]) -> None:
        self.heard.append(told["result"])


def taken(mail: Mailbox, message_id: str, ear: Ear, until: float = 10.0) -> Message:
    message = mail.take(message_id, b"line\n", until, ear)
    assert message is not None
    return message


def deliver(mail: Mailbox) -> None:
    mail.end(mail.waiting.popleft(), {"result": "delivered"})


def test_a_repeat_is_told_the_same_and_is_not_a_second_message() -> None:
    mail, ear = Mailbox(), Ear()
    taken(mail, "a", ear)
    assert mail.take("a", b"line\n", 10.0, ear) is None
    deliver(mail)
    assert ear.heard == ["delivered", "delivered"]
    assert mail.take("a", b"line\n", 10.0, ear) is None
    assert ear.heard == ["delivered"] * 3
    assert not mail.waiting


def test_asking_about_a_message_makes_none() -> None:
    mail, ear = Mailbox(), Ear()
    assert mail.take("a", None, 10.0, ear) is None
    assert ear.heard == ["unknown"]
    assert not mail.waiting


def test_one_that_is_not_read_in_time_is_given_up_and_may_come_again() -> None:
    mail, ear = Mailbox(), Ear()
    taken(mail, "a", ear, until=5.0)
    mail.overdue(4.9)
    assert ear.heard == []
    mail.overdue(5.0)
    assert ear.heard == ["busy"]
    taken(mail, "a", ear)


def test_one_that_the_agent_began_to_read_counts_as_delivered_and_stays() -> None:
    mail, ear, late = Mailbox(), Ear(), Ear()
    message = taken(mail, "a", ear, until=5.0)
    message.rest = message.line[2:]
    assert not mail.withdraw("a")
    mail.overdue(6.0)
    assert mail.take("a", b"line\n", 10.0, late) is None
    assert (ear.heard, late.heard, list(mail.waiting)) == (["delivered"], ["delivered"], [message])
    deliver(mail)
    assert mail.delivered() == ["a"]


def test_one_that_was_not_begun_can_be_withdrawn() -> None:
    mail, ear = Mailbox(), Ear()
    taken(mail, "a", ear)
    assert mail.withdraw("a")
    assert not mail.withdraw("a")
    assert ear.heard == ["withdrawn"]


def test_at_the_end_only_what_was_begun_counts() -> None:
    mail, first, second = Mailbox(), Ear(), Ear()
    begun = taken(mail, "a", first)
    begun.rest = b"e\n"
    taken(mail, "b", second)
    mail.close("ended")
    assert (first.heard, second.heard, mail.delivered()) == (["delivered"], ["ended"], ["a"])


def test_the_last_thousand_are_remembered() -> None:
    mail, ear = Mailbox(), Ear()
    for n in range(REMEMBERED + 1):
        taken(mail, str(n), ear)
        deliver(mail)
    assert len(mail.delivered()) == REMEMBERED
    taken(mail, "0", ear)
    assert mail.take("1", b"line\n", 10.0, ear) is None


def test_not_more_than_a_thousand_wait() -> None:
    mail, ear = Mailbox(), Ear()
    for n in range(REMEMBERED):
        taken(mail, str(n), ear)
    assert mail.take("more", b"line\n", 10.0, ear) is None
    assert ear.heard == ["busy"]
