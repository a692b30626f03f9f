"""What no schedule can beat, not even one that knows every length beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from symoe_ray.simulation import SimulatedGroup

_HALVINGS = 40


def lower_bound_s(groups: Sequence[SimulatedGroup], slots: int) -> float:
    """Seconds that any schedule of the simulated machine needs at least, from a cold start.

    The machine: a slot generates with one engine at a time; a step takes a + b n seconds and gives each of n <= B rows
    a token; a row stays on the engine that began it; an engine generates after its load. Write M for the makespan.

    1. A row of L tokens takes L steps of at least a + b seconds after its engine's load: M >= load + (a + b) L.
    2. Of a group, let slot j run s_j steps and write T_j tokens in W = M - load seconds: a s_j + b T_j <= W, s_j at
       least the longest of its rows, and T_j <= B s_j. Hence T_j <= cap(s_j) = min((W - a s_j) / b, W / (a / B + b)).
       Number the slots by falling s_j. s_1 is at least the longest row. If slots 1..j hold rows of at most
       C_j = cap(s_1) + ... + cap(s_j) tokens, they cannot hold all of the longest rows whose sum exceeds that, so
       s_{j+1} is at least the shortest of these. cap falls with s, so by induction no s_j is smaller than this greedy
       one, no slot writes more than the greedy cap, and there are no fewer slots than the greedy ones. For every k,
       slots 1..k run at least the greedy s_1 + ... + s_k steps, and the others those for what is left, at most B tokens
       a step: the group takes at least a max_k (s_1 + ... + s_k + max(0, sum L - C_k) / B) + b sum L slot-seconds:
       occupancy(M), which falls with M. k = 0 is a batch that is always full, the last k one tail for each slot.
    3. A slot prepares one engine at a time beside the one that generates, so that between the beginnings of two engines
       on a slot there is a load at least: an engine takes max(generation, load) of its slot's time, the slot's last one
       its generation alone. All slots have slots (M - first load) seconds for what follows their first loads, and the
       occupancies must fit into them, each group's raised to the least load but for as many as there are slots.

    The bound is the smallest M that satisfies 1 and 3, found by bisection from below.
    """
    there = [g for g in groups if g.rows]
    lengths = [np.sort(np.repeat(*np.array(g.cohorts, dtype=np.int64).T))[::-1].astype(float) for g in there]
    sums = [np.cumsum(own) for own in lengths]
    first_load = min(g.cost.load_s for g in there)
    low = max(
        g.cost.load_s + (g.cost.step_s + g.cost.sequence_s) * own[0] for g, own in zip(there, lengths, strict=True)
    )

    def fits(makespan_s: float) -> bool:
        needed = [
            _occupancy_s(g, own, total, makespan_s - g.cost.load_s)
            for g, own, total in zip(there, lengths, sums, strict=True)
        ]
        waits = sorted(max(0.0, first_load - seconds) for seconds in needed)[: max(0, len(needed) - slots)]
        return bool(sum(needed) + sum(waits) <= slots * (makespan_s - first_load))

    alone = sum(_alone_s(g, own[-1], longest[0]) for g, own, longest in zip(there, sums, lengths, strict=True))
    high = max(low, first_load * len(there) + alone)
    if fits(low):
        return float(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return float(low)


def _alone_s(group: SimulatedGroup, tokens: float, longest: float) -> float:
    """The least seconds of a group on one slot."""
    return group.cost.step_s * max(longest, tokens / group.capacity) + group.cost.sequence_s * tokens


def _occupancy_s(group: SimulatedGroup, lengths: np.ndarray, sums: np.ndarray, window_s: float) -> float:
    """Slot-seconds that a group takes at least where no slot has more than `window_s` for it."""
    a, b = group.cost.step_s, group.cost.sequence_s
    tokens, most = sums[-1], window_s / (a / group.capacity + b)
    steps, held, place = 0.0, 0.0, 0
    needed = tokens / group.capacity
    while place < len(lengths):
        steps += lengths[place]
        held += min((window_s - a * lengths[place]) / b, most)
        needed = max(needed, steps + max(0.0, tokens - held) / group.capacity)
        place = max(place + 1, int(np.searchsorted(sums, held, side="right")))
    return float(a * needed + b * tokens)
