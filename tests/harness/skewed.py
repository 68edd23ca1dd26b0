"""`pointsman` under a wall clock that is wrong: `python -m tests.harness.skewed SECONDS serve …`."""

from __future__ import annotations

import sys
import time


def skew(seconds: int) -> None:
    """Everything that asks for the wall time from now on hears another; the monotonic clock stays."""
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() + seconds
    time.time_ns = lambda: true_ns() + seconds * 1_000_000_000


if __name__ == "__main__":
    skew(int(sys.argv.pop(1)))
    from kernel.__main__ import main

    main()
