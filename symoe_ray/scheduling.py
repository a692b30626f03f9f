"""Which slot works on which expert's requests next: a pure function of what the pool knows, for batch and online.

A slot keeps its engine while there is work for it. An empty one takes the group that would end last and has fewer hosts
than it should (`water_filling`), of those that need the most GPUs if they differ; where all have theirs it helps with
what would end last, if that pays for the load. A slot whose work runs out prepares its next engine while the last rows
are written. `decide` is asked about one slot whose state changed and looks at no other, so a decision costs the same on
1 slot and on 512.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from symoe_ray.engine_costs import Costs, EngineCost
from symoe_ray.online_scheduling import admission_wait_s, admit, decide_online
from symoe_ray.schedule_views import GroupView, Lease, Online, Prepare, SlotView
from symoe_ray.water_filling import hosts_wanted, work_of

__all__ = [
    "Costs", "EngineCost", "GroupView", "Lease", "Online", "Prepare", "SlotView", "admission_wait_s", "admit",
    "ask_order", "decide",
]  # fmt: skip

FEW_ROWS = 4
AHEAD_LOADS = 2.0
QUEUE_SHARE = 0.5
LEASES_OF_A_BATCH = 8
NEAR = 0.9
SLACK = 1.02


def ask_order(slots: Iterable[SlotView], groups: Mapping[str, GroupView] | None = None) -> list[SlotView]:
    """The available slots in the order in which to ask: first those whose resident engine has work (without `groups`:
    those that have one), then the emptier ones, equal ones by id.
    """

    def rank(slot: SlotView) -> tuple[bool, int, str]:
        has_work = bool(slot.resident) if groups is None else _waits(groups, slot.resident)
        return not has_work, slot.rows, slot.id

    return sorted((s for s in slots if s.available), key=rank)


def decide(
    slot: SlotView,
    groups: Mapping[str, GroupView],
    costs: Costs,
    *,
    slots: int,
    then: frozenset[str] = frozenset(),
    max_rows: int = 256,
    online: Online | None = None,
) -> Lease | Prepare | None:
    """What a slot should do next, None for nothing. `slots` are available in all; `then` are the keys that the next
    stage wants first. Ask again, with the answer taken into account, until it is None.

    After a Prepare the slot counts as a host of that key; a lease of it makes it resident once the slot has drained.
    """
    if not slot.available:
        return None
    if online is not None:
        return decide_online(slot, groups, costs, slots=slots, max_rows=max_rows, online=online)
    if _waits(groups, slot.resident) and not (_is_surplus(slot, groups, costs, slots) or _is_too_wide(slot, groups)):
        rows = _lease_rows(slot, groups[slot.resident], groups, costs, slots, max_rows)
        return Lease(slot.id, slot.resident, rows) if rows else None
    if slot.rows:
        return _prepare(slot, groups, costs, slots, then)
    key = slot.promised if _waits(groups, slot.promised) else _next_key(slot, groups, costs, slots, then)
    return Lease(slot.id, key, _first_rows(slot, groups[key], groups, costs, slots, max_rows)) if key else None


def _waits(groups: Mapping[str, GroupView], key: str) -> bool:
    return key in groups and groups[key].rows > 0


def _free(groups: Mapping[str, GroupView], slots: int, group: GroupView | None = None) -> int:
    """Slots that host no group with work left, and that could hold this one's engine."""
    free = slots - sum(g.hosts for g in groups.values() if g.rows or g.running_rows)
    return min(free, group.most_hosts - group.hosts) if group is not None and group.most_hosts else free


def _is_surplus(slot: SlotView, groups: Mapping[str, GroupView], costs: Costs, slots: int) -> bool:
    """Whether an empty slot should leave its group to the others: it has hosts to spare and some group has none."""
    own = groups[slot.resident]
    if slot.rows or own.hosts < 2 or all(g.hosts for g in groups.values() if g.rows and _can(slot, g)):
        return False
    return own.hosts > hosts_wanted(groups.values(), costs, slots=slots, capacity=slot.capacity)[own.key]


def _is_too_wide(slot: SlotView, groups: Mapping[str, GroupView]) -> bool:
    """Whether a group without a host needs more GPUs than the slot's own engine, and the slot has them."""
    own = groups[slot.resident].tensor_parallel_size
    return any(g.rows and not g.hosts and g.tensor_parallel_size > own and _can(slot, g) for g in groups.values())


