"""Which slot gets which work: single decisions, and whole stages simulated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from symoe_ray.scheduling import Costs, GroupView, Lease, SlotView, next_lease

COSTS = Costs(load_s={}, tokens_per_s={}, default_load_s=5.0, default_tokens_per_s=100.0)


def group(key: str, waiting: int = 1, tokens: int = 100, size: int = 1) -> GroupView:
    return GroupView(key=key, waiting=waiting, tokens=tokens, tensor_parallel_size=size)


class TestOneDecision:
    def test_nothing_to_do_is_no_lease(self) -> None:
        assert next_lease([SlotView(id="s0")], [], COSTS) is None
        assert next_lease([SlotView(id="s0", resident="a")], [group("a", waiting=0)], COSTS) is None
        assert next_lease([], [group("a")], COSTS) is None

    def test_a_slot_keeps_its_engine_though_another_group_is_longer(self) -> None:
        slots = [SlotView(id="s0", resident="short")]
        groups = [group("long", tokens=10_000), group("short", tokens=1)]
        assert next_lease(slots, groups, COSTS) == Lease("s0", "short")

    def test_of_two_slots_with_one_engine_the_emptier_goes_first(self) -> None:
        slots = [SlotView(id="s0", resident="a", leases=1), SlotView(id="s1", resident="a")]
        assert next_lease(slots, [group("a", waiting=2)], COSTS) == Lease("s1", "a")

    def test_an_idle_slot_takes_the_longest_group(self) -> None:
        groups = [group("a", tokens=100), group("b", tokens=300), group("c", tokens=200)]
        assert next_lease([SlotView(id="s0")], groups, COSTS) == Lease("s0", "b")

    def test_longest_counts_the_load_and_the_speed(self) -> None:
        # Seconds with the load: a 5 + 300/100 = 8, b 5 + 100/10 = 15, c 20 + 100/100 = 21.
        costs = Costs(load_s={"c": 20.0}, tokens_per_s={"b": 10.0}, default_load_s=5.0, default_tokens_per_s=100.0)
        groups = [group("a", tokens=300), group("b", tokens=100), group("c", tokens=100)]
        assert next_lease([SlotView(id="s0")], groups, costs) == Lease("s0", "c")
        assert next_lease([SlotView(id="s0")], groups[:2], costs) == Lease("s0", "b")

    def test_a_group_that_nobody_works_on_comes_before_a_longer_one_that_has_a_slot(self) -> None:
        slots = [SlotView(id="s0", resident="a", leases=2), SlotView(id="s1")]
        groups = [group("a", waiting=9, tokens=90_000), group("b", tokens=10)]
        assert next_lease(slots, groups, COSTS) == Lease("s1", "b")

    def test_a_group_is_shared_only_where_that_pays_for_the_load(self) -> None:
        # One host needs tokens / 100 seconds; a second one costs 5 s and ends it sooner if that is less than the whole.
        slots = [SlotView(id="s0", resident="a", leases=2), SlotView(id="s1")]
        assert next_lease(slots, [group("a", tokens=500)], COSTS) is None
        assert next_lease(slots, [group("a", tokens=501)], COSTS) == Lease("s1", "a")
        two = [*slots[:1], SlotView(id="s1", resident="a", leases=2), SlotView(id="s2")]
        assert next_lease(two, [group("a", tokens=1000)], COSTS) is None
        assert next_lease(two, [group("a", tokens=1001)], COSTS) == Lease("s2", "a")

    def test_help_goes_where_most_is_left_for_each_slot(self) -> None:
        slots = [
            SlotView(id="s0", resident="a", leases=2),
            SlotView(id="s1", resident="a", leases=2),
            SlotView(id="s2", resident="b", leases=2),
            SlotView(id="s3"),
        ]
        groups = [group("a", tokens=3000), group("b", tokens=1600)]  # 15 s for each of two slots, 16 s for one
        assert next_lease(slots, groups, COSTS) == Lease("s3", "b")

    def test_depth_is_never_exceeded(self) -> None:
        groups = [group("a", waiting=9, tokens=9000)]
        assert next_lease([SlotView(id="s0", resident="a", leases=1)], groups, COSTS) == Lease("s0", "a")
        assert next_lease([SlotView(id="s0", resident="a", leases=2)], groups, COSTS) is None
        assert next_lease([SlotView(id="s0", resident="a", leases=1)], groups, COSTS, depth=1) is None
        assert next_lease([SlotView(id="s0", resident="a", leases=2)], groups, COSTS, depth=3) == Lease("s0", "a")

    def test_a_slot_at_work_is_not_given_another_engine(self) -> None:
        assert next_lease([SlotView(id="s0", resident="a", leases=1)], [group("b")], COSTS) is None

    def test_an_engine_over_several_gpus_needs_a_slot_of_that_size(self) -> None:
        small, large = SlotView(id="s0"), SlotView(id="s1", tensor_parallel_size=2)
        wide = group("wide", size=2, tokens=1)
        assert next_lease([small], [wide], COSTS) is None
        assert next_lease([small, large], [wide], COSTS) == Lease("s1", "wide")
        assert next_lease([small], [wide, group("a")], COSTS) == Lease("s0", "a")
        assert next_lease([large], [group("a")], COSTS) == Lease("s1", "a")

    def test_slots_that_are_lost_get_nothing_and_host_nothing(self) -> None:
        lost = SlotView(id="s0", resident="a", available=False)
        assert next_lease([lost], [group("a")], COSTS) is None
        assert next_lease([lost, SlotView(id="s1")], [group("a", tokens=1)], COSTS) == Lease("s1", "a")

    def test_a_given_up_engine_is_left_to_an_idle_slot_that_has_not_had_it(self) -> None:
        had = SlotView(id="s0", had=frozenset({"a"}))
        assert next_lease([had, SlotView(id="s1")], [group("a")], COSTS) == Lease("s1", "a")
        assert next_lease([had], [group("a"), group("b", tokens=1)], COSTS) == Lease("s0", "b")
        assert next_lease([had], [group("a")], COSTS) == Lease("s0", "a")

    def test_ties_are_broken_the_same_way_in_any_order(self) -> None:
        slots, groups = [SlotView(id="s1"), SlotView(id="s0")], [group("a"), group("b")]
        assert next_lease(slots, groups, COSTS) == next_lease(slots[::-1], groups[::-1], COSTS) == Lease("s0", "b")


@dataclass
class Stage:
    """A stage on simulated slots: chunks end one at a time, in an order that the test draws."""

    chunks: dict[str, list[int]]  # key -> tokens of each chunk
    slots: int
    depth: int
    costs: Costs
    sizes: dict[str, int] = field(default_factory=dict)  # key -> tensor parallel size; the first slot is that large
    residents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.waiting = {key: list(range(len(tokens))) for key, tokens in self.chunks.items()}
        self.open_tokens = {key: sum(tokens) for key, tokens in self.chunks.items()}
        self.resident = {f"s{i}": "" for i in range(self.slots)}
        self.resident.update({f"s{i}": key for i, key in enumerate(self.residents)})
        self.had = {slot: {key} if key else set() for slot, key in self.resident.items()}
        self.running: list[tuple[str, str, int]] = []  # slot, key, chunk
        self.leased: Counter[tuple[str, int]] = Counter()
        self.loads: Counter[tuple[str, str]] = Counter()

    def dispatch(self) -> None:
        while lease := next_lease(self._slots(), self._groups(), self.costs, self.depth):
            chunk = self.waiting[lease.key].pop(0)
            if self.resident[lease.slot] != lease.key:
                assert not self._leases(lease.slot), "an engine is taken away under its work"
                assert self.sizes.get(lease.key, 1) <= self._size(lease.slot)
                self.loads[lease.slot, lease.key] += 1
                self.resident[lease.slot] = lease.key
                self.had[lease.slot].add(lease.key)
            self.running.append((lease.slot, lease.key, chunk))
            self.leased[lease.key, chunk] += 1
            assert self._leases(lease.slot) <= self.depth

    def end(self, place: int, *, fails: bool = False) -> None:
        """A running chunk ends, or goes back into the queue while its slot loses its engine."""
        slot, key, chunk = self.running.pop(place % len(self.running))
        if fails:
            self.waiting[key].insert(0, chunk)
            if not self._leases(slot):
                self.resident[slot] = ""
        else:
            self.open_tokens[key] -= self.chunks[key][chunk]

    def _leases(self, slot: str) -> int:
        return sum(s == slot for s, _, _ in self.running)

    def _size(self, slot: str) -> int:
        return max(self.sizes.values(), default=1) if slot == "s0" else 1

    def _slots(self) -> list[SlotView]:
        return [
            SlotView(
                id=slot, resident=key, leases=self._leases(slot), had=frozenset(self.had[slot]),
                tensor_parallel_size=self._size(slot),
            )
            for slot, key in self.resident.items()
        ]  # fmt: skip

    def _groups(self) -> list[GroupView]:
        return [
            GroupView(
                key=key, waiting=len(chunks), tokens=self.open_tokens[key], tensor_parallel_size=self.sizes.get(key, 1)
            )
            for key, chunks in self.waiting.items()
        ]


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True))
    costs = Costs(
        load_s={key: draw(st.floats(0.0, 30.0)) for key in names if draw(st.booleans())},
        tokens_per_s={key: draw(st.floats(0.0, 1000.0)) for key in names if draw(st.booleans())},
    )
    slots = draw(st.integers(1, 4))
    return Stage(
        chunks={key: draw(st.lists(st.integers(0, 20_000), min_size=1, max_size=6)) for key in names},
        slots=slots,
        depth=draw(st.integers(1, 3)),
        costs=costs,
        sizes={key: draw(st.sampled_from((1, 1, 2))) for key in names},
        residents=tuple(draw(st.lists(st.sampled_from([*names, "", "other"]), max_size=slots))),
    )


class TestWholeStages:
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(stage=stages(), data=st.data())
    def test_every_chunk_is_leased_once_and_no_slot_loads_an_engine_twice(
        self, stage: Stage, data: st.DataObject
    ) -> None:
        if stage.sizes.get(stage.resident["s0"], 1) < max(stage.sizes.values()):
            stage.resident["s0"] = ""  # what a slot holds fits it
        for slot in list(stage.resident)[1:]:
            if stage.sizes.get(stage.resident[slot], 1) > 1:
                stage.resident[slot] = ""
        at_start = set(stage.resident.items())
        stage.dispatch()
        while stage.running:
            stage.end(data.draw(st.integers(0, 20)))
            stage.dispatch()
        assert stage.leased == {(key, i): 1 for key, tokens in stage.chunks.items() for i in range(len(tokens))}
        assert all(count == 1 for count in stage.loads.values())
        assert not stage.loads.keys() & at_start
        assert not any(stage.waiting.values())

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(stage=stages(), data=st.data())
    def test_what_fails_comes_back_until_all_is_done(self, stage: Stage, data: st.DataObject) -> None:
        stage.sizes = {}
        failures = data.draw(st.integers(1, 5))
        stage.dispatch()
        while stage.running:
            fails = failures > 0 and data.draw(st.booleans())
            failures -= fails
            stage.end(data.draw(st.integers(0, 20)), fails=fails)
            stage.dispatch()
        assert not any(stage.waiting.values())
        assert all(tokens == 0 for tokens in stage.open_tokens.values())

    def test_one_slot_loads_each_engine_once_longest_first(self) -> None:
        stage = Stage(chunks={"a": [100], "b": [900, 900], "c": [500]}, slots=1, depth=2, costs=COSTS)
        stage.dispatch()
        while stage.running:
            stage.end(0)
            stage.dispatch()
        assert list(stage.loads) == [("s0", "b"), ("s0", "c"), ("s0", "a")]
        assert set(stage.loads.values()) == {1}

    def test_a_hot_group_spreads_over_all_slots(self) -> None:
        stage = Stage(chunks={"hot": [10_000] * 8, "cold": [10]}, slots=3, depth=2, costs=COSTS)
        stage.dispatch()
        assert {slot: key for slot, key, _ in stage.running} == {"s0": "hot", "s1": "cold", "s2": "hot"}
        stage.end([slot for slot, _, _ in stage.running].index("s1"))
        stage.dispatch()
        assert {slot: key for slot, key, _ in stage.running} == {"s0": "hot", "s1": "hot", "s2": "hot"}
