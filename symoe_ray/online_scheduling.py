"""The policy for requests that arrive for ever: bounded waiting first, then the most work per swap."""

from __future__ import annotations

from collections.abc import Mapping

from symoe_ray.engine_costs import Costs
from symoe_ray.schedule_views import GroupView, Lease, Online, Prepare, SlotView


def decide_online(
    slot: SlotView, groups: Mapping[str, GroupView], costs: Costs, *, slots: int, max_rows: int, online: Online
) -> Lease | Prepare | None:
    """What a slot should do next while requests arrive.

    A group without a host whose oldest request is due takes an engine away from a group that waits less long: the slot
    promises itself, takes no more of the old one, and changes when it has drained. Otherwise a slot works for its
    engine, and an empty one takes the group with the most work, weighted by its age, per second of swap. `groups` holds
    every engine there is: where there are slots for all, none is swapped out.
    """
    if slot.promised:
        waits = slot.promised in groups and groups[slot.promised].rows > 0
        if slot.rows and waits:
            return None
        if waits:
            return _lease(slot, groups[slot.promised], max_rows)
    own = groups.get(slot.resident)
    due = [g for g in groups.values() if _is_due(slot, g, groups, costs, online)]
    if due:
        key = max(due, key=lambda g: (g.oldest_s, g.key)).key
        return Prepare(slot.id, key) if slot.rows else _lease(slot, groups[key], max_rows)
    if own is not None and own.rows:
        return _lease(slot, own, max_rows) if slot.rows < slot.capacity else None
    if slot.rows:
        return None
    best = [
        g for g in groups.values()
        if g.rows and _can(slot, g) and _wants_host(g, costs, slot.capacity) and not _needless(slot, g, groups, slots)
    ]  # fmt: skip
    if not best:
        return None
    return _lease(slot, max(best, key=lambda g: (_value(slot, g, groups, costs, online), g.key)), max_rows)


def admission_wait_s(
    key: str, groups: Mapping[str, GroupView], costs: Costs, *, slots: int, capacity: int = 256
) -> float:
    """The predicted wait of one more request for a key before it starts to be written.

    With a host: until the full batches before it leave room. Without: until a slot drains and has loaded, after the
    groups without a host that are there already; once more for every full batch of its own that waits.
    """
    group, cost = groups.get(key), costs.of(key)
    if group is not None and group.hosts:
        mean, capacity = group.mean_tokens or group.longest_tokens / 4, group.capacity or capacity
        beyond = max(0, group.rows + group.running_rows + 1 - group.hosts * capacity)
        return beyond * mean * (cost.step_s / capacity + cost.sequence_s) / group.hosts
    hosted = [g for g in groups.values() if g.hosts and (g.rows or g.running_rows)]
    before = [g for g in groups.values() if g.rows and not g.hosts and g.key != key]
    free = slots - sum(g.hosts for g in hosted)
    if free > len(before):
        return cost.load_s
    drain = min((costs.of(g.key).step_s * g.longest for g in hosted), default=0.0)
    turns = (len(before) + 1 - max(0, free)) / max(1, slots)
    queued = sum(costs.of(g.key).load_s + costs.of(g.key).step_s * g.longest for g in before) / max(1, slots)
    rounds = group.rows // (group.capacity or capacity) if group is not None else 0
    return (1 + rounds) * (cost.load_s + drain * min(1.0, turns) + queued)


def admit(
    key: str, groups: Mapping[str, GroupView], costs: Costs, *, slots: int, max_wait_s: float, capacity: int = 256
) -> bool:
    """Whether to take a new request: its predicted wait is at most `max_wait_s` (the caller answers 429 otherwise)."""
    return admission_wait_s(key, groups, costs, slots=slots, capacity=capacity) <= max_wait_s


def _can(slot: SlotView, group: GroupView) -> bool:
    return group.tensor_parallel_size <= slot.tensor_parallel_size and group.key not in slot.barred


def _lease(slot: SlotView, group: GroupView, max_rows: int) -> Lease:
    room = (group.capacity or slot.capacity) - (slot.rows if slot.resident == group.key else 0)
    share = -(-group.rows // max(1, group.hosts))
    return Lease(slot.id, group.key, max(1, min(share, room, max_rows)))


def _is_due(slot: SlotView, group: GroupView, groups: Mapping[str, GroupView], costs: Costs, online: Online) -> bool:
    """Whether this slot's engine must make way: the group waits for its first host, and longer than the slot's own."""
    own = groups.get(slot.resident)
    if not group.rows or group.hosts or group.key == slot.resident or not _can(slot, group):
        return False
    own_wait_s = own.oldest_s if own is not None and own.rows else 0.0
    due_s = max(0.0, online.due_share * online.max_wait_s - costs.swap_s(slot, group, groups))
    return group.oldest_s >= due_s and group.oldest_s > own_wait_s


def _wants_host(group: GroupView, costs: Costs, capacity: int) -> bool:
    """No host yet, or more in its queue than its hosts can start while another loads."""
    if not group.hosts:
        return True
    cost, capacity = costs.of(group.key), group.capacity or capacity
    beyond = max(0, group.rows + group.running_rows - group.hosts * capacity)
    wait_s = beyond * group.mean_tokens * (cost.step_s / capacity + cost.sequence_s) / group.hosts
    return wait_s > cost.load_s


def _needless(slot: SlotView, group: GroupView, groups: Mapping[str, GroupView], slots: int) -> bool:
    """Whether a second host for a group would cost another its only one, though there is a slot for each."""
    own = groups.get(slot.resident)
    return bool(group.hosts and own is not None and own.hosts == 1 and len(groups) <= slots)


def _value(slot: SlotView, group: GroupView, groups: Mapping[str, GroupView], costs: Costs, online: Online) -> float:
    """Seconds of work, the older the more, per second of swap."""
    cost = costs.of(group.key)
    work_s = cost.step_s * group.longest + cost.sequence_s * group.tokens
    age = 1.0 + 4.0 * group.oldest_s / max(online.max_wait_s, 1e-9)
    return work_s * age / max(costs.swap_s(slot, group, groups), 1e-3)
