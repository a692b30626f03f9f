"""How long an expert's answers will be: what it has written in this run already, else a guess from its limit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

from symoe_ray.core import ExpertSpec
from symoe_ray.ledger import Part
from symoe_ray.settings import Settings

# Of 4,096 tokens at most plain 8B models write about 400, of 32,768 reasoning ones 5,200.
UNSEEN_SHARE, UNSEEN_LEAST = 1 / 6, 256
SIGMA = 0.6  # of the logarithm of the lengths of one expert's answers: an assumption
LONGEST_QUANTILE = 0.9


def most_tokens(settings: Settings, stage: str, spec: ExpertSpec) -> int:
    """The limit of one answer of an expert in a stage."""
    if stage == "annotate":
        return settings.annotate.sampling_max_tokens
    most = spec.sampling.max_tokens
    return min(most, settings.max_tokens) if settings.max_tokens else most


def expected_tokens(most: Mapping[str, int], stages: Sequence[Iterable[Part]]) -> dict[str, int]:
    """Output tokens of one sample, by expert: the mean over its committed samples, `most` of which it writes.

    `stages` holds the committed parts of stages that ask much the same, the likest first: the first one where an
    expert has samples decides. For one that has none anywhere it is `unseen_tokens`.
    """
    means: dict[str, int] = {}
    for parts in stages:
        for expert, mean in _means(parts).items():
            means.setdefault(expert, mean)
    return {name: means.get(name) or unseen_tokens(limit) for name, limit in most.items()}


def unseen_tokens(most: int) -> int:
    """What an answer of `most` tokens at most is taken to have where none was seen."""
    return max(1, min(most // 2, max(UNSEEN_LEAST, round(most * UNSEEN_SHARE))))


def longest_tokens(mean: float, rows: int, most: int) -> int:
    """What the longest of so many answers stays below nine times in ten: lognormal ones, cut at `most`."""
    if rows < 1 or mean <= 0:
        return 0
    quantile = NormalDist().inv_cdf(LONGEST_QUANTILE ** (1 / rows))
    return max(1, min(most, round(mean * math.exp(SIGMA * quantile - SIGMA**2 / 2))))


def _means(parts: Iterable[Part]) -> dict[str, int]:
    samples, tokens = defaultdict[str, int](int), defaultdict[str, int](int)
    for part in parts:
        samples[part.expert] += part.samples - part.failed
        tokens[part.expert] += part.completion_tokens
    return {expert: max(1, round(tokens[expert] / count)) for expert, count in samples.items() if count}
