"""The pages of error codes and of exit codes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import pairwise

from docs.generator.markdown import code, page, table
from kernel import errors
from kernel.cli.exits import Exit, exit_of_answer

FAMILIES = {
    "Refused": "Change something, then ask again.",
    "Overtaken": "Somebody else owns it now. Never leaves the hub: what was about to be written is dropped.",
    "Unavailable": "Wait as long as `Retry-After` says, then ask again.",
    "Misbehaved": "A plugin broke its contract: look at `GET /api/v1/plugins` and at the log.",
    "Misconfigured": "Nothing was started: exit status 78, and the message has the fix.",
}


ERRORS = """
An error is answered as `{"error": {"code", "message", "details", "requestId"}}`. The code is stable. The message is for
people, and may be more precise than what stands here. Five families tell what the reader must do. Anything that has no
name here is a fault of the hub: 500 `internal_error`, with a `requestId` that its log repeats.
"""


def error_codes() -> str:
    parts = [ERRORS]
    for name, advice in FAMILIES.items():
        family = getattr(errors, name)
        rows = {
            (code(kind.code), str(kind.status), _exit_of(kind), _sentence(kind), kind.__name__)
            for kind in _descendants(family)
        }
        ordered = sorted(rows, key=lambda row: (int(row[1]), row[0], row[4]))
        parts += [
            f"## {name}",
            advice,
            table(("code", "status", "exit", "meaning", "class"), ((*row[:4], code(row[4])) for row in ordered)),
        ]
    return page("Error codes", "kernel/errors.py", *parts)


def _descendants(family: type[errors.PointsmanError]) -> Iterator[type[errors.PointsmanError]]:
    yield family
    for kind in family.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from _descendants(kind)


def _sentence(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _exit_of(kind: type[errors.PointsmanError]) -> str:
    if issubclass(kind, errors.Misconfigured):
        return str(int(Exit.MISCONFIGURED))
    return str(int(exit_of_answer(kind.status, kind.code)))


def exit_codes() -> str:
    lines = inspect.getsource(Exit).splitlines()
    more: dict[str, str] = {}
    for line, below in pairwise(lines):
        found = re.match(r"    ([A-Z_]+) = ", line)
        if found and (told := re.match(r'    """(.+)"""', below)):
            more[found[1]] = told[1]
    rows = [(code(str(int(one))), _words(one.name), more.get(one.name, "")) for one in Exit]
    return page(
        "Exit codes",
        "kernel/cli/exits.py",
        "What `$?` holds after a `pointsman` command. They are part of the contract: scripts may rely on them.",
        table(("status", "name", "when"), rows),
    )


def _words(name: str) -> str:
    return name.lower().replace("_", " ")
