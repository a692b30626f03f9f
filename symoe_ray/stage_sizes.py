"""How many requests and samples each stage of a run asks of each expert, before any of it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from symoe_ray.settings import Settings

SMALL_POOL = 8


def stage_requests(settings: Settings, *, validation: int, test: int) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """For each generating stage, expert -> (requests, samples), as many as are expected.

    Recruiting is taken as uniform, the best expert as the first of the pool, and every validation question as a case
    for the aggregators, which is the most that can be.
    """
    experts = [e.name for e in settings.pool.experts]
    annotator, borrowed = settings.annotator_name, bool(settings.profiles)
    asked = test if borrowed else validation + test
    seeds = len(settings.all_seeds)
    aggregator = settings.aggregator if settings.aggregator != "auto" else experts[0]
    methods = 2 if baselines_of(settings) == "all" else 1
    everyone = {name: (validation, validation) for name in experts if validation and not borrowed}
    return [
        ("annotate", {annotator: (asked, asked * settings.annotate.samples)}),
        ("profile", everyone),
        ("bench-aggregators", everyone if settings.aggregator == "auto" else {}),
        ("answer", _answers(settings, experts, test * seeds)),
        ("aggregate", {aggregator: (test * seeds * methods, test * seeds * methods)}),
    ]


def baselines_of(settings: Settings) -> str:
    """all, minimal or off: what `auto` stands for depends on what it costs, so on the size of the pool."""
    if settings.baselines != "auto":
        return settings.baselines
    return "all" if len(settings.pool.experts) <= SMALL_POOL else "minimal"


def _answers(settings: Settings, experts: Sequence[str], questions: int) -> dict[str, tuple[int, int]]:
    """An expert's j-th seat takes its sample j, and the methods share samples: a question wants the largest number."""
    baselines, best = baselines_of(settings), experts[0]
    found = {}
    for name in experts:
        least = 0 if baselines == "off" or (baselines == "minimal" and name != best) else 1
        least = settings.k if baselines == "all" and name == best else least
        draws = 2 if baselines == "all" else 1
        below = [_below(seats, settings.k, len(experts)) ** draws for seats in range(settings.k + 1)]
        samples = sum(1.0 if count <= least else 1.0 - below[count - 1] for count in range(1, settings.k + 1))
        asked = 1.0 if least else 1.0 - below[0]
        if requests := round(questions * asked):
            found[name] = (requests, max(requests, round(questions * samples)))
    return found


def _below(seats: int, k: int, experts: int) -> float:
    """The probability that an expert is drawn at most that often in k uniform draws."""
    share = 1 / experts
    return sum(math.comb(k, i) * share**i * (1 - share) ** (k - i) for i in range(seats + 1))
