"""Which slot works on which expert's requests next: a pure function of what the pool knows.

A slot keeps the engine that it has while there is work for it. A free slot takes the longest group that nobody works on
and that it has not had before (longest processing time first); where every group is taken it helps with the longest
one, if the work that is left pays for another load. A slot never goes back to an engine that it has given up in this
stage while another idle slot could have the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """A slot as the pool sees it. `leases` counts chunks in flight; `had` are the engine keys it held in this stage,
    `barred` those that it could not load.
    """

    id: str
    resident: str = ""
    leases: int = 0
    had: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    tensor_parallel_size: int = 1
    available: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """The requests of one engine key: chunks waiting, and the estimated output tokens of what is not finished."""

    key: str
    waiting: int
    tokens: int
    tensor_parallel_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a load costs and how fast an engine writes; seconds and tokens per second, measured where known."""

    load_s: Mapping[str, float]
    tokens_per_s: Mapping[str, float]
    default_load_s: float = 5.0
    default_tokens_per_s: float = 500.0

    def load(self, key: str) -> float:
        """Seconds to start an engine of that key."""
        return self.load_s.get(key, self.default_load_s)

    def work(self, key: str, tokens: int) -> float:
        """Seconds that one engine of that key needs to write that many tokens."""
        return tokens / max(self.tokens_per_s.get(key, self.default_tokens_per_s), 1e-9)


@dataclass(frozen=True, slots=True)
class Lease:
    """Give a slot the next chunk of a key (loading its engine first where another is resident)."""

    slot: str
    key: str


def next_lease(slots: Sequence[SlotView], groups: Sequence[GroupView], costs: Costs, depth: int = 2) -> Lease | None:
    """The next thing to do, or None while nothing can or should be started.

    `depth` chunks are in flight on a slot at most: the second keeps its batch full while the first one drains. Call it
    again, with the lease taken into account, until it returns None.
    """
    waiting = {g.key: g for g in groups if g.waiting}
    open_slots = [s for s in slots if s.available and s.leases < depth]
    for slot in sorted(open_slots, key=lambda s: (s.leases, s.id)):
        if slot.resident in waiting:
            return Lease(slot.id, slot.resident)
    idle = sorted((s for s in open_slots if not s.leases), key=lambda s: s.id)
    for again in (False, True):
        for slot in idle:
            key = _best_group(slot, slots, waiting, costs, again=again)
            if key:
                return Lease(slot.id, key)
    return None


def _best_group(
    slot: SlotView, slots: Sequence[SlotView], waiting: Mapping[str, GroupView], costs: Costs, *, again: bool
) -> str:
    """What an idle slot should load, "" for nothing: with `again` also an engine that it has had, or a shared one."""
    fits = [
        g for g in waiting.values() if g.tensor_parallel_size <= slot.tensor_parallel_size and g.key not in slot.barred
    ]
    hosts = {g.key: sum(s.resident == g.key and s.available for s in slots) for g in fits}
    untouched = [g for g in fits if not hosts[g.key] and (again or g.key not in slot.had)]
    if untouched:
        return max(untouched, key=lambda g: (costs.load(g.key) + costs.work(g.key, g.tokens), g.key)).key
    if not again:
        return ""
    # Another host ends a group sooner if (work + load) / (hosts + 1) < work / hosts, that is, if load < work / hosts.
    left = {g.key: costs.work(g.key, g.tokens) / hosts[g.key] for g in fits}
    worth = [(seconds, key) for key, seconds in left.items() if seconds > costs.load(key)]
    return max(worth)[1] if worth else ""
