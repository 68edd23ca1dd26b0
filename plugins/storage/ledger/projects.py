"""Projects, and the brokers that may run their agents."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kernel import (
    Broker,
    IdempotencyKey,
    InvalidState,
    NotFound,
    Page,
    Project,
    ProjectEdit,
    Provider,
    Repeated,
    is_uuid,
)
from plugins.storage.ledger.keys import find_key, in_turn, keep_key
from plugins.storage.ledger.pages import beyond, edge
from plugins.storage.ledger.query import NOW, Query, Tx, first, param
from plugins.storage.ledger.rows import BROKER, NOBODY, PROJECT
from plugins.storage.schema import agents, project_contributors, projects, runtime_brokers

_c = projects.c
_FIELDS = Project.__struct_fields__
_INSERT = Query(
    sa.insert(projects).values({name: param(name) for name in _FIELDS}).returning(*PROJECT.columns), PROJECT.read
)
_BY_ID = Query(sa.select(*PROJECT.columns).where(_c.id == param("ref")), PROJECT.read)
# Alone with the row: an agent that is being made in it is there, or will find it gone.
_LOCKED = Query[int](sa.select(sa.literal_column("1")).where(_c.id == param("ref")).with_for_update(), first)
_BY_SLUG = Query(sa.select(*PROJECT.columns).where(_c.slug == param("ref")), PROJECT.read)
_COUNT = Query[int](sa.select(sa.func.count()).select_from(projects), first)
_DELETE = Query[Any](sa.delete(projects).where(_c.id == param("which")))
_EDITABLE = [name for name in ProjectEdit.__struct_fields__ if name != "project_id"]
_EDIT = Query(
    sa.update(projects)
    .values({name: sa.func.coalesce(param(f"to_{name}", _c[name].type), _c[name]) for name in _EDITABLE})
    .values(updated=NOW)
    .where(_c.id == param("which"))
    .returning(*PROJECT.columns),
    PROJECT.read,
)

_newest = sa.select(*PROJECT.columns).order_by(_c.created.desc(), _c.id.desc()).limit(param("take"))
_LIST = Query(_newest, PROJECT.read)
_LIST_ON = Query(_newest.where(beyond(_c.created, _c.id)), PROJECT.read)

_LIVE_AGENTS = Query[int](
    sa.select(sa.literal_column("1"))
    .where(agents.c.project_id == param("which"), agents.c.deleted_at.is_(None))
    .limit(1),
    first,
)
_DELETE_AGENTS = Query[Any](
    sa.delete(agents).where(agents.c.project_id == param("which"), agents.c.deleted_at.is_not(None))
)


def create_project(tx: Tx, project: Project, key: IdempotencyKey | None) -> tuple[Project, Repeated | None]:
    """Raises: AlreadyExists when the slug is taken; IdempotencyConflict."""
    if key:
        in_turn(tx, key)
    repeated = find_key(tx, key) if key else None
    if repeated:
        return _again(tx, repeated), repeated
    values = {name: getattr(project, name) for name in _FIELDS}
    made = tx.one(_INSERT, **{**values, "created": tx.now, "updated": tx.now})
    assert made is not None
    if key:
        keep_key(tx, key, status=201, answer=msgspec.json.encode(made))
    return made, None


def _again(tx: Tx, repeated: Repeated) -> Project:
    """The project that the key made, as it is now; as it was, if it was deleted since."""
    made = msgspec.json.decode(repeated.answer or b"", type=Project)
    return tx.one(_BY_ID, ref=made.id) or made


def find_project(tx: Tx, ref: str) -> Project | None:
    if is_uuid(ref):
        found = tx.one(_BY_ID, ref=ref.lower())
        if found:
            return found
    return tx.one(_BY_SLUG, ref=ref.lower()) if _may_be_name(ref) else None


def list_projects(tx: Tx, page: Page) -> list[Project]:
    return tx.all(_LIST_ON if page.after else _LIST, take=page.limit + 1, **edge(page))


def count_projects(tx: Tx) -> int:
    return tx.one(_COUNT) or 0


def edit_project(tx: Tx, edit: ProjectEdit) -> Project:
    """Raises: NotFound."""
    which = edit.project_id.lower() if is_uuid(edit.project_id) else NOBODY
    edited = tx.one(_EDIT, which=which, **{f"to_{name}": getattr(edit, name) for name in _EDITABLE})
    if edited is None:
        raise NotFound(f"there is no project {edit.project_id}")
    return edited


def delete_project(tx: Tx, project_id: str) -> None:
    """Its agents that are deleted go with it. Raises: NotFound; InvalidState while it has live agents."""
    which = project_id.lower()
    if not is_uuid(project_id) or tx.one(_LOCKED, ref=which) is None:
        raise NotFound(f"there is no project {project_id}")
    if tx.one(_LIVE_AGENTS, which=which):
        raise InvalidState("the project still has agents: delete them first")
    tx.run(_DELETE_AGENTS, which=which)
    tx.run(_DELETE, which=which)


def _may_be_name(ref: str) -> bool:
    """What cannot be encoded is no name of anything."""
    return ref.isprintable()


# -- providers ----------------------------------------------------------------------------------------------

_p = project_contributors.c
_provide = postgresql.insert(project_contributors).values(
    id=param("id"),
    project_id=param("project_id"),
    broker_id=param("broker_id"),
    broker_name=param("broker_name"),
    linked_by=param("linked_by"),
    linked_at=NOW,
)
_PROVIDE = Query[Any](
    _provide.on_conflict_do_update(
        index_elements=[_p.project_id, _p.broker_id], set_={"broker_name": _provide.excluded.broker_name}
    )
)
_provides = (
    sa.select(sa.literal_column("1"))
    .where(_p.project_id == param("project"), _p.broker_id == runtime_brokers.c.id)
    .correlate(runtime_brokers)
    .exists()
)
_PROVIDERS = Query(
    sa.select(*BROKER.columns)
    .where(runtime_brokers.c.deleted_at.is_(None), sa.or_(runtime_brokers.c.auto_provide, _provides))
    .order_by(runtime_brokers.c.created, runtime_brokers.c.id),
    BROKER.read,
)


def provide(tx: Tx, provider: Provider) -> None:
    """Let a broker run a project's agents. Raises: Invalid when either does not exist."""
    tx.run(
        _PROVIDE,
        id=str(uuid.uuid4()),
        project_id=provider.project_id,
        broker_id=provider.broker_id,
        broker_name=provider.broker_name,
        linked_by=provider.linked_by,
    )


def list_providers(tx: Tx, project_id: str) -> list[Broker]:
    return tx.all(_PROVIDERS, project=project_id.lower()) if is_uuid(project_id) else []
