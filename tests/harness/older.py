"""`pointsman` of an earlier version, which lacks one operation: `python -m tests.harness.older OP serve …`."""

from __future__ import annotations

import importlib.metadata
import sys

from kernel import drain
from kernel.intent import Op

VERSION = "0.0.1"


def forget(name: str) -> None:
    """The operation is no member any more: rows that name it are read as an older hub reads them."""
    member = Op(name)
    Op._member_names_.remove(member.name)
    del Op._value2member_map_[name]
    drain.OPS = frozenset(Op)


def be_older() -> None:
    true = importlib.metadata.version
    importlib.metadata.version = lambda distribution_name: (
        VERSION if distribution_name == "pointsman" else true(distribution_name)
    )


if __name__ == "__main__":
    be_older()
    forget(sys.argv.pop(1))
    from kernel.__main__ import main

    main()
