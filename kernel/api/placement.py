"""Chooses the broker of a new agent: the one that was named, else the best of those that may run it."""

from __future__ import annotations

from kernel.api import shapes
from kernel.api.brokers import known_broker
from kernel.api.edge import Edge
from kernel.broker import Broker
from kernel.errors import NoRuntimeBroker
from kernel.project import Project
from kernel.route import PlacementRequest


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
        default = self._default(candidates)
        if default:
            return default
        return self._ranked(candidates) or self._only(candidates)

    def _default(self, candidates: list[Broker]) -> Broker | None:
        """Raises: NoRuntimeBroker when the project's own choice cannot be reached: nobody else takes its place."""
        wanted = self._project.default_runtime_broker_id
        if not wanted:
            return None
        for broker in candidates:
            if wanted in (broker.id, broker.slug, broker.name) and self._reachable(broker):
                return broker
        raise self._none(candidates, f"the default broker of project {self._project.slug} is not connected")

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

    def _only(self, candidates: list[Broker]) -> Broker:
        online = [broker for broker in candidates if self._reachable(broker)]
        if len(online) == 1:
            return online[0]
        found = "several brokers could run it" if online else "no broker of this project is connected"
        raise self._none(candidates, found)

    def _reachable(self, broker: Broker) -> bool:
        """Connected, or between two sockets, or the caller waits for it."""
        missing = broker.missing_for
        returning = missing is not None and missing < self._edge.settings.dispatch.reconnect_grace
        return self._hold or broker.online or (returning and not broker.left_orderly)

    def _none(self, candidates: list[Broker], why: str) -> NoRuntimeBroker:
        return NoRuntimeBroker(
            f"{why}: name one with runtimeBrokerId",
            details={"availableBrokers": [shapes.broker_choice(broker) for broker in candidates]},
        )


def _knows(ranked: object, known: dict[str, Broker]) -> bool:
    """A ranking is made of candidates, and of nothing else."""
    return isinstance(ranked, tuple) and all(isinstance(one, Broker) and one.id in known for one in ranked)
