"""A stage on a virtual clock: the policy of `symoe_ray.scheduling` itself, with simulated engines in place of slots.

The policy sees estimates only, never the lengths that are drawn. Where there is room for two engines, a prepared one
loads beside the one that drains and generates after it has.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from symoe_ray.engine_costs import Costs, EngineCost
from symoe_ray.scheduling import GroupView, Lease, Prepare, SlotView, ask_order, decide
from symoe_ray.simulated_engine import Cohort, SimulatedEngine

HAND_OVER_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGroup:
    """The requests of one engine key: true lengths in the order of the queue, and what the policy is told of them.

    `mean_tokens` and `longest_tokens` are estimates (0: the policy's own guess of the longest).
    """

    key: str
    cohorts: tuple[Cohort, ...]
    cost: EngineCost
    mean_tokens: float
    longest_tokens: int = 0
    capacity: int = 256
    shape: str = ""
    tensor_parallel_size: int = 1

    @property
    def rows(self) -> int:
        """How many requests there are."""
        return sum(count for _, count in self.cohorts)

    @property
    def tokens(self) -> int:
        """What they write in truth."""
        return sum(tokens * count for tokens, count in self.cohorts)


@dataclass(frozen=True, slots=True)
class Span:
    """What a slot did from `begin_s` to `end_s`: load (also beside a draining engine) or generate."""

    slot: str
    kind: str
    key: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a simulated stage went. `resident`: what each slot holds at the end. `leases`: decisions carried out."""

    makespan_s: float
    rows: int
    tokens: int
    loads: Mapping[str, int]
    spans: tuple[Span, ...]
    most_rows: int = 0
    leases: int = 0
    resident: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Slot:
    id: str
    gpus: int = 1
    resident: str = ""
    promised: str = ""
    prepared_s: float = 0.0
    rows: int = 0
    ready: bool = True
    last_lease_s: float = 0.0
    had: frozenset[str] = frozenset()
    engine: SimulatedEngine | None = None
    pending: list[Cohort] = field(default_factory=list)
    begun_s: float = 0.0
    version: int = 0


def simulate(
    groups: Sequence[SimulatedGroup],
    *,
    slots: int | Sequence[int],
    max_rows: int = 256,
    resident: Mapping[str, str] | None = None,
    then: frozenset[str] = frozenset(),
    beside: bool = True,
) -> Outcome:
    """Work through the groups on so many slots (or on slots of so many GPUs each; one each otherwise), which hold the
    `resident` engines at the beginning (slot -> key).

    Without `beside` an engine is loaded only after the one before it has ended. ValueError for a group that needs more
    GPUs than any slot has.
    """
    gpus = [1] * slots if isinstance(slots, int) else list(slots)
    for group in groups:
        if group.rows and group.tensor_parallel_size > max(gpus, default=0):
            raise ValueError(f"{group.key}: no slot has tensor_parallel_size={group.tensor_parallel_size} GPUs")
    return _Simulation(groups, gpus, max_rows, resident or {}, then, beside).run()


class _Simulation:
    def __init__(
        self,
        groups: Sequence[SimulatedGroup],
        gpus: Sequence[int],
        max_rows: int,
        resident: Mapping[str, str],
        then: frozenset[str],
        beside: bool,
    ) -> None:
        self._beside = beside
        self._groups = {g.key: g for g in groups}
        self._costs = Costs(by_key={g.key: g.cost for g in groups}, default=groups[0].cost)
        self._cohorts = {g.key: deque(g.cohorts) for g in groups}
        self._slots = {f"slot-{i}": _Slot(f"slot-{i}", gpus=count) for i, count in enumerate(gpus)}
        able = {size: sum(count >= size for count in gpus) for size in {g.tensor_parallel_size for g in groups}}
        self._views = {g.key: _view(g, able[g.tensor_parallel_size]) for g in groups if g.rows}
        self._sizes = set(gpus)
        self._max_rows, self._then = max_rows, then
        self._events: list[tuple[float, int, str, int]] = []
        self._idle = dict.fromkeys(self._slots)
        self._waiting = sum(g.rows for g in groups)
        self._now, self._leases, self._most_rows = 0.0, 0, 0
        self._loads: Counter[str] = Counter()
        self._spans: list[Span] = []
        for name, key in resident.items():
            self._hold(self._slots[name], key)

    def run(self) -> Outcome:
        for view in ask_order([self._slot_view(s) for s in self._slots.values()], self._views):
            self._ask(self._slots[view.id])
        while self._events:
            self._now, _, name, version = heapq.heappop(self._events)
            slot = self._slots[name]
            if version == slot.version:
                self._happened(slot)
                self._ask(slot)
                if self._waiting and self._idle:
                    for idle in self._one_idle_of_each_size():
                        self._ask(idle)
        assert not self._waiting, "rows were left waiting"
        return Outcome(
            makespan_s=self._now, rows=sum(g.rows for g in self._groups.values()),
            tokens=sum(g.tokens for g in self._groups.values()), loads=dict(self._loads), spans=tuple(self._spans),
            most_rows=self._most_rows, leases=self._leases,
            resident={s.id: s.resident for s in self._slots.values()},
        )  # fmt: skip

    def _one_idle_of_each_size(self) -> list[_Slot]:
        if len(self._sizes) == 1:
            return [self._slots[next(iter(self._idle))]]
        first: dict[int, _Slot] = {}
        for name in self._idle:
            first.setdefault(self._slots[name].gpus, self._slots[name])
        return list(first.values())

    def _ask(self, slot: _Slot) -> None:
        while self._waiting:
            answer = decide(
                self._slot_view(slot), self._views, self._costs, slots=len(self._slots), then=self._then,
                max_rows=self._max_rows,
            )  # fmt: skip
            if isinstance(answer, Lease):
                self._lease(slot, answer)
            elif isinstance(answer, Prepare):
                self._prepare(slot, answer.key)
            else:
                break
        if slot.rows:
            self._idle.pop(slot.id, None)
        else:
            self._idle[slot.id] = None

    def _lease(self, slot: _Slot, lease: Lease) -> None:
        self._leases += 1
        cohorts = self._take(lease.key, lease.rows)
        if slot.resident != lease.key:
            self._change(slot, lease.key)
        slot.rows += lease.rows
        slot.last_lease_s = self._now
        if slot.ready and slot.engine is not None:
            self._feed(slot, cohorts)
        else:
            slot.pending += cohorts
            view = self._views[lease.key]
            self._views[lease.key] = replace(view, starting_rows=view.starting_rows + lease.rows)

    def _feed(self, slot: _Slot, cohorts: list[Cohort]) -> None:
        assert slot.engine is not None
        slot.engine.add(cohorts, self._now)
        self._schedule(slot, slot.engine.next_end_s())

    def _change(self, slot: _Slot, key: str) -> None:
        """Another engine: the prepared one, or a load that begins now."""
        assert not slot.rows, "an engine is taken away under its work"
        group = self._groups[key]
        hand_over_s = HAND_OVER_S if slot.resident else 0.0
        if slot.promised == key and self._beside:
            ready_s = max(self._now + hand_over_s, slot.prepared_s)
        else:
            swap_s = self._costs.swap_s(self._slot_view(slot), self._views[key], self._views)
            ready_s = self._now + hand_over_s + swap_s
            self._count_load(slot, key, self._now, ready_s)
        self._close_span(slot)
        self._release(slot.promised)
        self._release(slot.resident)
        slot.promised = ""
        self._hold(slot, key)
        slot.ready = False
        slot.engine = SimulatedEngine(cost=group.cost, capacity=group.capacity, time_s=ready_s)
        self._schedule(slot, ready_s)

    def _prepare(self, slot: _Slot, key: str) -> None:
        assert slot.engine is not None
        self._release(slot.promised)
        slot.promised = key
        if self._beside:
            begin_s = self._now if slot.ready else slot.engine.time_s  # one load at a time
            slot.prepared_s = begin_s + self._groups[key].cost.load_s
            self._count_load(slot, key, begin_s, slot.prepared_s)
        self._views[key] = replace(self._views[key], hosts=self._views[key].hosts + 1)

    def _happened(self, slot: _Slot) -> None:
        assert slot.engine is not None
        if slot.ready:
            ended = slot.engine.finish()
            slot.rows -= ended
            view = self._views[slot.resident]
            self._views[slot.resident] = replace(view, running_rows=view.running_rows - ended)
            if not slot.rows:
                self._close_span(slot)
            self._schedule(slot, slot.engine.next_end_s())
        else:
            slot.ready, slot.begun_s = True, self._now
            view = self._views[slot.resident]
            self._views[slot.resident] = replace(view, starting_rows=view.starting_rows - slot.rows)
            cohorts, slot.pending = slot.pending, []
            self._feed(slot, cohorts)

    def _schedule(self, slot: _Slot, time_s: float) -> None:
        slot.version += 1
        assert slot.engine is not None
        self._most_rows = max(self._most_rows, slot.engine.most_rows)
        if time_s != float("inf"):
            heapq.heappush(self._events, (time_s, len(self._events), slot.id, slot.version))

    def _hold(self, slot: _Slot, key: str) -> None:
        slot.resident = key
        slot.had |= {key}
        if key in self._views:
            self._views[key] = replace(self._views[key], hosts=self._views[key].hosts + 1)
        if key in self._groups and slot.engine is None:
            group = self._groups[key]
            slot.engine = SimulatedEngine(cost=group.cost, capacity=group.capacity, time_s=0.0)

    def _release(self, key: str) -> None:
        if key in self._views:
            self._views[key] = replace(self._views[key], hosts=self._views[key].hosts - 1)

    def _take(self, key: str, rows: int) -> list[Cohort]:
        view = self._views[key]
        self._views[key] = replace(
            view, rows=view.rows - rows, running_rows=view.running_rows + rows,
            tokens=round((view.rows - rows) * self._groups[key].mean_tokens),
        )  # fmt: skip
        self._waiting -= rows
        taken, cohorts = [], self._cohorts[key]
        while rows:
            tokens, count = cohorts.popleft()
            part = min(count, rows)
            if part < count:
                cohorts.appendleft((tokens, count - part))
            taken.append((tokens, part))
            rows -= part
        return taken

    def _count_load(self, slot: _Slot, key: str, begin_s: float, end_s: float) -> None:
        self._loads[key] += 1
        self._spans.append(Span(slot.id, "load", key, begin_s, end_s))

    def _close_span(self, slot: _Slot) -> None:
        if slot.ready and slot.begun_s < self._now and slot.resident:
            self._spans.append(Span(slot.id, "generate", slot.resident, slot.begun_s, self._now))
        slot.begun_s = self._now

    def _slot_view(self, slot: _Slot) -> SlotView:
        group = self._groups.get(slot.resident)
        return SlotView(
            id=slot.id, resident=slot.resident, promised=slot.promised, rows=slot.rows,
            capacity=group.capacity if group else 256, had=slot.had, ready=slot.ready,
            since_lease_s=self._now - slot.last_lease_s, tensor_parallel_size=slot.gpus,
        )  # fmt: skip


def _view(group: SimulatedGroup, most_hosts: int) -> GroupView:
    return GroupView(
        key=group.key, rows=group.rows, tokens=round(group.rows * group.mean_tokens),
        longest_tokens=group.longest_tokens, shape=group.shape, capacity=group.capacity,
        tensor_parallel_size=group.tensor_parallel_size, most_hosts=most_hosts,
    )  # fmt: skip
