"""vLLM's own metrics on their way to the endpoint: over processes that come and go, and over slots."""

from __future__ import annotations

import math

import pytest

from actors import vllm_metrics
from actors.online_state import OnlineStatus
from actors.serving.metrics import Metrics
from symoe_ray.serving.engine_metrics import Counts, Family, merged


def tokens(value: float) -> Family:
    labels = {"model_name": "/path/to/a", "engine": "0"}
    return Family(name="vllm:tokens", kind="counter", help="Tokens.", samples=(("vllm:tokens_total", labels, value),))


def running(value: float) -> Family:
    labels = {"model_name": "/path/to/a", "engine": "0"}
    return Family(name="vllm:running", kind="gauge", help="Running.", samples=(("vllm:running", labels, value),))


def values(families: list[Family]) -> dict[tuple[str, str, str], float]:
    """Values by sample name, experts and slot."""
    return {(n, la["model_name"], la.get("engine", "")): v for f in families for n, la, v in f.samples}


class TestCounts:
    def test_counts_go_on_where_an_engine_has_ended(self) -> None:
        counts = Counts("slot-0")
        for process, value in ((1, 5.0), (1, 7.0), (2, 3.0), (1, 8.0)):
            counts.note("A", process, [tokens(value)])
        assert values(counts.families()) == {("vllm:tokens_total", "A", ""): 11.0}

    def test_a_process_that_serves_another_expert_counts_for_it_from_then_on(self) -> None:
        counts = Counts("slot-0")
        counts.note("A", 1, [tokens(5.0)])
        counts.note("B", 1, [tokens(9.0)])
        assert values(counts.families()) == {("vllm:tokens_total", "A", ""): 5.0, ("vllm:tokens_total", "B", ""): 4.0}

    def test_gauges_are_those_of_the_engine_that_lives(self) -> None:
        counts = Counts("slot-0")
        counts.note("A", 1, [running(2.0)])
        counts.note("B", 2, [running(3.0)])
        assert values(counts.families()) == {("vllm:running", "B", "slot-0"): 3.0}
        counts.idle()
        assert counts.families() == []

    def test_slots_are_added_up_and_their_gauges_stand_side_by_side(self) -> None:
        slots = [Counts("slot-0"), Counts("slot-1")]
        for slot, value in zip(slots, (1.0, 2.0), strict=True):
            slot.note("A", 1, [tokens(value), running(value)])
        assert values(merged(slot.families() for slot in slots)) == {
            ("vllm:tokens_total", "A", ""): 3.0,
            ("vllm:running", "A", "slot-0"): 1.0,
            ("vllm:running", "A", "slot-1"): 2.0,
        }


def test_the_endpoint_shows_them_in_prometheus_format() -> None:
    counts = Counts("slot-0")
    counts.note("A,B", 1, [tokens(5.0), running(1.0)])
    status = OnlineStatus(queues=(), swaps={}, crashes=0, engine_samples=1, engines=tuple(counts.families()))
    lines = Metrics().text(status).decode().splitlines()
    assert 'vllm:tokens_total{model_name="A,B"} 5.0' in lines
    assert 'vllm:running{engine="slot-0",model_name="A,B"} 1.0' in lines
    assert "# TYPE vllm:tokens_total counter" in lines


def test_what_vllm_has_registered_is_read_and_empty_histograms_are_not() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    made = [
        prometheus.Counter("vllm:test_asked", "Asked.", ["model_name", "engine"]),
        prometheus.Histogram("vllm:test_seen_seconds", "Seen.", ["model_name", "engine"], buckets=(1, 2)),
        prometheus.Histogram("vllm:test_unseen_seconds", "Not seen.", ["model_name", "engine"]),
        prometheus.Gauge("vllm:test_info", "Settings.", ["path"]),
    ]
    try:
        made[0].labels("a", "0").inc(2)
        made[1].labels("a", "0").observe(1.5)
        made[2].labels("a", "0")
        made[3].labels("/somewhere").set(1)
        found = {f.name: f for f in vllm_metrics.counted() if f.name.startswith("vllm:test_")}
    finally:
        for metric in made:
            prometheus.REGISTRY.unregister(metric)
    assert set(found) == {"vllm:test_asked", "vllm:test_seen_seconds"}
    assert [(n, v) for n, _, v in found["vllm:test_asked"].samples] == [("vllm:test_asked_total", 2.0)]
    buckets = {la["le"]: v for n, la, v in found["vllm:test_seen_seconds"].samples if n.endswith("_bucket")}
    assert {math.inf if k == "+Inf" else float(k): v for k, v in buckets.items()} == {1.0: 0.0, 2.0: 1.0, math.inf: 1.0}
