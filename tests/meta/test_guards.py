"""Each guard on which a promise rests is needed: without it, a named test fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernel", "plugins", "broker", "tests", "conf")
CONTRACT = "tests/contract/test_postgres.py"
SETTLING, CLAIMS = "plugins/storage/postgres/settling.py", "plugins/storage/ledger/claims.py"
SESSIONS, PULSE = "plugins/storage/ledger/sessions.py", "kernel/pulse.py"
RECOVERY = "tests/contract/test_postgres_recovery.py"
LISTENER, BUS = "plugins/storage/postgres/listener.py", "plugins/storage/postgres/bus.py"


@dataclass(frozen=True)
class Guard:
    """A piece of the code, what stands there without the guard, and the test that notices."""

    name: str
    file: str
    code: str
    without: str
    test: str


GUARDS = (
    Guard(
        "an end names the epoch",
        SETTLING,
        "            c.claimed_epoch == given.c.epoch,\n",
        "",
        f"{CONTRACT}::TestEnd::test_another_epoch_cannot_end_the_same_attempt",
    ),
    Guard(
        "an end names the attempt",
        SETTLING,
        "            c.attempts == given.c.attempt,\n",
        "",
        f"{CONTRACT}::TestEnd::test_an_older_attempt_cannot_end",
    ),
    Guard(
        "a claim names the epoch",
        CLAIMS,
        '        _b.connection_epoch == param("epoch"),\n',
        "",
        f"{CONTRACT}::TestLane::test_a_claim_compares_all_of_the_session",
    ),
    Guard(
        "a claim locks the broker's row",
        "plugins/storage/postgres/claiming.py",
        "        .with_for_update(read=True)\n",
        "",
        "tests/cluster/test_races.py::test_a_claim_and_a_newer_session_that_meet_leave_nothing_behind",
    ),
    Guard(
        "nothing is claimed past its deadline",
        CLAIMS,
        "        home.c.deadline_at > NOW,\n        among(home.op",
        "        among(home.op",
        f"{CONTRACT}::TestLane::test_what_is_past_its_deadline_is_not_taken",
    ),
    Guard(
        "a release compares before it clears",
        SESSIONS,
        '    _b.connected_session_id == param("session"),\n    _b.connection_epoch == param("epoch"),\n',
        "",
        f"{CONTRACT}::TestSession::test_a_late_release_does_not_clear_a_newer_session",
    ),
    Guard(
        "the bus listens before it looks",
        LISTENER,
        "        connection.add_termination_listener(self._ended)\n",
        "        self._listening()\n        connection.add_termination_listener(self._ended)\n",
        "tests/cluster/test_bus.py::test_everything_is_looked_at_after_listen_and_not_before",
    ),
    Guard(
        "the bus looks when it listens again",
        BUS,
        "        self._mailbox.miss()\n",
        "",
        "tests/cluster/test_bus.py::test_listener_that_was_killed_listens_again_and_everything_is_looked_at",
    ),
    Guard(
        "nobody judges after a gap",
        PULSE,
        " and self._clock.monotonic() - self._gap_ended_at >= self._grace",
        "",
        "tests/unit/test_dispatch_upkeep.py::test_after_a_broken_connection_nobody_is_judged_for_a_while",
    ),
    Guard(
        "what is in hand is not sent again",
        "kernel/drain.py",
        "if self._recovery.lost(link, intent):",
        "if False:",
        "tests/unit/test_recovery.py::test_a_claim_of_what_is_in_hand_is_not_sent_again",
    ),
    Guard(
        "an end waits until its claim is good again",
        "kernel/ends.py",
        "if settled.accepted or not work.link.open:",
        "if True:",
        "tests/unit/test_recovery.py::test_an_end_waits_until_its_claim_is_good_again",
    ),
    Guard(
        "what is older than a crash may have happened",
        "plugins/storage/ledger/endings.py",
        "unknown = intent.attempts > 0 or sure is None or intent.seq < sure",
        "unknown = intent.attempts > 0",
        f"{RECOVERY}::test_what_is_older_than_a_crash_may_have_happened",
    ),
    Guard(
        "recovery waits for claims under way",
        "plugins/storage/ledger/recovering.py",
        ".with_for_update(), first)",
        ", first)",
        f"{RECOVERY}::test_it_waits_for_a_claim_that_is_under_way",
    ),
    Guard(
        "only a key past its time makes room",
        "plugins/storage/ledger/keys.py",
        '.where(_THIS, _c.created <= param("good_since"))',
        ".where(_THIS)",
        "tests/cluster/test_races.py::test_a_key_that_another_hub_kept_since_it_was_looked_for_is_not_taken_over",
    ),
    Guard(
        "a late end shares the broker's row",
        SETTLING,
        'shared.with_for_update(read=True).cte("carried")',
        'shared.cte("carried")',
        "tests/cluster/test_races.py::test_a_late_answer_leaves_an_agent_alone_that_a_newer_session_reported",
    ),
    Guard(
        "renewal waits for nobody",
        SESSIONS,
        ".with_for_update(key_share=True, skip_locked=True)",
        "",
        "tests/cluster/test_races_places.py::test_a_broker_whose_row_somebody_holds_keeps_no_other_from_being_renewed",
    ),
    Guard(
        "what goes for many waits for no lock",
        "plugins/storage/postgres/connecting.py",
        '        **({"lock_timeout": WAITS} if role in BRIEF else {}),\n',
        "",
        "tests/cluster/test_neighbours.py::test_ends_that_go_together_with_one_that_must_wait_do_not_wait",
    ),
    Guard(
        "one statement changes an agent once",
        SETTLING,
        "if one.change is None or firsts[one.agent_id] == n]",
        "]",
        "tests/cluster/test_neighbours.py::test_of_two_ends_of_one_agent_in_one_batch_the_later_one_counts",
    ),
)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_without_it_a_test_fails(tmp_path: Path, guard: Guard) -> None:
    copy = tmp_path / "checkout"
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    file = copy / guard.file
    text = file.read_text()
    assert text.count(guard.code) == 1, f"{guard.file} changed: say here what the guard looks like now"
    file.write_text(text.replace(guard.code, guard.without))
    tried = _tried(copy, guard.test)
    told = tried.stdout[-3000:] + tried.stderr[-1000:]
    assert tried.returncode == pytest.ExitCode.TESTS_FAILED, told
    assert f"FAILED {guard.test}" in told, told  # and not an error on the way to it


def _tried(checkout: Path, test: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, on the newest PostgreSQL; no other worker is told of it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PYTHONPATH"] = str(checkout)
    program = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "not pg15", test]
    return subprocess.run(program, cwd=checkout, env=env, capture_output=True, text=True, timeout=180, check=False)
