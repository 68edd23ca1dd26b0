"""A plugin that looks a thousand times a second at what each thread of the hub is doing, for `bench.rig.profile`.

What runs in C shows as the Python function that called it. The file is written when the hub stops.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from kernel import Host, hookimpl

FILE = Path("samples.json")
EVERY = 0.001
SWITCH = 0.00002
"""Seconds after which a thread gives way: the sampler must not wait until it is idle."""


class Plugin:
    api = 1

    def __init__(self) -> None:
        self._over = threading.Event()
        self._alone: Counter[str] = Counter()
        self._with_callees: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._sample, name="sampler", daemon=True)

    @hookimpl
    async def on_start(self, hub: Host) -> None:
        sys.setswitchinterval(SWITCH)
        self._thread.start()

    def _sample(self) -> None:
        names: dict[int, str] = {}
        while not self._over.wait(EVERY):
            if time.monotonic() % 1.0 < EVERY or not names:
                names = {thread.ident or 0: thread.name for thread in threading.enumerate()}
            for thread, frame in sys._current_frames().items():  # noqa: SLF001 - the one door to other threads' frames
                self._note(names.get(thread, "?"), frame)

    def _note(self, thread: str, frame: FrameType) -> None:
        self._alone[f"{thread} {_place(frame)}"] += 1
        seen: set[str] = set()
        above: FrameType | None = frame
        while above:
            seen.add(f"{thread} {_place(above)}")
            above = above.f_back
        self._with_callees.update(seen)

    @hookimpl
    async def on_stop(self, hub: Host) -> None:
        self._over.set()
        FILE.write_text(json.dumps({"alone": self._alone, "with callees": self._with_callees}))


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])} {code.co_qualname}"
