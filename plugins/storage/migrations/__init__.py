"""Brings a database to the schema of this code, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from kernel import Misconfigured, SchemaState
from plugins.storage.schema import metadata


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The revision that this code writes and reads."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None
    return found


def current(connection: sa.Connection) -> str | None:
    """The revision of the database; None when it is empty. Raises: Misconfigured when it names several."""
    found = MigrationContext.configure(connection).get_current_heads()
    if len(found) > 1:
        raise Misconfigured(
            f"the table alembic_version names the schemas {', '.join(found)} at once: delete the row that is not true"
        )
    return found[0] if found else None


def state(found: str | None) -> SchemaState:
    """How the revision `found` stands to this code."""
    revisions = ScriptDirectory.from_config(_config()).walk_revisions()
    known = found is None or found in {revision.revision for revision in revisions}
    return SchemaState(found=found, wanted=head(), known=known)


def upgrade(connection: sa.Connection) -> None:
    """Run what is missing, in the transaction that the caller opened.

    Raises: Misconfigured when the schema is newer than this code.
    """
    now = state(current(connection))
    if not now.known:
        raise Misconfigured(
            f"the database has schema {now.found}, which is newer than this program (it knows up to {now.wanted}): "
            "start the version that wrote it, or a later one"
        )
    if now.found != now.wanted:
        command.upgrade(_config(connection), "head")


def drift(connection: sa.Connection) -> list[Any]:
    """How the database differs from `plugins.storage.schema`; empty when it does not."""
    dialect = connection.dialect.name

    def ours(thing: Any, *_: object) -> bool:
        return bool(thing.info.get("only", dialect) == dialect)

    options = {
        "compare_type": True,
        "compare_server_default": True,
        "target_metadata": metadata,
        "include_object": ours,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))
