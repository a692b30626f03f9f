"""How long an expert's answers will be: what it has written in this run already, else a guess from its limit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from symoe_ray.core import ExpertSpec
from symoe_ray.ledger import Part

UNSEEN_SHARE = 0.5


def expected_tokens(experts: Iterable[ExpertSpec], stages: Sequence[Iterable[Part]]) -> dict[str, int]:
    """Output tokens of one sample, by expert: the mean over its committed samples.

    `stages` holds the committed parts of stages that ask much the same, the likest first: the first one where an
    expert has samples decides. One that has none anywhere is taken to write half of its `max_tokens`.
    """
    means: dict[str, int] = {}
    for parts in stages:
        for expert, mean in _means(parts).items():
            means.setdefault(expert, mean)
    return {e.name: means.get(e.name, max(1, int(e.sampling.max_tokens * UNSEEN_SHARE))) for e in experts}


def _means(parts: Iterable[Part]) -> dict[str, int]:
    samples, tokens = defaultdict[str, int](int), defaultdict[str, int](int)
    for part in parts:
        samples[part.expert] += part.samples - part.failed
        tokens[part.expert] += part.completion_tokens
    return {expert: max(1, round(tokens[expert] / count)) for expert, count in samples.items() if count}
