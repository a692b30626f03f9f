"""Whole stages on the virtual clock: what the simulated machine may and may not do, bounds, comparisons."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.schedule_causes import even_s
from benchmarks.schedule_sim import experts_of, in_guessed_order, plan_ten_million
from symoe_ray.bounds import lower_bound_s
from symoe_ray.engine_costs import EngineCost
from symoe_ray.fixed_schedules import data_parallel, longest_first, round_robin
from symoe_ray.simulated_engine import SimulatedEngine
from symoe_ray.simulation import SimulatedGroup, simulate

COST = EngineCost(load_s=10.0, step_s=0.01, sequence_s=0.0001)


def group(key: str, *lengths: int, rows: int = 1, capacity: int = 256) -> SimulatedGroup:
    tokens = [n for n in lengths for _ in range(rows)]
    return SimulatedGroup(
        key=key, cohorts=tuple((n, 1) for n in tokens), cost=COST, mean_tokens=sum(tokens) / len(tokens),
        longest_tokens=max(tokens), capacity=capacity,
    )  # fmt: skip


class TestEngine:
    def test_one_row_takes_its_serial_decoding(self) -> None:
        engine = SimulatedEngine(cost=COST, capacity=8, time_s=5.0)
        engine.add([(100, 1)], 5.0)
        assert engine.next_end_s() == pytest.approx(5.0 + 100 * 0.0101)

    def test_rows_run_together_and_the_batch_shrinks_as_they_end(self) -> None:
        engine = SimulatedEngine(cost=COST, capacity=8, time_s=0.0)
        engine.add([(100, 3), (200, 1)], 0.0)
        assert engine.next_end_s() == pytest.approx(100 * 0.0104)
        assert engine.finish() == 3
        assert engine.next_end_s() == pytest.approx(100 * 0.0104 + 100 * 0.0101)

    def test_rows_beyond_the_capacity_wait_for_room(self) -> None:
        engine = SimulatedEngine(cost=COST, capacity=2, time_s=0.0)
        engine.add([(100, 5)], 0.0)
        ended = []
        while engine.running:
            ended.append(engine.finish())
        assert ended == [2, 2, 1]
        assert engine.most_rows == 2
        assert engine.time_s == pytest.approx(200 * 0.0102 + 100 * 0.0101)

    def test_rows_join_at_the_next_step(self) -> None:
        engine = SimulatedEngine(cost=COST, capacity=8, time_s=0.0)
        engine.add([(100, 1)], 0.0)
        engine.add([(10, 1)], 0.0001)
        assert engine.time_s == pytest.approx(0.0101)
        assert engine.next_end_s() == pytest.approx(0.0101 + 10 * 0.0102)


class TestStage:
    def test_each_engine_is_loaded_once_and_hidden_behind_tails_on_one_slot(self) -> None:
        groups = [group(key, 3000, 500, 400) for key in "abc"]
        outcome = simulate(groups, slots=1)
        assert outcome.loads == {"a": 1, "b": 1, "c": 1}
        assert outcome.makespan_s == pytest.approx(10.0 + 3 * (0.01 * 3000 + 0.0001 * 3900), abs=0.5)

    def test_a_hot_group_is_shared_by_all_slots_and_a_cold_one_is_not(self) -> None:
        groups = [group("hot", 400, 500, 600, rows=800), group("cold", 300, rows=5)]
        outcome = simulate(groups, slots=4)
        assert outcome.loads["hot"] == 4
        assert outcome.loads["cold"] < 4
        assert outcome.makespan_s < simulate(groups, slots=1).makespan_s / 2.5

    def test_the_engine_that_is_there_is_not_loaded_and_the_next_stages_is_left(self) -> None:
        groups = [group(key, 500, rows=50) for key in "abc"]
        first = simulate(groups, slots=1, resident={"slot-0": "b"}, then=frozenset({"a"}))
        assert first.loads == {"a": 1, "c": 1}
        assert first.resident == {"slot-0": "a"}
        second = simulate([groups[0]], slots=1, resident=first.resident)
        assert second.loads == {}

    def test_equal_shapes_are_reloaded_one_after_another(self) -> None:
        cost = replace(COST, load_s=100.0, reload_s=1.0)
        shapes = {"a": "x", "b": "", "c": "x", "d": ""}
        groups = [replace(group(key, 100, rows=50), cost=cost, shape=shape) for key, shape in shapes.items()]
        held = simulate(groups, slots=1, resident={"slot-0": "a"})
        begun = {s.key: s.begin_s for s in held.spans if s.kind == "generate"}
        assert begun["c"] < min(begun["b"], begun["d"])

    def test_wrong_estimates_are_made_good_by_idle_slots(self) -> None:
        wrong = replace(group("a", 500, rows=4000), mean_tokens=50.0, longest_tokens=50)
        groups = [wrong, *(group(key, 400, rows=300) for key in "bcd")]
        outcome = simulate(groups, slots=4)
        assert outcome.loads["a"] > 1
        assert outcome.makespan_s < 0.6 * longest_first(groups, 4).makespan_s

    def test_without_room_for_two_engines_every_load_is_waited_for(self) -> None:
        groups = [group(key, 1000, rows=20) for key in "abc"]
        beside, alone = simulate(groups, slots=1), simulate(groups, slots=1, beside=False)
        assert alone.loads == beside.loads
        loads = sorted(s.begin_s for s in alone.spans if s.kind == "load")
        ends = sorted(s.end_s for s in alone.spans if s.kind == "generate")
        assert all(begin >= end for begin, end in zip(loads[1:], ends, strict=False))
        assert alone.makespan_s == pytest.approx(beside.makespan_s + 2 * 10.0)

    def test_the_same_input_gives_the_same_schedule(self) -> None:
        groups = experts_of(600, seed=3)
        assert simulate(groups, slots=8) == simulate(groups, slots=8)

    def test_a_wide_group_does_not_wait_for_slots_that_cannot_hold_it(self) -> None:
        lengths = tuple((1000 + 370 * i % 9000, 1) for i in range(100))
        wide = replace(group("wide", 1), cohorts=lengths, tensor_parallel_size=2, mean_tokens=5500.0)
        alone = simulate([wide], slots=[2]).makespan_s
        assert simulate([wide], slots=[2, 1, 1, 1, 1, 1, 1]).makespan_s == pytest.approx(alone, rel=0.02)


@st.composite
def stages(draw: st.DrawFn) -> list[SimulatedGroup]:
    groups = []
    for key in draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)):
        lengths = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
        cost = EngineCost(
            load_s=draw(st.floats(0.1, 30.0)), step_s=draw(st.floats(0.001, 0.05)),
            sequence_s=draw(st.floats(0.0001, 0.01)),
        )  # fmt: skip
        groups.append(
            SimulatedGroup(
                key=key, cohorts=tuple((n, 1) for n in lengths), cost=cost, mean_tokens=draw(st.floats(1.0, 3000.0)),
                longest_tokens=draw(st.sampled_from([0, max(lengths), 3000])),
                capacity=draw(st.sampled_from([2, 8, 64])),
            )
        )  # fmt: skip
    return groups


@settings(max_examples=150, deadline=None, derandomize=True)
@given(groups=stages(), slots=st.integers(1, 9))
def test_all_rows_are_written_once_and_nothing_beats_the_bound(groups: list[SimulatedGroup], slots: int) -> None:
    bound = lower_bound_s(groups, slots)
    outcome = simulate(groups, slots=slots)
    assert outcome.rows == sum(g.rows for g in groups)
    assert outcome.tokens == sum(g.tokens for g in groups)
    for made in (outcome, round_robin(groups, slots), longest_first(groups, slots), data_parallel(groups, slots)):
        assert made.makespan_s >= bound * (1 - 1e-9)
    generating = sorted((s.slot, s.begin_s, s.end_s) for s in outcome.spans if s.kind == "generate")
    for one, other in pairwise(generating):
        assert one[0] != other[0] or one[2] <= other[1] + 1e-9, "two engines of a slot generate at once"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(groups=stages(), gpus=st.lists(st.sampled_from([1, 1, 2, 4]), min_size=1, max_size=7), data=st.data())
def test_on_slots_of_several_sizes_each_engine_has_the_gpus_it_needs(
    groups: list[SimulatedGroup], gpus: list[int], data: st.DataObject
) -> None:
    needs = st.sampled_from([n for n in (1, 2, 4) if n <= max(gpus)])
    groups = [replace(g, tensor_parallel_size=data.draw(needs)) for g in groups]
    size = {g.key: g.tensor_parallel_size for g in groups}
    outcome = simulate(groups, slots=gpus)
    assert outcome.tokens == sum(g.tokens for g in groups)
    assert all(gpus[int(s.slot.removeprefix("slot-"))] >= size[s.key] for s in outcome.spans)
    with pytest.raises(ValueError, match="tensor_parallel_size=8"):
        simulate([replace(groups[0], tensor_parallel_size=8)], slots=gpus)


class TestBound:
    def test_a_single_row_is_met_exactly(self) -> None:
        groups = [group("a", 1000)]
        assert lower_bound_s(groups, 4) == pytest.approx(10.0 + 1000 * 0.0101)
        assert simulate(groups, slots=4).makespan_s == pytest.approx(lower_bound_s(groups, 4))

    def test_it_falls_with_slots_and_counts_the_tails_of_several_hosts(self) -> None:
        groups = [group("a", 5000, 4900, 4800, rows=500), group("b", 100)]
        bounds = [lower_bound_s(groups, slots) for slots in (1, 2, 4, 8)]
        assert bounds == sorted(bounds, reverse=True)
        tokens = sum(g.tokens for g in groups)
        assert bounds[2] > 10.0 + (0.01 * tokens / 256 + 0.0001 * tokens) / 4

    def test_short_engines_cannot_hide_their_loads(self) -> None:
        groups = [group(str(i), 10) for i in range(20)]
        assert lower_bound_s(groups, 1) > 190.0

    def test_more_hosts_than_the_longest_rows_need_are_charged_full_batches_on_the_others(self) -> None:
        """One long row keeps a slot from writing much, so that the others write the rest, a capacity at a time."""
        cost = EngineCost(load_s=10.0, step_s=0.01, sequence_s=0.001)
        one = replace(group("a", 9000, *[1000] * 100, capacity=16), cost=cost)
        beside_s = 0.01 * 9000
        window_s = (beside_s / 0.001 + one.tokens) / (1 / 0.001 + 1 / (0.01 / 16 + 0.001))
        assert lower_bound_s([one], 2) == pytest.approx(10.0 + window_s, rel=1e-6)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_no_assignment_of_few_rows_to_few_slots_beats_it(self, data: st.DataObject) -> None:
        capacity, slots = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 3))
        numbers = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))
        groups = []
        for key, number in zip("ab", numbers, strict=False):
            cost = EngineCost(
                load_s=data.draw(st.sampled_from([0.1, 2.0, 10.0])), step_s=data.draw(st.sampled_from([0.001, 0.01])),
                sequence_s=data.draw(st.sampled_from([0.0001, 0.001, 0.01])),
            )  # fmt: skip
            lengths = data.draw(st.lists(st.integers(1, 3000), min_size=number, max_size=number))
            groups.append(replace(group(key, *lengths[: 8 if len(numbers) == 1 else 4], capacity=capacity), cost=cost))
        assert lower_bound_s(groups, slots) <= best_assignment_s(groups, slots) * (1 + 1e-9)


def best_assignment_s(groups: list[SimulatedGroup], slots: int) -> float:
    """The least makespan over all assignments of rows to slots, where a batch is filled as well as one can wish.

    Of an engine's rows: steps for the longest, and for all at `capacity` a step; loads hidden behind what goes before.
    """
    rows = [(g, tokens) for g in groups for tokens, _ in g.cohorts]
    best = float("inf")
    for places in product(range(slots), repeat=len(rows)):
        worst = 0.0
        for place in range(slots):
            own: dict[str, tuple[SimulatedGroup, list[int]]] = {}
            for (of, tokens), where in zip(rows, places, strict=True):
                if where == place:
                    own.setdefault(of.key, (of, []))[1].append(tokens)
            worst = max(worst, min((_one_after_another_s(order) for order in permutations(own.values())), default=0.0))
        best = min(best, worst)
    return best


def _one_after_another_s(engines: Sequence[tuple[SimulatedGroup, list[int]]]) -> float:
    ready_s = free_s = 0.0
    for of, lengths in engines:
        begin_s = max(free_s, ready_s + of.cost.load_s)
        steps = max(max(lengths), math.ceil(sum(lengths) / of.capacity))
        ready_s, free_s = begin_s, begin_s + of.cost.step_s * steps + of.cost.sequence_s * sum(lengths)
    return free_s


class TestBenchmark:
    def test_the_policy_is_the_best_of_the_compared_and_near_the_bound(self) -> None:
        groups = experts_of(3 * 198, seed=1)
        for slots in (1, 4, 64):
            ours = simulate(groups, slots=slots).makespan_s
            others = [p(groups, slots).makespan_s for p in (round_robin, longest_first, data_parallel)]
            assert ours < min(others)
            assert ours <= 1.3 * lower_bound_s(groups, slots)

    def test_groups_are_as_the_page_says(self) -> None:
        rows = Counter({g.key: g.rows for g in experts_of(60_000, seed=0)})
        assert sum(rows.values()) == 60_000
        assert max(rows.values()) / min(rows.values()) == pytest.approx(20, rel=0.25)
        means = {g.key: g.tokens / g.rows for g in experts_of(60_000, seed=0)}
        assert means["reasoning-0"] / means["plain-5"] == pytest.approx(13, rel=0.15)

    def test_ten_million_requests_are_planned_by_leases_not_by_rows(self) -> None:
        started = time.process_time()
        planned = plan_ten_million()
        assert planned["leases"] < 200_000
        assert time.process_time() - started < 120  # a guard against work per row, which would take hours


class TestCauses:
    def test_an_even_deal_of_one_row_is_the_bound_and_of_equal_rows_a_share_for_each_host(self) -> None:
        assert even_s([group("a", 1000)], 4) == pytest.approx(lower_bound_s([group("a", 1000)], 4))
        assert even_s([group("a", 100, rows=40)], 2) == pytest.approx(10.0 + 0.01 * 100 + 0.0001 * 2000)

    def test_an_even_deal_takes_fewer_hosts_where_a_tail_costs_more_than_it_saves(self) -> None:
        """Two groups of one long row each and one slot for each: neither is split."""
        groups = [group(key, 5000, 10) for key in "ab"]
        assert even_s(groups, 2) == pytest.approx(10.0 + 0.01 * 5000 + 0.0001 * 5010)

    def test_known_lengths_come_longest_first_and_guessed_ones_only_nearly(self) -> None:
        groups = [group("a", *range(1, 301), capacity=64)]
        known, guessed = (in_guessed_order(groups, 1, 0, 512, correlation)[0].cohorts for correlation in (1.0, 0.5))
        assert known == tuple((tokens, 1) for tokens in range(300, 0, -1))
        assert sorted(guessed) == sorted(known)
        assert guessed != known
        assert sum(tokens for tokens, _ in guessed[:150]) > sum(tokens for tokens, _ in guessed[150:])

    def test_what_starts_at_once_is_alike_on_all_hosts(self) -> None:
        rows = in_guessed_order([group("a", *range(1, 1025), capacity=512)], 2, 0, 512, 1.0)[0].cohorts
        assert sum(tokens for tokens, _ in rows[:512]) / sum(tokens for tokens, _ in rows[512:]) < 1.1
