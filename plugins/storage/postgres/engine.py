"""SQLAlchemy over the connections that `connecting` makes: for migrations, and for plugins with tables of their own."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from plugins.storage.postgres.connecting import Connection, Target, connect, json_out


def engine_to(target: Target, role: str, node_id: str, *, listen: bool = False) -> AsyncEngine:
    """An engine that keeps no connection: each use dials one and drops it."""

    async def dial(*_: object, **__: object) -> Connection:
        return await connect(target, role, node_id, listen=listen)

    kept = 0 if target.pooled(listen=listen) else 100
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=dial,
        poolclass=NullPool,
        connect_args={"prepared_statement_cache_size": kept, "prepared_statement_name_func": _name},
        json_serializer=_json_text,
        json_deserializer=msgspec.json.decode,
    )


def _name() -> str:
    """Behind a pooler a prepared statement may meet one of another hub: no two share a name."""
    return f"pointsman_{uuid4().hex}"


def _json_text(value: Any) -> str:
    return json_out(msgspec.json.encode(value).decode()).decode()
