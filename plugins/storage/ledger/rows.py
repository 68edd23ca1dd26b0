"""How a row becomes a value of the kernel: for each struct its columns, in order, and what is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa

from kernel import Agent, Broker, Failure, Lane, Message, Node, Op, Phase, Project, State
from plugins.storage.ledger.query import ONE, Seconds, ago, any_of
from plugins.storage.schema import Flag, Json, agents, hub_nodes, messages, parse, projects, runtime_brokers

NOBODY = "00000000-0000-0000-0000-000000000000"
"""An id that no row has, for what is no id."""
T = TypeVar("T", bound=msgspec.Struct)
Decoder = Callable[[Any], Any]


def _failure(text: str) -> Failure:
    return msgspec.json.decode(text, type=Failure)


_BY_FIELD: dict[str, Decoder] = {
    "op": Op.named,
    "lane": Lane,
    "state": State,
    "dispatch_state": State,
    "phase": Phase,
    "error": _failure,
}


class Shape(Generic[T]):
    """The columns of one struct, labelled as its fields; fields that no column holds keep their default."""

    def __init__(self, struct: type[T], columns: Mapping[str, Any]) -> None:
        self._struct = struct
        self._names = tuple(columns)
        self.columns = [column.label(name) for name, column in columns.items()]
        self._decoders = [
            (at, decoder) for at, (name, column) in enumerate(columns.items()) if (decoder := _decoder(name, column))
        ]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: tuple[Any, ...], at: int = 0) -> T:
        values = list(row[at : at + len(self._names)])
        for place, decode in self._decoders:
            if values[place] is not None:
                values[place] = decode(values[place])
        return self._struct(**dict(zip(self._names, values, strict=True)))


def _decoder(name: str, column: Any) -> Decoder | None:
    if name in _BY_FIELD:
        return _BY_FIELD[name]
    if isinstance(column.type, Json):
        return parse
    return bool if isinstance(column.type, Flag | sa.Boolean) else None


def same_names(struct: type[msgspec.Struct], table: sa.Table, **others: Any) -> dict[str, Any]:
    """A struct's fields from the columns of the same name; `others` for those that differ."""
    return {name: others.get(name, table.c.get(name)) for name in struct.__struct_fields__}


# -- a broker's affinity, computed when it is read -------------------------------------------------------------

_b = runtime_brokers.c
_alive = any_of(
    sa.select(ONE)
    .where(
        hub_nodes.c.id == _b.connected_hub_id,
        hub_nodes.c.lost_at.is_(None),
        hub_nodes.c.beat_at >= ago("lost_after"),
    )
    .correlate(runtime_brokers)
).is_not(None)
held = sa.and_(_b.connected_hub_id.is_not(None), _alive, _b.renewed_at >= ago("stale_after"))
"""A live node holds it and renewed it lately."""
last_held = sa.case((_b.connected_hub_id.is_not(None), _b.renewed_at), else_=_b.disconnected_at)
"""When it was last held, of a broker that is not; NULL when it never was."""
_missing_for = sa.case((held, None), else_=Seconds(last_held))

# -- the shapes ------------------------------------------------------------------------------------------------

NODE = Shape(Node, same_names(Node, hub_nodes, silent_for=Seconds(hub_nodes.c.beat_at)))
PROJECT = Shape(Project, same_names(Project, projects))
AGENT = Shape(Agent, same_names(Agent, agents, config=agents.c.applied_config))
MESSAGE = Shape(Message, same_names(Message, messages))
BROKER = Shape(
    Broker,
    same_names(
        Broker,
        runtime_brokers,
        capabilities=_b.announced,
        online=sa.type_coerce(sa.and_(held, _b.connection_kind == "socket"), Flag()),
        missing_for=_missing_for,
    ),
)