def _widest(groups: Iterable[GroupView]) -> list[GroupView]:
    """Those that need the most GPUs: fewer slots can hold them than can hold the others."""
    among = list(groups)
    most = max((g.tensor_parallel_size for g in among), default=1)
    return [g for g in among if g.tensor_parallel_size == most]


def _can(slot: SlotView, group: GroupView) -> bool:
    return group.tensor_parallel_size <= slot.tensor_parallel_size and group.key not in slot.barred


def _lease_rows(
    slot: SlotView, group: GroupView, groups: Mapping[str, GroupView], costs: Costs, slots: int, max_rows: int
) -> int:
    """How many rows more of its engine's group: up to its fair share of a full batch, and beyond that, where much is
    waiting, a queue that keeps the batch full. On a single slot all that wait: there is nobody to share with.

    The queue is guided self-scheduling (Polychronopoulos and Kuck 1987): it shrinks with what waits, so that the tail
    is shared. A slot that loads has none: the rows are left to hosts to come. Few rows are leased together.
    """
    most = int(slot.capacity * QUEUE_SHARE)
    if slots == 1:
        return min(group.rows, max_rows) if slot.rows < slot.capacity + most else 0
    share = _share(slot, group, groups, costs, slots)
    least = max(1, min(group.rows, slot.capacity // LEASES_OF_A_BATCH, share))
    room = min(slot.capacity, share) - slot.rows
    if room <= 0 and slot.ready and slot.rows >= slot.capacity:
        queue = min(most, group.rows // (2 * max(1, group.hosts)))
        room = slot.capacity + queue - slot.rows
        least = max(least, queue // 2)
    if room <= 0 or (room < least and (not slot.ready or slot.rows + least > slot.capacity)):
        return 0
    return min(max(room, least), group.rows, max_rows)


def _share(slot: SlotView, group: GroupView, groups: Mapping[str, GroupView], costs: Costs, slots: int) -> int:
    """The rows of a group that one of its hosts should have now, hosts to come included: all that load or are free."""
    total, hosts = group.rows + group.running_rows, max(1, group.hosts)
    free = _free(groups, slots, group)
    if free > 0 and total <= (hosts + free) * slot.capacity:
        if not slot.ready:
            wanted = hosts_wanted(groups.values(), costs, slots=slots, capacity=slot.capacity)[group.key]
            hosts = max(hosts, min(wanted, hosts + free))
        elif _help_gain_s(slot, group, groups, costs) > 0:
            hosts += 1
    return math.ceil(total / hosts)


def _first_rows(
    slot: SlotView, group: GroupView, groups: Mapping[str, GroupView], costs: Costs, slots: int, max_rows: int
) -> int:
    """The rows of a slot's first lease of a group: a share beside the other hosts and those that should come."""
    if slots == 1:
        return min(group.rows, max_rows)
    wanted = hosts_wanted(groups.values(), costs, slots=slots, capacity=slot.capacity)[group.key]
    hosts = max(1, group.hosts if slot.promised == group.key else group.hosts + 1)
    room = max(0, _free(groups, slots, group) - 1)
    share = math.ceil((group.rows + group.running_rows) / max(hosts, min(wanted, hosts + room)))
    return max(1, min(share, group.rows, group.capacity or slot.capacity, max_rows))


def _prepare(
    slot: SlotView, groups: Mapping[str, GroupView], costs: Costs, slots: int, then: frozenset[str]
) -> Prepare | None:
    """The next engine of a slot whose last rows are being written, once the rest takes hardly longer than its load.

    Nothing is promised while other slots are free to take it now. A single slot has no balance to lose by promising at
    once; it knows itself when there is room for two engines. A promise that others have fulfilled is none.
    """
    if _waits(groups, slot.promised) or (slots > 1 and (not slot.ready or _free(groups, slots) > 0)):
        return None
    unhosted = [g for g in groups.values() if g.rows and not g.hosts and _can(slot, g) and g.key not in slot.had]
    if not unhosted:
        return None
    key = _pick(slot, _widest(unhosted), groups, costs, slots, then)
    resident = groups.get(slot.resident)
    if slots > 1 and slot.since_lease_s is not None and resident is not None and slot.rows > FEW_ROWS:
        tail_s = costs.of(slot.resident).step_s * resident.longest - slot.since_lease_s
        if tail_s > AHEAD_LOADS * costs.swap_s(slot, groups[key], groups):
            return None
    return Prepare(slot.id, key)


def _next_key(slot: SlotView, groups: Mapping[str, GroupView], costs: Costs, slots: int, then: frozenset[str]) -> str:
    """What an empty slot should load, "" for nothing.

    In this order: a group that lacks hosts, what gains most from a helper, a group that is promised to a slot which
    still drains; and an engine that this slot has had before only where nobody has it now.
    """
    fits = [g for g in groups.values() if g.rows and _can(slot, g)]
    if not fits:
        return ""
    wanted = hosts_wanted(groups.values(), costs, slots=slots, capacity=slot.capacity)
    new = [g for g in fits if g.key not in slot.had]
    lacking = [
        g
        for g in new
        if not g.hosts or (g.hosts < wanted[g.key] and (g.is_fresh or _help_gain_s(slot, g, groups, costs) > 0))
    ]
    if lacking:
        return _pick(slot, _widest(lacking), groups, costs, slots, then)
    helped = [g for g in new if not g.running_rows or _help_gain_s(slot, g, groups, costs) > 0]
    if helped:
        return max(helped, key=lambda g: (_end_s(g, costs, slot.capacity, g.hosts), g.key)).key
    left = [g for g in fits if g.key in slot.had and not g.hosts]
    return _pick(slot, left, groups, costs, slots, then) if left else ""


def _pick(
    slot: SlotView,
    among: list[GroupView],
    groups: Mapping[str, GroupView],
    costs: Costs,
    slots: int,
    then: frozenset[str],
) -> str:
    """Of these groups the one that would end last (longest processing time first), or another at nearly equal need
    whose engine comes cheaper. On a single slot the order is free, so the cheapest goes first.

    What the next stage wants first is left for last, unless the rest would then end later.
    """
    ends = {g.key: _end_s(g, costs, slot.capacity, g.hosts) for g in among}
    later = {g.key for g in among if g.key in then and _can_wait(g, among, costs, slot.capacity, slots)}
    open_ = [g for g in among if g.key not in later] or among
    most = max(ends[g.key] for g in open_)
    near = [g for g in open_ if slots == 1 or ends[g.key] >= NEAR * most]
    saved = {g.key: costs.of(g.key).load_s - costs.swap_s(slot, g, groups) for g in near}
    return max(near, key=lambda g: (saved[g.key], ends[g.key], g.key)).key


def _can_wait(group: GroupView, among: list[GroupView], costs: Costs, capacity: int, slots: int) -> bool:
    """Whether a group can start after all others without ending later than they would have in any case."""
    ends = {g.key: _end_s(g, costs, capacity, g.hosts) for g in among}
    everything = max(sum(ends.values()) / slots, *ends.values(), 0.0)
    others = sum(seconds for key, seconds in ends.items() if key != group.key)
    return others / slots + ends[group.key] <= SLACK * everything


def _end_s(group: GroupView, costs: Costs, capacity: int, hosts: int) -> float:
    """Seconds until a group would end with that many hosts; with none, after a load by one."""
    work = work_of(group, costs, capacity)
    return work.on(max(1, hosts)) + (0.0 if hosts else work.cost.load_s)


def _help_gain_s(slot: SlotView, group: GroupView, groups: Mapping[str, GroupView], costs: Costs) -> float:
    """By how much sooner the waiting rows of a hosted group end if one more slot, which must load, takes its share.

    Either way they end with a tail. Without help they wait for room in full batches, and share them.
    """
    cost, mean, hosts = costs.of(group.key), group.mean_tokens, max(1, group.hosts)
    helper = slot if slot.resident != group.key else SlotView(id="", capacity=slot.capacity)
    capacity, share = group.capacity or slot.capacity, group.rows / (hosts + 1)
    batch = min(hosts * capacity, group.running_rows / 2 + group.rows)
    without = _queue_s(cost, group.running_rows + group.rows, mean, hosts, capacity)
    without += cost.sequence_s * batch * mean / hosts
    helped = _queue_s(cost, share, mean, 1, capacity) + cost.sequence_s * min(share, capacity) * mean
    return without - helped - costs.swap_s(helper, group, groups)


def _queue_s(cost: EngineCost, rows: float, mean: float, hosts: int, capacity: int) -> float:
    """Seconds until the last of these rows finds room, with full batches."""
    beyond = max(0.0, rows - hosts * capacity)
    return beyond * mean * (cost.step_s / capacity + cost.sequence_s) / hosts
