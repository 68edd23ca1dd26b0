"""What every test runs under: one event loop, a real PostgreSQL for who asks, and a last line that counts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.postgres import every_postgres, every_postgres_dsn, postgres, postgres_dsn, postgres_servers

__all__ = ["every_postgres", "every_postgres_dsn", "postgres", "postgres_dsn", "postgres_servers"]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The loop that the hub itself runs on."""
    return "asyncio", {"use_uvloop": True}


def _counts(config: pytest.Config) -> tuple[int, int, int]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    stats: dict[str, list[Any]] = reporter.stats if reporter is not None else {}

    def total(*outcomes: str) -> int:
        return sum(len(stats.get(outcome, ())) for outcome in outcomes)

    return total("passed", "xpassed"), total("failed", "error"), total("skipped", "xfailed")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip hides something: the suite fails on one."""
    if _counts(session.config)[2] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        print("{} passed, {} failed, {} skipped".format(*_counts(config)))
