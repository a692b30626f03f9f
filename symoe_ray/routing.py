"""Recruiting experts for questions (method, step 4): who sits, who is trimmed, who is redrawn. All pure, by columns.

A seat redrawn after trimming uses uniform(seed, question id, j, "redraw"), so that the seats that stay and those
redrawn together follow the question's weights over the experts that stay. Without replacement, seat j applies its u to
the renormalised weights of the experts not yet seated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from symoe_ray.core import InputError, Profile, Recruitment
from symoe_ray.routing_draws import ReferenceSampler, draw, seat_numbers
from symoe_ray.routing_rules import FALLBACKS, TOO_FEW_CANDIDATES, RoutingRules, competence, normalised, weights

__all__ = ["COUNTED", "Recruits", "Router", "RoutingRules", "SkillMap", "competence", "random_seats", "recruit"]

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

SkillMap = Mapping[str, tuple[str, float | None]]
"""Skill -> (validation skill, cosine; None where it is not known)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recruits:
    """The recruitments of all questions, in their order, and how they came about.

    `experts`, `kept` and `trimmed` are in name order. Questions x experts: `suitability` (NaN for an expert that does
    not count) and `weights`; questions x seats: `seats`, as numbers of experts; `fallback` numbers `FALLBACKS`.
    `counts` holds only what occurred: `no_skills`, `none_positive`, `all_zero` and `too_few_candidates` count questions
    by their fallback; `negative_competence_and_suitability` counts (question, expert) pairs that the paper's rule
    rewards for being bad twice; `redrawn_seats` counts seats; `trimming_off` is 1 where trimming would have left too
    few experts.
    """

    questions: Sequence[tuple[str, Sequence[str]]]
    mapping: SkillMap
    experts: tuple[str, ...]
    competence: np.ndarray
    suitability: np.ndarray
    weights: np.ndarray
    seats: np.ndarray
    fallback: np.ndarray
    kept: tuple[str, ...]
    trimmed: tuple[str, ...]
    counts: dict[str, int]

    @property
    def recruitments(self) -> tuple[Recruitment, ...]:
        """One record for each question."""
        return tuple(self.recruitment(row) for row in range(len(self.questions)))

    def recruitment(self, row: int) -> Recruitment:
        """The record of one question."""
        question_id, skills = self.questions[row]
        pairs = [self.mapping[skill] for skill in skills if skill in self.mapping]
        scores, chances = self.suitability[row].tolist(), self.weights[row].tolist()
        ranked = sorted((i for i, w in enumerate(chances) if w > 0), key=lambda i: -chances[i])
        return Recruitment(
            question_id=question_id, skills=tuple(skills), mapped=tuple(to for to, _ in pairs),
            cosines=tuple(cosine for _, cosine in pairs),
            suitability={e: s for e, s in zip(self.experts, scores, strict=True) if not math.isnan(s)},
            competence=dict(zip(self.experts, self.competence.tolist(), strict=True)),
            candidates=tuple(self.experts[i] for i in ranked), weights=tuple(chances[i] for i in ranked),
            experts=tuple(self.experts[i] for i in self.seats[row]), fallback=FALLBACKS[self.fallback[row]],
        )  # fmt: skip


def recruit(
    questions: Sequence[tuple[str, Sequence[str]]],
    mapping: SkillMap,
    profiles: Sequence[Profile],
    rules: RoutingRules,
    *,
    kept: Collection[str] | None = None,
) -> Recruits:
    """`Router(profiles, rules).recruit(...)`."""
    return Router(profiles, rules).recruit(questions, mapping, kept=kept)


class Staying(NamedTuple):
    """The experts that are not trimmed, in name order, and 1 if trimming had to be turned off."""

    kept: tuple[str, ...]
    trimming_off: int


