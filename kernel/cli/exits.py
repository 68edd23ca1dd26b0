"""What the exit status of a command means, in one place."""

from __future__ import annotations

from enum import IntEnum

from kernel.errors import Failure, Misconfigured, PointsmanError


class Exit(IntEnum):
    DONE = 0
    ENDED_BADLY = 1
    """The operation ended failed, expired or cancelled."""
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    """Any other 4xx: the request has to change."""
    NO_HUB = 5
    """No hub answered, or it answered 503."""
    UNKNOWN = 6
    """It may or may not have happened, or waiting for it is over."""
    DENIED = 77
    MISCONFIGURED = 78
    INTERRUPTED = 130


def exit_of_answer(status: int, code: str) -> Exit:
    """The exit for an answer of the hub: its HTTP status and the code of its error."""
    if status < 400:
        return Exit.UNKNOWN if status == 202 else Exit.DONE
    if code == "outcome_unknown":
        return Exit.UNKNOWN
    if status in (401, 403):
        return Exit.DENIED
    if status == 404:
        return Exit.NOT_FOUND
    if status == 503:
        return Exit.NO_HUB
    return Exit.REFUSED if status < 500 else Exit.ENDED_BADLY


def exit_of(error: PointsmanError | Failure) -> Exit:
    if isinstance(error, Misconfigured):
        return Exit.MISCONFIGURED
    return exit_of_answer(error.status, error.code)
