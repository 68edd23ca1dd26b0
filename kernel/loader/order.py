"""Plugins in the order of their list, less what `before` and `after` say."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from kernel.config import Mistake, PluginEntry, Where
from kernel.config.assign import short_name
from kernel.config.decode import nearest


def ordered(entries: Sequence[PluginEntry], mistakes: list[Mistake]) -> list[PluginEntry]:
    """Who says `before` or `after` moves next to the one it names; everybody else stays in place."""
    names = _names(entries)
    earlier: list[set[int]] = [set() for _ in entries]
    ranks: list[tuple[int, int]] = [(n, 0) for n in range(len(entries))]
    for n, entry in enumerate(entries):
        for name in (*entry.before, *entry.after):
            if name not in names:
                where = entry.neighbours.get(name, entry.where)
                told = f"expected the name of a listed plugin, found {name}: {nearest(name, names)}"
                mistakes.append(Mistake(where, f"plugins.{entry.use}", told))
        before = [names[name] for name in entry.before if name in names]
        after = [names[name] for name in entry.after if name in names]
        for other in before:
            earlier[other].add(n)
        earlier[n].update(after)
        ranks[n] = _rank(n, before, after)
    return [entries[n] for n in _sorted(earlier, ranks, entries, mistakes)]


def _names(entries: Sequence[PluginEntry]) -> dict[str, int]:
    """What each goes by: its `use`, or the last part of it where that is nobody else's."""
    shorts = [short_name(entry.use) for entry in entries]
    names = {short: n for n, short in enumerate(shorts) if shorts.count(short) == 1}
    return names | {entry.use: n for n, entry in enumerate(entries)}


def _rank(n: int, before: list[int], after: list[int]) -> tuple[int, int]:
    if before and min(before) < n:
        return min(before), -1
    if after and max(after) > n:
        return max(after), 1
    return n, 0


def _sorted(
    earlier: list[set[int]],
    ranks: list[tuple[int, int]],
    entries: Sequence[PluginEntry],
    mistakes: list[Mistake],
) -> list[int]:
    ready = [(ranks[n], n) for n in range(len(entries)) if not earlier[n]]
    heapq.heapify(ready)
    waiting = {n: set(others) for n, others in enumerate(earlier) if others}
    order: list[int] = []
    while ready:
        _, done = heapq.heappop(ready)
        order.append(done)
        for n in [n for n, others in waiting.items() if done in others]:
            waiting[n].discard(done)
            if not waiting[n]:
                del waiting[n]
                heapq.heappush(ready, (ranks[n], n))
    if waiting:
        circle = _circle(waiting)
        told = " before ".join(entries[n].use for n in circle)
        mistakes.append(Mistake(_place(entries, circle), "plugins", f"expected an order, found a circle: {told}"))
    return order


def _circle(waiting: dict[int, set[int]]) -> list[int]:
    """One closed path, in the order in which each claims to come first."""
    path = [next(iter(waiting))]
    while True:
        step = min(n for n in waiting[path[-1]] if n in waiting)
        if step in path:
            return [step, *reversed(path[path.index(step) :])]
        path.append(step)


def _place(entries: Sequence[PluginEntry], circle: list[int]) -> Where:
    for n in sorted(circle):
        for where in entries[n].neighbours.values():
            return where
    return entries[circle[0]].where
