"""The HTTP API seen from outside: one hub, one broker that a test can script."""

from __future__ import annotations

from tests.harness.fixtures import hub, ours, tasks

__all__ = ["hub", "ours", "tasks"]
