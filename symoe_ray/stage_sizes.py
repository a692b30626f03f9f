"""How many requests and samples each stage of a run asks of each expert, before any of it is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from symoe_ray.baselines import baseline_samples, baselines_of
from symoe_ray.settings import Settings

PASSES = (("annotate", "profile"), ("bench-aggregators", "answer"))
"""Stages that wait for nothing of each other: a run has them generated together, each expert loaded once for both."""

Counts = dict[str, tuple[int, int]]
"""Expert -> how many (requests, samples) are asked of it."""
StageRequests = tuple[str, Counts]


def stage_requests(settings: Settings, *, validation: int, test: int) -> list[StageRequests]:
    """For each generating stage, expert -> (requests, samples), as many as are expected.

    Recruiting is taken as uniform, the best expert as the first of the pool, and every validation question as a case
    for the aggregators, which is the most that can be.
    """
    experts = [e.name for e in settings.pool.experts]
    annotator, borrowed = settings.annotator_name, bool(settings.profiles)
    asked = test if borrowed else validation + test
    seeds = len(settings.all_seeds)
    aggregator = settings.aggregator if settings.aggregator != "auto" else experts[0]
    methods = 2 if "random_experts" in baselines_of(settings) else 1
    everyone = {name: (validation, validation) for name in experts if validation and not borrowed}
    return [
        ("annotate", {annotator: (asked, asked * settings.annotate.samples)}),
        ("profile", everyone),
        ("bench-aggregators", everyone if settings.aggregator == "auto" else {}),
        ("answer", _answers(settings, experts, test * seeds)),
        ("aggregate", {aggregator: (test * seeds * methods, test * seeds * methods)}),
        *_baselines(settings, experts, test * seeds),
    ]


def in_passes(asked: Iterable[StageRequests]) -> list[dict[str, Counts]]:
    """What is generated together: for each pass its stages, without those that ask for nothing."""
    passes: dict[tuple[str, ...], dict[str, Counts]] = {}
    for stage, counts in asked:
        if counts:
            own = next((stages for stages in PASSES if stage in stages), (stage,))
            passes.setdefault(own, {})[stage] = counts
    return list(passes.values())


def joint_name(stages: Iterable[str]) -> str:
    """What stages that are generated together are called."""
    return "+".join(stages)


def stages_of(name: str) -> list[str]:
    """The stages of a `joint_name`."""
    return name.split("+")


def _answers(settings: Settings, experts: Sequence[str], questions: int) -> dict[str, tuple[int, int]]:
    """An expert's j-th seat takes its sample j, and the methods share samples: a question wants the largest number."""
    wanted, found = baseline_samples(settings, experts), {}
    for name in experts:
        least = wanted.get(name, 0)
        draws = 2 if "random_experts" in baselines_of(settings) else 1
        below = [_below(seats, settings.k, len(experts)) ** draws for seats in range(settings.k + 1)]
        more = sum(1.0 - below[count - 1] for count in range(least + 1, settings.k + 1))
        asked = 1.0 if least else 1.0 - below[0]
        if requests := round(questions * asked):
            found[name] = (requests, max(requests, round(questions * (least + more))))
    return found


def _baselines(settings: Settings, experts: Sequence[str], questions: int) -> list[StageRequests]:
    """The stages of mixture-of-agents: each further layer of proposers, and the answers of all aggregators."""
    asked, aggregator = baselines_of(settings), settings.aggregator if settings.aggregator != "auto" else experts[0]
    layers = range(2, settings.moa_layers) if asked & {"moa", "debate"} else ()
    stages = [
        (f"baselines-layer-{layer}", dict.fromkeys(experts[: settings.k], (questions, questions))) for layer in layers
    ]
    answers: Counter[str] = Counter()
    for name, writer in (("top_k", aggregator), ("moa", aggregator), ("self_moa", experts[0])):
        if name in asked:
            answers[writer] += questions
    return [*stages, ("baselines-answers", {name: (count, count) for name, count in answers.items()})]


def _below(seats: int, k: int, experts: int) -> float:
    """The probability that an expert is drawn at most that often in k uniform draws."""
    share = 1 / experts
    return sum(math.comb(k, i) * share**i * (1 - share) ** (k - i) for i in range(seats + 1))
