"""Where programs that go on until they are stopped tell what they do: standard error, a line each."""

from __future__ import annotations

import logging


def log_to_stderr(*chatty: str) -> None:
    """Of the `chatty` libraries only what they warn of."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s %(message)s")
    for name in chatty:
        logging.getLogger(name).setLevel(logging.WARNING)