class Router:
    """The profiles of a pool, ready for recruiting by some rules. With sampler=reference their order matters."""

    def __init__(self, profiles: Sequence[Profile], rules: RoutingRules) -> None:
        self._profiles, self._rules = profiles, rules
        self.experts = tuple(sorted(profile.expert for profile in profiles))
        gamma = competence(profiles, rules)
        self._gamma = np.array([gamma[name] for name in self.experts])
        self._known: dict[str, int] = {}
        for profile in profiles:
            for skill in profile.scores:
                self._known.setdefault(skill, len(self._known))
        self._scores = np.full((len(self._known), len(profiles)), np.nan)
        for profile in profiles:
            rows = [self._known[skill] for skill in profile.scores]
            self._scores[rows, self.experts.index(profile.expert)] = list(profile.scores.values())

    def recruit(
        self,
        questions: Sequence[tuple[str, Sequence[str]]],
        mapping: SkillMap,
        *,
        kept: Collection[str] | None = None,
    ) -> Recruits:
        """Seats k experts for every question, given as (id, skills) in file order.

        `mapping` is that of `skills.map_skills`. `kept` is for questions that come one at a time: nothing is trimmed,
        only these experts are seated, and always by the hash sampler. A question thus gets the seats that it has in a
        hash-sampled batch which kept the same experts. Raises InputError for an empty pool, or one too small for k
        seats without replacement.
        """
        rules, everyone = self._rules, np.ones(len(self.experts), dtype=bool)
        stay = everyone if kept is None else np.array([name in kept for name in self.experts], dtype=bool)
        if stay.sum() < (1 if rules.replacement else rules.k):
            raise InputError(f"k={rules.k} replacement={rules.replacement}: only {stay.sum()} experts to choose from")
        scores, present = self._suitability(questions, mapping)
        draws = _Draws([question_id for question_id, _ in questions], scores, present, self._gamma, rules)
        if rules.sampler == "reference" and kept is None:
            sampler = ReferenceSampler(self._profiles, self.experts, rules.seed)
            mapped = (tuple(self._counted(skills, mapping)) for _, skills in questions)
            uniform = rules.no_skills == "uniform"
            seats = sampler.seats(mapped, scores, draws.weights, rules.k, uniform=uniform)
        else:
            seats = draws.fill(np.full((len(questions), rules.k), -1, dtype=np.int16), everyone)
        counts: dict[str, int] = {}
        if kept is None:
            stay, counts["trimming_off"] = self._staying(self._seats_of(seats))
        if not stay.all():
            emptied = np.where(stay[seats], seats, np.int16(-1))
            counts["redrawn_seats"] = int((emptied < 0).sum())
            seats = draws.fill(emptied, stay, "redraw")
        chances, fallback = draws.over(stay)
        fallback[(np.take_along_axis(chances, seats, axis=1) <= 0).any(axis=1)] = TOO_FEW_CANDIDATES
        counts |= {name: int((fallback == number).sum()) for number, name in enumerate(FALLBACKS) if name}
        if rules.router == "paper":
            worse = present & (scores < 0) & (self._gamma < 0)
            counts["negative_competence_and_suitability"] = int(worse.sum())
        return Recruits(
            questions=questions, mapping=mapping, experts=self.experts, competence=self._gamma,
            suitability=np.where(present, scores, np.nan), weights=chances, seats=seats, fallback=fallback,
            kept=self._named(stay), trimmed=self._named(~stay), counts={n: c for n, c in counts.items() if c},
        )  # fmt: skip

    def staying(self, batches: Iterable[Sequence[tuple[str, Sequence[str]]]], mapping: SkillMap) -> Staying:
        """Who stays when the questions of all batches are seated, by the hash sampler.

        Recruiting each batch with these `kept` gives the seats that recruiting all questions at once gives.
        """
        counts = np.zeros(len(self.experts), dtype=np.int64)
        if self._rules.trim_threshold:
            for batch in batches:
                counts += self._seats_of(self.recruit(batch, mapping, kept=self.experts).seats)
        stay, trimming_off = self._staying(counts)
        return Staying(self._named(stay), trimming_off)

    def _seats_of(self, seats: np.ndarray) -> np.ndarray:
        """How many seats each expert has."""
        return np.bincount(seats.ravel(), minlength=len(self.experts))

    def _staying(self, counts: np.ndarray) -> tuple[np.ndarray, int]:
        """Which experts are not trimmed, and 1 if trimming had to be turned off."""
        everyone, rules = np.ones(len(self.experts), dtype=bool), self._rules
        if not rules.trim_threshold or not counts.sum():
            return everyone, 0
        stay = counts / counts.sum() >= rules.trim_threshold
        return (stay, 0) if stay.sum() >= (1 if rules.replacement else rules.k) else (everyone, 1)

    def _suitability(
        self, questions: Sequence[tuple[str, Sequence[str]]], mapping: SkillMap
    ) -> tuple[np.ndarray, np.ndarray]:
        """S of every question and expert, the sum of its scores over the mapped skills, and for whom it counts.

        A skill absent from a profile adds nothing; the reference sampler leaves out who has none of the skills.
        """
        known, last = self._known, len(self._known)
        columns: list[int] = []
        ends = [0]
        for _, skills in questions:
            columns += [known.get(skill, last) for skill in self._counted(skills, mapping)]
            ends.append(len(columns))
        shape = (len(questions), last + 1)
        asked = csr_array((np.ones(len(columns)), np.array(columns, dtype=np.int32), np.array(ends)), shape=shape)
        table = np.vstack([self._scores, np.full((1, len(self.experts)), np.nan)])
        scores = asked @ np.nan_to_num(table)
        if self._rules.sampler == "reference":
            return scores, (asked @ (~np.isnan(table)).astype(np.float64)) > 0
        return scores, np.broadcast_to((np.diff(ends) > 0)[:, None], scores.shape)

    def _counted(self, skills: Sequence[str], mapping: SkillMap) -> list[str]:
        mapped = [mapping[skill][0] for skill in skills if skill in mapping]
        return list(dict.fromkeys(mapped)) if self._rules.router == "paper" else mapped

    def _named(self, chosen: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, is_in in zip(self.experts, chosen, strict=True) if is_in)


