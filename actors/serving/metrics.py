"""The endpoint's Prometheus metrics: `symoe_`, base units. Labels hold known names only, never what a caller sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from actors.online_state import OnlineStatus
from symoe_ray.serving.engine_metrics import Family
from symoe_ray.serving.events import StageUsage

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts what happens. What belongs to the pool is set when it is asked for."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "symoe_requests", "Requests by model and status.", ["model", "status"], registry=registry
        )
        self._request_s = Histogram("symoe_request_seconds", "Requests.", ["model"], buckets=SECONDS, registry=registry)
        self._first_s = Histogram(
            "symoe_first_token_seconds", "First text of a stream.", ["model"], buckets=SECONDS, registry=registry
        )
        self._stage_s = Histogram(
            "symoe_stage_seconds", "Stages of a question.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._wait_s = Histogram(
            "symoe_wait_seconds",
            "Wait for an expert, its load included.",
            ["expert"],
            buckets=SECONDS,
            registry=registry,
        )
        self._tokens = Counter("symoe_tokens", "Tokens by stage and kind.", ["stage", "kind"], registry=registry)
        self._failures = Counter("symoe_failures", "Failures by kind.", ["kind"], registry=registry)
        self.under_way = Gauge("symoe_requests_under_way", "Requests under way.", registry=registry)
        self._queue = Gauge("symoe_queue_samples", "Samples that wait for an engine.", ["experts"], registry=registry)
        self._age = Gauge("symoe_queue_oldest_seconds", "Age of the oldest that waits.", ["experts"], registry=registry)
        self._running = Gauge(
            "symoe_running_samples", "Samples that an engine works on.", ["experts"], registry=registry
        )
        self._engine = Gauge("symoe_engine_samples", "Samples that engines say they work on.", registry=registry)
        self._swaps = Gauge("symoe_swaps_total", "Engine loads by tier.", ["tier"], registry=registry)
        self._crashes = Gauge(
            "symoe_engine_crashes_total", "Deaths of engines and slots, failed loads.", registry=registry
        )

    def request(self, model: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(model, status).inc()
        self._request_s.labels(model).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """A stream has begun to write."""
        self._first_s.labels(model).observe(seconds)

    def stages(self, usage: Mapping[str, StageUsage]) -> None:
        """A question's stages have ended."""
        for stage, used in usage.items():
            self._stage_s.labels(stage).observe(used.seconds)
            self._tokens.labels(stage, "prompt").inc(used.prompt_tokens)
            self._tokens.labels(stage, "completion").inc(used.completion_tokens)

    def waited(self, expert: str, seconds: float) -> None:
        """A request has been given room on an engine."""
        self._wait_s.labels(expert).observe(seconds)

    def failure(self, kind: str) -> None:
        """Something has failed."""
        self._failures.labels(kind).inc()

    def text(self, status: OnlineStatus) -> bytes:
        """All metrics in Prometheus' text format, vLLM's own after ours."""
        for queue in status.queues:
            names = ",".join(queue.experts)
            self._queue.labels(names).set(queue.waiting)
            self._age.labels(names).set(queue.oldest_s)
            self._running.labels(names).set(queue.running)
        for tier, count in status.swaps.items():
            self._swaps.labels(tier).set(count)
        self._engine.set(status.engine_samples)
        self._crashes.set(status.crashes)
        return generate_latest(self._registry) + generate_latest(_Engines(status.engines))


class _Engines(Collector):
    """vLLM's metrics, as a Prometheus client library wants them."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric
