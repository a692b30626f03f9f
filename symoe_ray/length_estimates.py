"""How long an expert's answers will be: what it has written in this run already, else a guess from its limit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of what an expert generated, copies of greedy samples apart, and of the prompts."""

    answer: int
    prompt: float


def seen_lengths(stages: Sequence[Iterable[Part]]) -> dict[str, Lengths]:
    """What committed samples and their prompts had, by expert.

    `stages` holds the committed parts of stages that ask much the same, the likest first: the first one where an
    expert has samples decides.
    """
    found: dict[str, Lengths] = {}
    for parts in stages:
        for expert, lengths in _means(parts).items():
            found.setdefault(expert, lengths)
    return found


def expected_tokens(most: Mapping[str, int], seen: Mapping[str, Lengths]) -> dict[str, int]:
    """Output tokens of one sequence, by expert, `most` of which it writes: as seen, else `unseen_tokens`."""
    return {name: seen[name].answer if name in seen else unseen_tokens(limit) for name, limit in most.items()}


def unseen_tokens(most: int) -> int:
    """What an answer of `most` tokens at most is taken to have where none was seen."""
    return max(1, min(most // 2, max(UNSEEN_LEAST, round(most * UNSEEN_SHARE))))


def longest_tokens(mean: float, rows: int, most: int) -> int:
    """What the longest of so many answers stays below nine times in ten: lognormal ones, cut at `most`."""
    if rows < 1 or mean <= 0:
        return 0
    quantile = NormalDist().inv_cdf(LONGEST_QUANTILE ** (1 / rows))
    return max(1, min(most, round(mean * math.exp(SIGMA * quantile - SIGMA**2 / 2))))


def _means(parts: Iterable[Part]) -> dict[str, Lengths]:
    samples, tokens = Counter[str](), Counter[str]()
    requests, prompts = Counter[str](), Counter[str]()
    for part in parts:
        samples[part.expert] += part.generated
        tokens[part.expert] += part.completion_tokens
        requests[part.expert] += part.requests
        prompts[part.expert] += part.prompt_tokens
    return {
        expert: Lengths(max(1, round(tokens[expert] / count)), prompts[expert] / max(1, requests[expert]))
        for expert, count in samples.items() if count and tokens[expert]  # of imported texts no tokens are known
    }  # fmt: skip
