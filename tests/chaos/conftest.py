"""A server of its own for each storm: it is killed and frozen. POINTSMAN_CHAOS=long runs what takes minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kernel.testing.postgres import Server

collect_ignore = [] if os.environ.get("POINTSMAN_CHAOS") == "long" else ["test_long.py", "test_stages.py"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
