"""Schedules made beforehand, to compare with: round-robin, whole groups longest first, and pure data parallelism.

They run on the same simulated engines, but load each in the open.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from symoe_ray.simulated_engine import Cohort, SimulatedEngine
from symoe_ray.simulation import Outcome, SimulatedGroup


def simulate_fixed(
    groups: Mapping[str, SimulatedGroup],
    work: Sequence[Sequence[tuple[str, tuple[Cohort, ...]]]],
    *,
    barrier: bool = False,
) -> Outcome:
    """A plan made beforehand: for each slot the (key, lengths) it works through, one after another, each with a load in
    the open. With `barrier` all slots wait for one another before each next entry.
    """
    times = [0.0] * len(work)
    loads: Counter[str] = Counter()
    for turn in range(max((len(own) for own in work), default=0)):
        for index, own in enumerate(work):
            if turn < len(own) and own[turn][1]:
                key, cohorts = own[turn]
                loads[key] += 1
                times[index] = _worked(groups[key], cohorts, times[index] + groups[key].cost.load_s)
        if barrier:
            times = [max(times)] * len(times)
    return Outcome(
        makespan_s=max(times), rows=sum(g.rows for g in groups.values()),
        tokens=sum(g.tokens for g in groups.values()), loads=dict(loads), spans=(),
    )  # fmt: skip


def _worked(group: SimulatedGroup, cohorts: tuple[Cohort, ...], begin_s: float) -> float:
    engine = SimulatedEngine(cost=group.cost, capacity=group.capacity, time_s=begin_s)
    engine.add(list(cohorts), begin_s)
    while engine.running:
        engine.finish()
    return engine.time_s


def round_robin(groups: Sequence[SimulatedGroup], slots: int) -> Outcome:
    """Expert by expert, each request to the next slot: all slots hold the same expert and wait for one another."""
    work = [[(g.key, _every(g.cohorts, slots, index)) for g in groups] for index in range(slots)]
    return simulate_fixed({g.key: g for g in groups}, work, barrier=True)


def data_parallel(groups: Sequence[SimulatedGroup], slots: int) -> Outcome:
    """Every slot runs every expert on its share of the requests, without waiting for the others."""
    work = [[(g.key, _every(g.cohorts, slots, index)) for g in groups] for index in range(slots)]
    return simulate_fixed({g.key: g for g in groups}, work)


def longest_first(groups: Sequence[SimulatedGroup], slots: int) -> Outcome:
    """Whole groups, longest estimated time first, each to the slot that is the least busy by estimate."""
    load = [(0.0, index) for index in range(slots)]
    work: dict[int, list[tuple[str, tuple[Cohort, ...]]]] = defaultdict(list)
    for group in sorted(groups, key=lambda g: -_estimate_s(g)):
        busy, index = heapq.heappop(load)
        work[index].append((group.key, group.cohorts))
        heapq.heappush(load, (busy + _estimate_s(group), index))
    return simulate_fixed({g.key: g for g in groups}, [work[index] for index in range(slots)])


def _estimate_s(group: SimulatedGroup) -> float:
    longest = group.longest_tokens or 4 * group.mean_tokens
    tokens = group.rows * group.mean_tokens
    return group.cost.load_s + group.cost.generate_s(group.rows, tokens, longest, group.capacity)


def _every(cohorts: Sequence[Cohort], slots: int, index: int) -> tuple[Cohort, ...]:
    """Rows index, index + slots, ... of the queue."""
    taken, place = [], 0
    for tokens, count in cohorts:
        first = (index - place) % slots
        if first < count:
            taken.append((tokens, 1 + (count - 1 - first) // slots))
        place += count
    return tuple(taken)
