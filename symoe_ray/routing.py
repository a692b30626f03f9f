"""Recruiting experts for questions (method, step 4): who sits, who is trimmed, who is redrawn. All pure.

The hash sampler gives seat j of a question the number u = uniform(seed, question id, j) and takes the first expert, in
name order, whose cumulative weight exceeds u. A seat redrawn after trimming uses uniform(seed, question id, j,
"redraw"), so that the seats that stay and those redrawn together follow the question's weights over the experts that
stay. Without replacement, seat j applies its u to the renormalised weights of the experts not yet seated.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from symoe_ray.core import InputError, Profile, Recruitment
from symoe_ray.fingerprints import uniform
from symoe_ray.routing_rules import RoutingRules, competence, normalised, suitability, weights

__all__ = ["COUNTED", "Recruits", "RoutingRules", "competence", "random_experts", "recruit", "suitability", "weights"]

COUNTED = {
    "no_skills": "questions without a usable skill",
    "none_positive": "questions on whose skills no expert scores above zero",
    "all_zero": "questions with all weights zero, whose experts were drawn uniformly",
    "too_few_candidates": "questions with fewer candidates than seats",
    "redrawn_seats": "seats redrawn after trimming",
    "trimming_off": "trimming turned off, as too few experts would have stayed",
    "negative_competence_and_suitability": "weights raised by a negative competence times a negative suitability",
}
"""What each key of `Recruits.counts` counts, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recruits:
    """The recruitments of all questions, in their order, and how they came about.

    `kept` and `trimmed` are expert names in name order. `counts` holds only what occurred: `no_skills`,
    `none_positive`, `all_zero` and `too_few_candidates` count questions by their recruitment's `fallback`;
    `negative_competence_and_suitability` counts (question, expert) pairs that the paper's rule rewards for being bad
    twice; `redrawn_seats` counts seats; `trimming_off` is 1 where trimming would have left too few experts.
    """

    recruitments: tuple[Recruitment, ...]
    kept: tuple[str, ...]
    trimmed: tuple[str, ...]
    counts: dict[str, int]


def recruit(
    questions: Sequence[tuple[str, Sequence[str]]],
    mapping: Mapping[str, tuple[str, float]],
    profiles: Sequence[Profile],
    rules: RoutingRules,
    *,
    kept: Collection[str] | None = None,
) -> Recruits:
    """Seats k experts for every question, given as (id, skills) in file order.

    `mapping` is that of `skills.map_skills`. With sampler=reference the order of `profiles` matters. `kept` is for
    questions that come one at a time: nothing is trimmed, only these experts are seated, and always by the hash
    sampler. A question thus gets the seats that it has in a hash-sampled batch which kept the same experts. Raises
    InputError for an empty pool, or one too small for k seats without replacement.
    """
    names = sorted(profile.expert for profile in profiles)
    stay = names if kept is None else [name for name in names if name in kept]
    if len(stay) < (1 if rules.replacement else rules.k):
        raise InputError(f"k={rules.k} replacement={rules.replacement}: only {len(stay)} experts to choose from")
    gamma = competence(profiles, rules)
    cases = [_case(question_id, skills, mapping, profiles, gamma, rules) for question_id, skills in questions]
    if rules.sampler == "reference" and kept is None:
        seats = _reference_seats(cases, profiles, rules)
    else:
        seats = [_fill(case, [None] * rules.k, names, gamma, rules) for case in cases]
    counts: Counter[str] = Counter()
    if kept is None:
        stay, counts["trimming_off"] = _staying(seats, names, rules)
    if len(stay) < len(names):
        for index, case in enumerate(cases):
            left = [expert if expert in stay else None for expert in seats[index]]
            if None in left:
                counts["redrawn_seats"] += left.count(None)
                seats[index] = _fill(case, left, stay, gamma, rules, "redraw")
    made = tuple(_recruitment(c, s, stay, gamma, rules) for c, s in zip(cases, seats, strict=True))
    counts.update(recruitment.fallback for recruitment in made if recruitment.fallback)
    if rules.router == "paper":
        counts["negative_competence_and_suitability"] = sum(
            score < 0 and gamma[expert] < 0 for case in cases for expert, score in case.suitability.items()
        )
    trimmed = tuple(name for name in names if name not in stay)
    return Recruits(recruitments=made, kept=tuple(stay), trimmed=trimmed, counts={n: c for n, c in counts.items() if c})


