"""Chooses the broker of a new agent: the one that was named, else the best of those that may run it."""

from __future__ import annotations

from kernel.api import shapes
from kernel.api.brokers import known_broker
from kernel.api.edge import Edge
from kernel.broker import Broker
from kernel.errors import NoRuntimeBroker
from kernel.project import Project
from kernel.route import PlacementRequest
from kernel.storage import Page


class Placement:
    """One choice for one creation. `hold`: the caller lets it wait for a broker that is away."""

    def __init__(self, edge: Edge, project: Project, slug: str, labels: dict[str, str], *, hold: bool) -> None:
        self._edge = edge
        self._project = project
        self._slug = slug
        self._labels = labels
        self._hold = hold

    async def choose(self, named: str | None) -> Broker:
        """Raises: NotFound when the named one is unknown; NoRuntimeBroker, with those that there are."""
        if named:
            return await known_broker(self._edge, named)
        candidates = await self._edge.storage.list_providers(self._project.id)
        reachable = [broker for broker in candidates if self._reachable(broker)]
        if self._project.default_runtime_broker_id:
            # Nobody else takes the place of the project's own choice.
            chosen = self._default(reachable)
        else:
            chosen = self._ranked(candidates) or (reachable[0] if len(reachable) == 1 else None)
        if chosen is None:
            raise await self._none(candidates, reachable)
        return chosen

    def _default(self, reachable: list[Broker]) -> Broker | None:
        wanted = self._project.default_runtime_broker_id
        return next((broker for broker in reachable if wanted in (broker.id, broker.slug, broker.name)), None)

    def _ranked(self, candidates: list[Broker]) -> Broker | None:
        """What a placement plugin likes best among those that can be reached."""
        request = PlacementRequest(
            project_id=self._project.id,
            agent_slug=self._slug,
            labels=self._labels,
            candidates=tuple(candidates),
        )
        known: dict[str, Broker] = {broker.id: broker for broker in candidates}
        answer = self._edge.hooks.rank_brokers.ask(request, accept=lambda ranked: _knows(ranked, known))
        for broker in answer.value if answer else ():
            if self._reachable(known[broker.id]):
                return known[broker.id]
        return None

    def _reachable(self, broker: Broker) -> bool:
        """Connected, or between two sockets, or called at its endpoint, or the caller waits for it."""
        missing = broker.missing_for
        returning = missing is not None and missing < self._edge.settings.dispatch.reconnect_grace
        if self._hold or broker.online or (returning and not broker.left_orderly):
            return True
        return broker.connection_kind == "direct" or self._edge.directs.answers(broker)

    async def _none(self, candidates: list[Broker], reachable: list[Broker]) -> NoRuntimeBroker:
        """Why there is none, with those that can be named: this project's, and whoever else is connected."""
        known = {broker.id for broker in candidates}
        others = [broker for broker in await self._edge.storage.list_brokers(Page()) if broker.id not in known]
        available = [*candidates, *(broker for broker in others if broker.online)]
        online = any(broker.online for broker in available)
        return NoRuntimeBroker(
            _why(self._project, reachable, storable=bool(candidates) and not self._hold, nameable=online),
            details={"availableBrokers": [shapes.broker_choice(broker) for broker in available]},
        )


def _why(project: Project, reachable: list[Broker], *, storable: bool, nameable: bool) -> str:
    """What is missing, and what would help."""
    if project.default_runtime_broker_id:
        missing, start = f"the default broker of project {project.slug} is not connected", "start it"
    elif reachable:
        return f"{len(reachable)} brokers could run it: name one with runtimeBrokerId"
    elif nameable:
        missing, start = "no broker of this project is connected", "start one (`pointsman broker run`)"
    else:
        missing, start = "no broker is connected", "start one (`pointsman broker run`)"
    fixes = [start]
    if storable:
        fixes.append("store it until then with `Prefer: deliver=hold` (`--hold`)")
    if nameable:
        fixes.append("name one that is with runtimeBrokerId")
    return f"{missing}: {', or '.join(fixes)}"


def _knows(ranked: object, known: dict[str, Broker]) -> bool:
    """A ranking is made of candidates, and of nothing else."""
    return isinstance(ranked, tuple) and all(isinstance(one, Broker) and one.id in known for one in ranked)
