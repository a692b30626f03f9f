"""How the GPUs and CPUs of nodes are divided into slots."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symoe_ray.config import load
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.slot_places import Node, Place, Size, SlotRule, anywhere, check_room, demand_of, slot_rule


def experts(*sizes: int | tuple[int, str]) -> list[ExpertSpec]:
    """Experts of these tensor-parallel sizes, some with a kind of GPU; each has an engine of its own."""
    pairs = [size if isinstance(size, tuple) else (size, "") for size in sizes]
    return [
        ExpertSpec(name=f"e{i}", model=f"org/e{i}", tensor_parallel_size=size, accelerator_type=kind)
        for i, (size, kind) in enumerate(pairs)
    ]


def cut(pool: list[ExpertSpec], *nodes: Node, gpus: int = 0) -> list[Place]:
    return list(SlotRule(demand=alike(pool), gpus=gpus).places(nodes))


def alike(pool: list[ExpertSpec]) -> dict[Size, float]:
    """The demand of experts whose answers are equally long."""
    return demand_of(pool, {e.name: 1.0 for e in pool})


def gpus_of(places: list[Place]) -> list[int]:
    return sorted((p.gpus for p in places), reverse=True)


@pytest.mark.parametrize(
    ("sizes", "gpus", "slots"),
    [
        ([1, 1, 1], 8, [1] * 8),
        ([2, 2], 8, [2] * 4),
        ([1, 1, 1, 2, 4], 8, [4, 2, 1, 1]),
        ([1] * 15 + [2], 8, [2] + [1] * 6),
        ([1, 2, 4], 4, [4]),
        ([1, 2], 3, [2, 1]),
        ([2], 5, [2, 2]),
    ],
)  # fmt: skip
def test_slots_have_the_sizes_that_engines_need(sizes: list[int], gpus: int, slots: list[int]) -> None:
    assert gpus_of(cut(experts(*sizes), Node(id="n", gpus=gpus))) == slots


def test_no_slot_spans_two_nodes() -> None:
    places = cut(experts(1, 2), Node(id="a", gpus=1), Node(id="b", gpus=3))
    used: Counter[str] = Counter()
    for place in places:
        used[place.node] += place.gpus
    assert used == {"a": 1, "b": 3}
    assert gpus_of(places) == [2, 1, 1]


def test_a_kind_of_gpu_is_found_on_its_node_and_others_take_what_is_left() -> None:
    nodes = Node(id="a", gpus=2, kind="A100"), Node(id="h", gpus=2, kind="H100")
    pool = experts((2, "H100"), (1, ""))
    places = cut(pool, *nodes)
    assert sorted((p.node, p.gpus) for p in places) == [("a", 1), ("a", 1), ("h", 2)]
    check_room(pool, places, nodes, 0)


def test_what_experts_of_a_size_write_adds_up() -> None:
    twins = [ExpertSpec(name=name, model="org/same") for name in "AB"]
    assert demand_of([*twins, *experts(2)], {"A": 400.0, "B": 100.0, "e0": 5200.0}) == {(1, ""): 500.0, (2, ""): 5200.0}


def test_who_writes_much_gets_more_slots() -> None:
    """Two reasoning experts of two GPUs and fourteen others of one, on eight GPUs."""
    pool = ["pool=paper16", "gpus=8"]
    assert gpus_of(list(slot_rule(load(pool)).places([Node(id="n", gpus=8)]))) == [1] * 8
    settings = load(pool)
    wide = [replace(e, tensor_parallel_size=2) if e.sampling.max_tokens > 8192 else e for e in settings.pool.experts]
    rule = slot_rule(replace(settings, pool=replace(settings.pool, experts=tuple(wide))))
    assert gpus_of(list(rule.places([Node(id="n", gpus=8)]))) == [2, 2, 2, 1, 1]


def test_no_more_gpus_are_taken_than_may_be() -> None:
    assert gpus_of(cut(experts(1, 2), Node(id="a", gpus=4), Node(id="b", gpus=4), gpus=3)) == [2, 1]


def test_a_node_that_joins_gets_slots_beside_those_that_are_there() -> None:
    rule = SlotRule(demand=alike(experts(1, 1, 2)))
    taken = rule.places([Node(id="a", gpus=4)])
    assert gpus_of(list(taken)) == [2, 1, 1]
    assert gpus_of(list(rule.places([Node(id="b", gpus=1)], taken=taken))) == [1]
    limited = SlotRule(demand=rule.demand, gpus=4)
    assert limited.places([Node(id="b", gpus=4)], taken=taken) == ()


@pytest.mark.parametrize(
    ("needs", "nodes", "said"),
    [
        ((2, ""), [Node(id="a", gpus=1), Node(id="b", gpus=1)], "tensor_parallel_size=2 GPUs on one node"),
        ((1, "H100"), [Node(id="a", gpus=8, kind="A100")], "GPUs of kind H100 on one node; the nodes have 8 A100"),
    ],
)
def test_what_no_slot_can_hold_is_named(needs: tuple[int, str], nodes: list[Node], said: str) -> None:
    pool = experts(needs)
    with pytest.raises(ResourceError, match=said):
        check_room(pool, cut(pool, *nodes), nodes, 0)


def test_on_the_cpu_every_node_has_the_same_slots_and_a_head_without_cpus_has_none() -> None:
    places = SlotRule(cpu_slots=2).places([Node(id="head", cpus=0), Node(id="a", cpus=2), Node(id="b", cpus=2)])
    assert [(p.node, p.index, p.beside) for p in places] == [("a", 0, 2), ("a", 1, 2), ("b", 0, 2), ("b", 1, 2)]
    assert all(p.holds((4, "H100")) for p in places)
    assert [p.node for p in anywhere(2)] == ["", ""]


@given(
    sizes=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6),
    gpus=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_gpus_are_given_out_once_and_as_far_as_they_go(sizes: list[int], gpus: list[int]) -> None:
    nodes = [Node(id=str(i), gpus=count) for i, count in enumerate(gpus)]
    places = cut(experts(*sizes), *nodes)
    for node in nodes:
        left = node.gpus - sum(p.gpus for p in places if p.node == node.id)
        assert 0 <= left < min(sizes)
    for size in sizes:
        if size <= max(gpus):
            largest = max(s for s in sizes if s <= max(gpus))
            assert any(p.gpus >= size for p in places), (size, largest)
