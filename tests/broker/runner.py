"""Runs one broker in this process; its settings are a JSON object in the first argument, with `die` for its death."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec

from broker.run import run_until_signalled
from broker.settings import BrokerSettings


def die(place: str, moment: str, nth: int) -> None:
    """`kill -9` ourselves before or after the nth call of a function, `module:Class.name`."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    true = getattr(owner, name)
    calls = 0

    def now(wanted: str) -> None:
        if wanted == moment and calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(true)
    async def slow(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        now("before")
        result = await true(*args, **more)
        now("after")
        return result

    @functools.wraps(true)
    def quick(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        now("before")
        result = true(*args, **more)
        now("after")
        return result

    setattr(owner, name, slow if inspect.iscoroutinefunction(true) else quick)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    told = json.loads(sys.argv[1])
    if deadly := told.pop("die", None):
        die(*deadly)
    folder = Path(told.pop("dir"))
    settings = msgspec.convert({**told, "dir": None}, BrokerSettings, dec_hook=lambda *_: folder)
    anyio.run(run_until_signalled, settings)
