"""Agents: found with all that a call must know, changed by ends, edits and reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import (
    ACTIVITIES,
    LASTING,
    Agent,
    AgentChange,
    AgentEdit,
    AgentFilter,
    AgentView,
    NotFound,
    Page,
    Phase,
    VersionConflict,
    is_uuid,
)
from plugins.storage.ledger.homes import HOMES, Home
from plugins.storage.ledger.pages import beyond, edge
from plugins.storage.ledger.query import NOW, ONE, Hidden, Query, Tx, among, any_of, first, param
from plugins.storage.ledger.rows import AGENT, BROKER, NOBODY, PROJECT
from plugins.storage.schema import Flag, agents, projects, runtime_brokers

_c = agents.c
_live = _c.deleted_at.is_(None)
_THIS = Query(sa.select(*AGENT.columns).where(_c.id == param("which")), AGENT.read)

_COLUMNS = {("applied_config" if name == "config" else name): name for name in Agent.__struct_fields__}
_EDITED = {
    "name": "name",
    "labels": "labels",
    "annotations": "annotations",
    "task_summary": "task_summary",
    "applied_config": "config",
}

# -- found --------------------------------------------------------------------------------------------------


def _waits(home: Home) -> Any:
    found = sa.select(ONE).where(home.c.broker_id == _c.runtime_broker_id, home.agent == _c.id, home.unfinished())
    return any_of(found.correlate(agents)).is_not(None)


WAITS = [_waits(home) for home in HOMES]
"""Whether something of the agent waits, for each lane."""
PROJECT_THERE = projects.c.id == _c.project_id
BROKER_THERE = sa.and_(runtime_brokers.c.id == _c.runtime_broker_id, Hidden(runtime_brokers.c.deleted_at).is_(None))
VIEW = (
    sa.select(*WAITS, *AGENT.columns, *PROJECT.columns, *BROKER.columns)
    .select_from(agents)
    .join(projects, PROJECT_THERE)
    .outerjoin(runtime_brokers, BROKER_THERE)
)


def read_view(row: tuple[Any, ...]) -> AgentView:
    at_project = len(HOMES) + len(AGENT)
    at_broker = at_project + len(PROJECT)
    return AgentView(
        agent=AGENT.read(row, len(HOMES)),
        project=PROJECT.read(row, at_project),
        broker=BROKER.read(row, at_broker) if row[at_broker] is not None else None,
        waiting=frozenset(home.lane for home, waits in zip(HOMES, row, strict=False) if waits),
    )


_BY_ID = Query(VIEW.where(_c.id == param("ref")), read_view)
_BY_SLUG = Query(VIEW.where(_c.project_id == param("project"), _c.slug == param("ref"), _live), read_view)


def find_agent(tx: Tx, ref: str, project_id: str | None) -> AgentView | None:
    """By id, within the project if one is named; else by slug, which only means something within a project."""
    if project_id is not None and not is_uuid(project_id):
        return None
    project = project_id.lower() if project_id else None
    if is_uuid(ref):
        found = tx.one(_BY_ID, ref=ref.lower())
        if found and project in (None, found.project.id):
            return found
    if project is None or not ref.isprintable():
        return None
    return tx.one(_BY_SLUG, project=project, ref=ref.lower())


_OF_IDS = Query(VIEW.where(among(_c.id, "refs")), read_view)
_OF_SLUGS = Query(VIEW.where(_c.project_id == param("project"), among(_c.slug, "refs", sa.Text), _live), read_view)


def find_agents(tx: Tx, refs: Sequence[str], project_id: str | None) -> dict[str, AgentView]:
    """As `find_agent` finds each, in two statements for all."""
    if project_id is not None and not is_uuid(project_id):
        return {}
    project = project_id.lower() if project_id else None
    ids = sorted({ref.lower() for ref in refs if is_uuid(ref)})
    views = tx.all(_OF_IDS, refs=ids) if ids else []
    found = {view.agent.id.lower(): view for view in views if project in (None, view.project.id)}
    slugs = sorted({ref.lower() for ref in refs if ref.isprintable() and ref.lower() not in found})
    if project and slugs:
        found |= {view.agent.slug: view for view in tx.all(_OF_SLUGS, project=project, refs=slugs)}
    return {ref: found[ref.lower()] for ref in refs if ref.lower() in found}


@cache
def _listing(given: frozenset[str], deleted: bool, onward: bool, counting: bool) -> Query[Any]:
    terms: list[Any] = [_c[name] == param(f"of_{name}") for name in sorted(given)]
    if not deleted:
        terms.append(_live)
    if counting:
        return Query(sa.select(sa.func.count()).select_from(agents).where(*terms), first)
    if onward:
        terms.append(beyond(_c.created, _c.id))
    newest = sa.select(*AGENT.columns).where(*terms).order_by(_c.created.desc(), _c.id.desc())
    return Query(newest.limit(param("take")), AGENT.read)


def _given(where: AgentFilter) -> dict[str, str]:
    fields = ("project_id", "runtime_broker_id", "slug", "phase")
    return {name: value.lower() for name in fields if (value := getattr(where, name)) is not None}


def _may_find(where: AgentFilter) -> bool:
    """What is no id names nothing."""
    return all(given is None or is_uuid(given) for given in (where.project_id, where.runtime_broker_id))


def list_agents(tx: Tx, where: AgentFilter, page: Page) -> list[Agent]:
    if not _may_find(where):
        return []
    given = _given(where)
    query: Query[Agent] = _listing(frozenset(given), where.include_deleted, page.after is not None, False)
    return tx.all(query, take=page.limit + 1, **_named(given), **edge(page))


def count_agents(tx: Tx, where: AgentFilter) -> int:
    if not _may_find(where):
        return 0
    given = _given(where)
    query: Query[int] = _listing(frozenset(given), where.include_deleted, False, True)
    return tx.one(query, **_named(given)) or 0


def _named(given: dict[str, str]) -> dict[str, str]:
    return {f"of_{name}": value for name, value in given.items()}


# -- written ------------------------------------------------------------------------------------------------

_INSERT = Query[Any](
    postgresql.insert(agents)
    .values({_c[name].name: param(_c[name].name) for name in _COLUMNS})
    .on_conflict_do_nothing(index_elements=[_c.id])
)


def insert_agent(tx: Tx, agent: Agent) -> None:
    """Raises: AlreadyExists when its slug is taken; Invalid when its project does not exist."""
    values = {column: getattr(agent, field) for column, field in _COLUMNS.items()}
    tx.run(_INSERT, **{**values, "created": tx.now, "updated": tx.now})


_RUNNING = sa.literal_column(f"'{Phase.RUNNING}'", sa.Text())
CHANGE: dict[str, Any] = {
    "phase": sa.Text(),
    "run_id": _c.run_id.type,
    "activity": sa.Text(),
    "detail": _c.detail.type,
    "image": sa.Text(),
    "runtime": sa.Text(),
    "message": sa.Text(),
    "gone": Flag(),
}
"""What an intent's end says of its agent; NULL leaves a value alone."""


