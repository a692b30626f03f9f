"""How many slots each group should have: the smallest makespan that the estimates allow, and the hosts it needs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from symoe_ray.engine_costs import Costs, EngineCost
from symoe_ray.schedule_views import GroupView

_HALVINGS = 24


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of a group: rows and tokens (a running row counts as half written), and its longest row; for `most`
    hosts at most.
    """

    rows: int
    tokens: float
    longest: float
    cost: EngineCost
    capacity: int
    most: int

    def on(self, hosts: int) -> float:
        """Seconds of generation on each of `hosts` slots that share it evenly."""
        return self.cost.generate_s(math.ceil(self.rows / hosts), self.tokens / hosts, self.longest, self.capacity)

    def hosts_within(self, seconds: float) -> int:
        """The fewest hosts that end it in `seconds`, load included; 0 if none can.

        Of `EngineCost.generate_s`, with an even share: one term falls with the hosts, the rest is the tail.
        """
        room = seconds - self.cost.load_s - self.cost.step_s * self.longest
        mean = self.tokens / self.rows
        if room + self.cost.step_s * mean > 0:
            hosts = math.ceil((self.cost.step_s / self.capacity + self.cost.sequence_s) * self.tokens
                              / (room + self.cost.step_s * mean))  # fmt: skip
            if hosts * self.capacity <= self.rows:
                return max(1, hosts) if hosts <= self.most else 0
        if room <= 0:
            return 0
        hosts = max(1, math.ceil(self.cost.sequence_s * self.tokens / room), math.ceil(self.rows / self.capacity))
        return hosts if hosts <= min(self.rows, self.most) else 0


def work_of(group: GroupView, costs: Costs, capacity: int) -> Work:
    """The work that is left of a group, whose engines run `capacity` sequences unless it says otherwise."""
    tokens = group.tokens + group.running_rows * group.mean_tokens / 2
    return Work(
        group.rows + group.running_rows, tokens, group.longest, costs.of(group.key), group.capacity or capacity,
        group.most_hosts or sys.maxsize,
    )  # fmt: skip


def hosts_wanted(groups: Iterable[GroupView], costs: Costs, *, slots: int, capacity: int) -> dict[str, int]:
    """Hosts for each group with waiting rows so that all end as early as the estimates allow.

    Bisects the makespan: one is possible if every group can end within it, and the slot-seconds that their hosts take,
    each with its own tail and no less than a load, fit into all slots after a first load. Slots that this leaves over
    are spread.

    Which group's longest row decides is a guess. So with more slots than groups those that want several hosts, or whose
    longest row alone takes more than half of the makespan, share all slots by their work; the others fill in later.
    """
    works = {g.key: work_of(g, costs, capacity) for g in groups if g.rows}
    if not works:
        return {}
    best, makespan_s = _level(works, slots)
    if sum(best.values()) < slots:
        return _spread(works, best, slots)
    large = {key: w for key, w in works.items() if best[key] > 1 or w.cost.step_s * w.longest > makespan_s / 2}
    if large and slots > len(works):
        return best | _spread(large, dict.fromkeys(large, 1), slots)
    return best


def _level(works: Mapping[str, Work], slots: int) -> tuple[dict[str, int], float]:
    """The fewest hosts with which all end within the least makespan, and that makespan."""
    first_load = min(w.cost.load_s for w in works.values())
    low, high = 0.0, sum(w.cost.load_s + w.on(1) for w in works.values())
    best = dict.fromkeys(works, 1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wanted = {key: work.hosts_within(middle) for key, work in works.items()}
        if all(wanted.values()) and _fits(works, wanted, slots, middle - first_load):
            best, high = wanted, middle
        else:
            low = middle
    return best, high


def _fits(works: Mapping[str, Work], wanted: Mapping[str, int], slots: int, seconds: float) -> bool:
    """Whether that many slots have so much time after their first load.

    A slot loads one engine at a time beside the one that generates, so that an engine which is not a slot's last one
    takes as long as a load at least.
    """
    if max(wanted.values()) > slots:
        return False
    each = {key: works[key].on(hosts) for key, hosts in wanted.items()}
    room = slots * seconds - sum(hosts * each[key] for key, hosts in wanted.items())
    left = sum(wanted.values()) - slots  # engines that are no slot's last one: those that wait least
    waits = sorted((max(0.0, works[key].cost.load_s - each[key]), hosts) for key, hosts in wanted.items())
    for wait_s, hosts in waits:
        if room < 0 or left <= 0:
            break
        room -= wait_s * min(hosts, left)
        left -= hosts
    return room >= 0


def _spread(works: Mapping[str, Work], best: Mapping[str, int], slots: int) -> dict[str, int]:
    """The slots that are left over, so that what is shared takes equally long everywhere.

    By the estimates they gain nothing, as one group's longest row decides; but any group's may turn out to be the one.
    """

    def hosts_at(level_s: float) -> dict[str, int]:
        return {
            key: max(best[key], min(w.rows, w.most, math.ceil(w.cost.sequence_s * w.tokens / level_s)))
            for key, w in works.items()
        }

    low, high = 1e-9, max(max(w.cost.sequence_s * w.tokens for w in works.values()), 1e-8)
    spread = dict(best)
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        wanted = hosts_at(middle)
        if sum(wanted.values()) <= slots:
            spread, high = wanted, middle
        else:
            low = middle
    return spread
