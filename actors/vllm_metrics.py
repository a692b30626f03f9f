"""What vLLM has counted in this process, from its Prometheus registry."""

from __future__ import annotations

from symoe_ray.serving.engine_metrics import Family

KINDS = frozenset({"counter", "gauge", "histogram"})


def counted() -> list[Family]:
    """vLLM's metrics; none where the engine does not count (`disable_log_stats`).

    Histograms without an observation are left out, and the gauges that carry settings in their labels: a scrape has
    hundreds of lines for each expert as it is.
    """
    from prometheus_client import REGISTRY

    made = []
    for metric in REGISTRY.collect():
        if not metric.name.startswith("vllm:") or metric.type not in KINDS or metric.name.endswith("_info"):
            continue
        samples = [(s.name, dict(s.labels), float(s.value)) for s in metric.samples if not s.name.endswith("_created")]
        if metric.type == "histogram" and not any(value for _, _, value in samples):
            continue
        made.append(Family(name=metric.name, kind=metric.type, help=metric.documentation, samples=tuple(samples)))
    return made
