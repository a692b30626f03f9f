"""GPUs that a cluster is still to get: the autoscaler is asked for them, and they are waited for."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import pytest
import ray

from actors import placing
from actors.cluster import node_wait_s, slot_plan
from actors.placing import bundles_of
from symoe_ray.config import load
from symoe_ray.core import ResourceError
from symoe_ray.settings import Settings


def settings_of(gpus: int, wait_s: float) -> Settings:
    return load(["task=demo", "pool=small", f"gpus={gpus}", f"cluster.node_wait_s={wait_s}"])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    """What the autoscaler has been asked for."""
    made: list[list[dict[str, float]]] = []
    monkeypatch.setattr(placing, "request_resources", lambda bundles: made.append(bundles))
    monkeypatch.setattr(placing, "POLL_S", 0.001)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


def put_nodes(monkeypatch: pytest.MonkeyPatch, *gpus: list[int]) -> None:
    """The cluster's nodes, one survey after the other; the last one's stay."""

    def rows(each: list[int]) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "NodeID": f"n{i}", "Resources": {"CPU": 8.0, "GPU": float(n)}} for i, n in enumerate(each)
        ]

    surveys = chain(map(rows, gpus), repeat(rows(gpus[-1])))
    monkeypatch.setattr(ray, "nodes", lambda: next(surveys))


def test_what_is_there_is_taken_without_asking(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    put_nodes(monkeypatch, [0, 4])
    assert len(slot_plan(settings_of(4, 60.0)).places) == 4
    assert asked == []


def test_nodes_that_join_in_time_have_slots(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    put_nodes(monkeypatch, [0], [0], [0, 2], [0, 2, 2])
    places = slot_plan(settings_of(4, 60.0)).places
    assert sorted(place.node for place in places) == ["n1", "n1", "n2", "n2"]
    assert asked == [*[[{"GPU": 1.0}] * 4] * 2, []]  # again each time: another run may have asked for its own


@pytest.mark.parametrize("wait_s", [0.0, 0.02])
def test_what_does_not_come_is_a_resource_error(
    wait_s: float, monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    put_nodes(monkeypatch, [0], [0, 2])
    with pytest.raises(ResourceError, match=r"gpus=4 was asked for, but the cluster has [02]"):
        slot_plan(settings_of(4, wait_s))
    assert asked[-1:] == ([[]] if wait_s else [])


def test_a_cluster_of_others_is_waited_for_though_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    unsaid = load(["task=demo", "pool=small"])
    assert node_wait_s(unsaid) == 0.0
    assert node_wait_s(load(["task=demo", "pool=small", "cluster=auto"])) == 300.0
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as Ray sets it for a job
    assert node_wait_s(unsaid) == 300.0
    assert [node_wait_s(settings_of(4, said)) for said in (0.0, 7.0)] == [0.0, 7.0]


def test_engines_over_several_gpus_are_asked_for_as_such() -> None:
    assert bundles_of([(1, ""), (4, "H100")], 10) == [{"GPU": 4.0}, {"GPU": 4.0}, {"GPU": 1.0}, {"GPU": 1.0}]
    assert bundles_of([(2, "H100")], 4) == [{"GPU": 2.0, "accelerator_type:H100": 0.001}] * 2
