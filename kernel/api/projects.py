"""Projects: namespaces of agents."""

from __future__ import annotations

import msgspec

from kernel.api import shapes
from kernel.api.edge import Edge
from kernel.api.exchange import Asked, Responded, tell
from kernel.api.pages import PageQuery, listed
from kernel.api.preferences import key_of
from kernel.api.routes import route
from kernel.clock import is_uuid
from kernel.errors import AlreadyExists, NotFound
from kernel.project import Project, is_slug, slug_of
from kernel.storage import IdempotencyKey, ProjectEdit

LONGEST_NAME = 255
MOST_SLUGS = 100
"""How many numbered slugs are tried for one name."""


class NewProject(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    id: str | None = None
    slug: str | None = None
    git_remote: str | None = None
    default_runtime_broker_id: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    visibility: str = "private"

    def problems(self) -> dict[str, str]:
        found = name_problems(self.name)
        if self.id is not None and not is_uuid(self.id):
            found["id"] = "expected a UUID with dashes"
        if self.slug is not None and not is_slug(self.slug):
            found["slug"] = "expected lower-case letters, digits and single dashes, at most 63"
        return found


class ProjectPatch(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str | None = None
    git_remote: str | None = None
    default_runtime_broker_id: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    visibility: str | None = None

    def problems(self) -> dict[str, str]:
        return {} if self.name is None else name_problems(self.name)


def name_problems(name: str) -> dict[str, str]:
    if not slug_of(name):
        return {"name": "expected at least one letter or digit (a–z, 0–9)"}
    if len(name) > LONGEST_NAME or not name.isprintable():
        return {"name": f"expected at most {LONGEST_NAME} printable characters"}
    return {}


class Projects:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    @route(action="project.list", access="user", query=PageQuery)
    async def on_get(self, req: Asked, resp: Responded, query: PageQuery) -> None:
        storage = self._edge.storage
        rows = await storage.list_projects(query.page)
        total = await storage.count_projects()
        tell(
            resp,
            listed("projects", rows, query.page, created=lambda row: row.created, show=shapes.project, total=total),
        )

    @route(action="project.create", access="user", body=NewProject)
    async def on_post(self, req: Asked, resp: Responded, body: NewProject) -> None:
        """201; 200 with the one that exists when the client's own id is known."""
        if body.id:
            known = await self._edge.storage.find_project(body.id.lower())
            if known and known.id == body.id.lower():
                tell(resp, shapes.project(known))
                return
        key = key_of(req.lower_headers, str(req.principal), req.method, req.path, await req.raw())
        tell(resp, shapes.project(await self._create(_wanted(body, req, self._edge), body.slug is None, key)), 201)

    async def _create(self, project: Project, numbered: bool, key: IdempotencyKey | None) -> Project:
        """A slug that nobody asked for gives way: `name`, `name-1`, `name-2`, …"""
        for n in range(MOST_SLUGS):
            try:
                created, _ = await self._edge.storage.create_project(_with_number(project, n), key)
                return created
            except AlreadyExists:
                if not numbered:
                    raise
        raise AlreadyExists(f"{MOST_SLUGS} projects are called {project.slug}: choose another name")

    @route(action="project.show", access="user")
    async def on_get_one(self, req: Asked, resp: Responded, project: str) -> None:
        tell(resp, shapes.project(await known_project(self._edge, project)))

    @route(action="project.edit", access="user", body=ProjectPatch)
    async def on_patch_one(self, req: Asked, resp: Responded, project: str, body: ProjectPatch) -> None:
        row = await known_project(self._edge, project)
        edit = ProjectEdit(project_id=row.id, **msgspec.structs.asdict(body))
        tell(resp, shapes.project(await self._edge.storage.edit_project(edit)))

    @route(action="project.delete", access="user")
    async def on_delete_one(self, req: Asked, resp: Responded, project: str) -> None:
        await self._edge.storage.delete_project((await known_project(self._edge, project)).id)
        resp.status = 204


def _wanted(body: NewProject, req: Asked, edge: Edge) -> Project:
    owner = req.principal.id
    return Project(
        id=body.id.lower() if body.id else edge.clock.uuid7(),
        name=body.name,
        slug=body.slug or slug_of(body.name),
        git_remote=body.git_remote,
        default_runtime_broker_id=body.default_runtime_broker_id,
        labels=body.labels,
        annotations=body.annotations,
        visibility=body.visibility,
        created_by=owner,
        owner_id=owner,
    )


def _with_number(project: Project, n: int) -> Project:
    if n == 0:
        return project
    return msgspec.structs.replace(project, slug=f"{project.slug[:58]}-{n}")


async def known_project(edge: Edge, ref: str) -> Project:
    """By id or slug. Raises: NotFound."""
    found = await edge.storage.find_project(ref)
    if found is None:
        raise NotFound(f"there is no project {ref}")
    return found