def changed(said: Callable[[str], Any]) -> dict[str, Any]:
    """What the row becomes, by what `said` gives for each of `CHANGE`; any edge may be taken. Activities mean
    something while the agent runs, in the run they were told of; a few outlast it."""
    phase = sa.func.coalesce(said("phase"), _c.phase)
    other_run = sa.and_(said("run_id").is_not(None), sa.or_(_c.run_id.is_(None), _c.run_id != said("run_id")))
    starts = sa.and_(phase == _RUNNING, sa.or_(_c.phase != _RUNNING, other_run))
    told = sa.func.coalesce(said("activity"), _c.activity)
    running = sa.case((said("activity").is_not(None), said("activity")), (starts, None), else_=_c.activity)
    resting = sa.case((sa.or_(*(told == lasting for lasting in sorted(LASTING))), told), else_=None)
    kept = ("run_id", "detail", "image", "runtime", "message")
    return {
        **{name: sa.func.coalesce(said(name), _c[name]) for name in kept},
        "phase": phase,
        "activity": sa.case((phase == _RUNNING, running), else_=resting),
        "started_at": sa.case((starts, NOW), else_=_c.started_at),
        "deleted_at": sa.case((said("gone"), sa.func.coalesce(_c.deleted_at, NOW)), else_=_c.deleted_at),
        "updated": NOW,
        "state_version": _c.state_version + 1,
    }


def told_of(change: AgentChange) -> dict[str, Any]:
    """The values of `CHANGE`. What is no word of ours is no activity; an empty one says nothing."""
    return {
        "phase": change.phase,
        "run_id": change.run_id or None,
        "activity": change.activity if change.activity in ACTIVITIES else None,
        "detail": change.detail,
        "image": change.image or None,
        "runtime": change.runtime or None,
        "message": change.message,
        "gone": change.removal == "soft",
    }


_CHANGE = Query(
    sa.update(agents)
    .values(changed(lambda name: param(f"to_{name}", CHANGE[name])))
    .where(_c.id == param("which"))
    .returning(*AGENT.columns),
    AGENT.read,
)
_REMOVE = Query[Any](sa.delete(agents).where(_c.id == param("which")))


def agent_by_id(tx: Tx, agent_id: str) -> Agent | None:
    return tx.one(_THIS, which=agent_id)


def change_agent(tx: Tx, agent_id: str, change: AgentChange | None) -> Agent | None:
    """What the end of an intent makes of its agent. Gives the agent as stored after it."""
    if change is None:
        return agent_by_id(tx, agent_id)
    if change.removal == "row":
        tx.run(_REMOVE, which=agent_id)
        return None
    return tx.one(_CHANGE, which=agent_id, **{f"to_{name}": value for name, value in told_of(change).items()})


_EDIT = Query(
    sa.update(agents)
    .values(
        {
            **{name: sa.func.coalesce(param(f"to_{name}", _c[name].type), _c[name]) for name in _EDITED},
            "updated": NOW,
            "state_version": _c.state_version + 1,
        }
    )
    .where(
        _c.id == param("which"),
        _live,
        sa.or_(param("version", sa.Integer()).is_(None), _c.state_version == param("version", sa.Integer())),
    )
    .returning(*AGENT.columns),
    AGENT.read,
)


def edit_agent(tx: Tx, edit: AgentEdit) -> Agent:
    """Raises: NotFound; VersionConflict when it was changed since it was read."""
    values = {f"to_{column}": getattr(edit, field) for column, field in _EDITED.items()}
    which = edit.agent_id.lower() if is_uuid(edit.agent_id) else NOBODY
    edited = tx.one(_EDIT, which=which, version=edit.state_version, **values)
    if edited is not None:
        return edited
    agent = tx.one(_THIS, which=which)
    if agent is None or agent.deleted_at is not None:
        raise NotFound(f"there is no agent {edit.agent_id}")
    raise VersionConflict(
        f"the agent is at stateVersion {agent.state_version}, not {edit.state_version}: read it again and repeat"
    )
