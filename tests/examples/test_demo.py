"""`make demo` shows what it promises: a command through the wrong hub, and one whose hub is killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "examples" / "three_hubs.py")]


def left_behind(mark: str) -> list[str]:
    """Processes that still run in a demo's folder, or on its server."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if mark in line]


def test_it_keeps_its_promises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    shown = subprocess.run(DEMO, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert len(re.findall("✓", shown.stdout)) == 4
    assert "put back: its hub was lost" in shown.stdout
    assert shown.stdout.count("done: answered") == 2
    assert re.search(r"claimed: attempt 2, epoch \d", shown.stdout)
    assert left_behind(str(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("pointsman demo")] == []


def test_ctrl_c_ends_all_that_it_started(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.Popen(DEMO, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout
    for line in child.stdout:
        if "broker attic" in line:
            break
    child.send_signal(signal.SIGINT)
    try:
        assert child.wait(60) == 130
    finally:
        child.kill()
        child.stdout.close()
    until = time.monotonic() + 30
    while left_behind(str(tmp_path)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left_behind(str(tmp_path)) == []