def random_seats(
    question_ids: Sequence[str], num_experts: int, k: int, seed: int, *, replacement: bool = True
) -> np.ndarray:
    """k uniformly drawn experts (numbers in name order) for each question, for the random baseline.

    Independent of the main method's draws, and of all orders.
    """
    numbers = seat_numbers(seed, question_ids, k, "random_experts")
    if replacement:
        return (numbers * num_experts).astype(np.int16)
    taken: np.ndarray = np.zeros((len(question_ids), num_experts), dtype=bool)
    rows = []
    for seat in range(k):
        place = (numbers[:, seat] * (num_experts - seat)).astype(np.int64)  # among those that are left
        chosen = (np.cumsum(~taken, axis=1) <= place[:, None]).sum(axis=1)
        taken[np.arange(len(taken)), chosen] = True
        rows.append(chosen)
    return np.stack(rows, axis=1).astype(np.int16)


class _Draws:
    """The weights of a batch of questions, and hash-sampled seats by them."""

    def __init__(
        self, ids: Sequence[str], scores: np.ndarray, present: np.ndarray, gamma: np.ndarray, rules: RoutingRules
    ) -> None:
        self._ids, self._scores, self._present, self._gamma, self._rules = ids, scores, present, gamma, rules
        self.weights, self.fallback = weights(scores, present, gamma, np.ones(len(gamma), dtype=bool), rules)

    def over(self, allowed: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The questions' weights over the allowed experts: their own, renormalised, or made anew where none is left."""
        if rows is None:
            rows = np.arange(len(self._ids))
        allowed = np.broadcast_to(allowed, (len(rows), len(self._gamma)))
        left, fallback = np.where(allowed, self.weights[rows], 0.0), self.fallback[rows]
        gone = ~left.any(axis=1)
        if gone.any():
            lost = rows[gone]
            left[gone], fallback[gone] = weights(
                self._scores[lost], self._present[lost], self._gamma, allowed[gone], self._rules
            )
        return normalised(left), fallback

    def fill(self, seats: np.ndarray, allowed: np.ndarray, *key: str) -> np.ndarray:
        """Gives each empty seat (-1) an allowed expert."""
        seats = seats.copy()
        empty = np.flatnonzero((seats < 0).any(axis=1))
        numbers = seat_numbers(self._rules.seed, [self._ids[row] for row in empty], self._rules.k, *key)
        chances = self.over(allowed, empty)[0] if self._rules.replacement else None
        for seat in range(self._rules.k):
            wanted = seats[empty, seat] < 0
            rows = empty[wanted]
            if chances is not None:
                drawn = draw(chances[wanted], numbers[wanted, seat])
            else:
                drawn = draw(self.over(allowed & ~self._seated(seats[rows]), rows)[0], numbers[wanted, seat])
            seats[rows, seat] = drawn
        return seats

    def _seated(self, seats: np.ndarray) -> np.ndarray:
        taken: np.ndarray = np.zeros((len(seats), len(self._gamma) + 1), dtype=bool)  # the last column: nobody
        np.put_along_axis(taken, seats.astype(np.int64) % taken.shape[1], values=True, axis=1)
        return taken[:, :-1]