def random_experts(
    question_id: str, experts: Sequence[str], k: int, seed: int, *, replacement: bool = True
) -> tuple[str, ...]:
    """k uniformly drawn experts for the random baseline: independent of the main method's draws, and of all orders."""
    left, seats = sorted(experts), []
    for seat in range(k):
        chosen = left[int(uniform(seed, question_id, seat, "random_experts") * len(left))]
        seats.append(chosen)
        left = left if replacement else [name for name in left if name != chosen]
    return tuple(seats)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A question on its way to its seats; an empty `suitability` means that it has no skills."""

    question_id: str
    skills: tuple[str, ...]
    mapped: tuple[str, ...]
    cosines: tuple[float, ...]
    suitability: dict[str, float]
    weights: dict[str, float]
    fallback: str


def _case(
    question_id: str,
    skills: Sequence[str],
    mapping: Mapping[str, tuple[str, float]],
    profiles: Sequence[Profile],
    gamma: Mapping[str, float],
    rules: RoutingRules,
) -> _Case:
    pairs = [mapping[skill] for skill in skills if skill in mapping]
    mapped = tuple(skill for skill, _ in pairs)
    counted = tuple(dict.fromkeys(mapped)) if rules.router == "paper" else mapped
    if rules.sampler == "reference":
        scores = _walk(counted, profiles)
    else:
        scores = suitability(counted, profiles) if counted else {}
    probabilities, fallback = weights(scores, gamma, rules)
    return _Case(
        question_id=question_id, skills=tuple(skills), mapped=mapped, cosines=tuple(cosine for _, cosine in pairs),
        suitability=scores, weights=probabilities, fallback=fallback,
    )  # fmt: skip


def _walk(mapped: Sequence[str], profiles: Sequence[Profile]) -> dict[str, float]:
    """S in the order in which the released code lists the experts, without those that have none of the skills."""
    totals: dict[str, float] = {}
    for skill in mapped:
        scored = [(p.expert, p.scores[skill]) for p in profiles if skill in p.scores]
        for expert, score in sorted(scored, key=lambda pair: -pair[1]):
            totals[expert] = totals.get(expert, 0.0) + score
    return dict(sorted(totals.items(), key=lambda pair: -pair[1]))


def _reference_seats(cases: Sequence[_Case], profiles: Sequence[Profile], rules: RoutingRules) -> list[tuple[str, ...]]:
    generator = random.Random(rules.seed)
    everyone = [profile.expert for profile in profiles]
    seats = []
    for case in cases:
        if not case.suitability and rules.no_skills == "uniform":
            seats.append(tuple(generator.choices(everyone, k=rules.k)))
        else:
            seats.append(tuple(generator.choices(list(case.weights), list(case.weights.values()), k=rules.k)))
        if not case.suitability:
            generator.choices(everyone, k=1)  # The released script draws an aggregator here, which nothing uses.
    return seats


def _fill(
    case: _Case,
    seats: Sequence[str | None],
    allowed: Collection[str],
    gamma: Mapping[str, float],
    rules: RoutingRules,
    *key: str,
) -> tuple[str, ...]:
    """Gives each empty seat an allowed expert by the hash sampler."""
    filled = list(seats)
    names: list[str] = []
    for seat, occupant in enumerate(seats):
        if occupant is not None:
            continue
        if not names or not rules.replacement:
            free = allowed if rules.replacement else [name for name in allowed if name not in filled]
            probabilities, _ = _restricted(case, free, gamma, rules)
            names = sorted(name for name, weight in probabilities.items() if weight > 0)
            cumulative = list(accumulate(probabilities[name] for name in names))
        u = uniform(rules.seed, case.question_id, seat, *key)
        filled[seat] = names[min(bisect_right(cumulative, u * cumulative[-1]), len(names) - 1)]
    return tuple(expert for expert in filled if expert is not None)


def _restricted(
    case: _Case, allowed: Collection[str], gamma: Mapping[str, float], rules: RoutingRules
) -> tuple[dict[str, float], str]:
    """A question's weights over the allowed experts: its own, renormalised, or made anew where none is left."""
    left = {expert: weight for expert, weight in case.weights.items() if expert in allowed}
    if any(left.values()):
        return normalised(left), case.fallback
    scores = {expert: score for expert, score in case.suitability.items() if expert in allowed}
    return weights(scores, {expert: share for expert, share in gamma.items() if expert in allowed}, rules)


def _staying(seats: Sequence[tuple[str, ...]], names: list[str], rules: RoutingRules) -> tuple[list[str], int]:
    """The experts that are not trimmed, and 1 if trimming had to be turned off."""
    taken = Counter(expert for row in seats for expert in row)
    if not rules.trim_threshold or not taken:
        return names, 0
    stay = [name for name in names if taken[name] / taken.total() >= rules.trim_threshold]
    return (stay, 0) if len(stay) >= (1 if rules.replacement else rules.k) else (names, 1)


def _recruitment(
    case: _Case, seats: tuple[str, ...], stay: Collection[str], gamma: Mapping[str, float], rules: RoutingRules
) -> Recruitment:
    probabilities, fallback = _restricted(case, stay, gamma, rules)
    ranked = sorted(((w, name) for name, w in probabilities.items() if w > 0), key=lambda pair: (-pair[0], pair[1]))
    candidates = tuple(name for _, name in ranked)
    if not set(seats) <= set(candidates):
        fallback = "too_few_candidates"
    return Recruitment(
        question_id=case.question_id, skills=case.skills, mapped=case.mapped, cosines=case.cosines,
        suitability=case.suitability, competence=dict(gamma), candidates=candidates,
        weights=tuple(weight for weight, _ in ranked), experts=seats, fallback=fallback,
    )  # fmt: skip
