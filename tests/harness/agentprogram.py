"""An agent of the process runtime that writes down what happens to it: FILE OVER TEST LINGER.

It appends to FILE, one JSON line an event: `run_began`, one `effect` for each message that it reads, `run_ended` when
it is asked to end. Every fourth run then lingers for LINGER seconds. It ends by itself when the file OVER is there or
the process TEST is not, so that none outlives its test. Run it with `python -I -S`: the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import zlib
from typing import Any

LOOKS = 0.5
"""Seconds between two looks at whether its test is over."""


class Agent:
    def __init__(self, path: str, over: str, test: int, linger: float) -> None:
        self.over = over
        self.test = test
        self.run = os.environ["POINTSMAN_RUN_ID"]
        self.linger = linger if zlib.crc32(self.run.encode()) % 4 == 0 else 0.0
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def tell(self, what: str, **more: Any) -> None:
        event = {"t": time.monotonic(), "wall": time.time(), "pid": os.getpid(), "what": what, "run": self.run, **more}
        os.write(self.file, json.dumps(event).encode() + b"\n")

    def end(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.tell("run_ended")
        time.sleep(self.linger)
        os._exit(0)

    def test_is_over(self) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.test, 0)
            return os.path.exists(self.over)  # noqa: PTH110 - pathlib takes longer than all the rest of a start
        return True

    def live(self) -> None:
        signal.signal(signal.SIGTERM, self.end)
        self.tell("run_began")
        rest = b""
        while not self.test_is_over():
            if select.select([0], [], [], LOOKS)[0]:
                data = os.read(0, 65_536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.tell("effect", op="message", dispatch=json.loads(line)["id"])


if __name__ == "__main__":
    Agent(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])).live()
