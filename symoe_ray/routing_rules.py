"""The formulas of routing (method, step 4) and which of them hold: competence, suitability, weights. All pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from symoe_ray.core import InputError, Profile
from symoe_ray.settings import Settings

FALLBACKS = ("", "no_skills", "none_positive", "all_zero", "too_few_candidates")
"""The rules that step in where the usual one cannot decide; tables of numbers hold an index of this."""
NO_SKILLS, NONE_POSITIVE, ALL_ZERO, TOO_FEW_CANDIDATES = 1, 2, 3, 4

_ALLOWED = {
    "router": ("reference", "paper"),
    "sampler": ("hash", "reference"),
    "no_skills": ("competence", "uniform"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRules:
    """Which of the method's rules hold. `temperature` is T in t^(1/T) and in the paper's softmax(w / T).

    Raises InputError, naming the setting, where a value is not allowed.
    """

    k: int
    router: Literal["reference", "paper"]
    sampler: Literal["hash", "reference"]
    replacement: bool
    trim_threshold: float
    temperature: float = 0.5
    no_skills: Literal["competence", "uniform"]
    seed: int

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)}: must be one of {', '.join(allowed)}")
        if self.k < 1:
            raise InputError(f"k={self.k}: must be at least 1")
        if not 0 <= self.trim_threshold <= 1:
            raise InputError(f"trim_threshold={self.trim_threshold}: must be a share between 0 and 1")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature}: must be greater than 0")
        if self.sampler == "reference" and not self.replacement:
            raise InputError("replacement=false: needs sampler=hash, since sampler=reference draws with replacement")

    @classmethod
    def from_settings(cls, settings: Settings, seed: int) -> RoutingRules:
        """The rules of a run for one of its seeds. What compat=reference stands for is in the settings already."""
        return cls(
            k=settings.k, router=settings.router, sampler=settings.sampler, replacement=settings.replacement,  # type: ignore[arg-type]
            trim_threshold=settings.trim_threshold, temperature=settings.temperature,
            no_skills=settings.no_skills, seed=seed,  # type: ignore[arg-type]
        )  # fmt: skip


def competence(profiles: Sequence[Profile], rules: RoutingRules) -> dict[str, float]:
    """gamma of every expert, from the sum t of its scores.

    `reference`: if any t is negative, all become t - min t + 1; then t^(1/T), normalised to sum 1. `paper`: the share
    t / sum of all t, which may be negative. All zero where the sum is zero.
    """
    totals = {profile.expert: math.fsum(profile.scores.values()) for profile in profiles}
    if rules.router == "reference":
        lowest = min(totals.values(), default=0.0)
        shift = 1 - lowest if lowest < 0 else 0.0
        totals = {expert: (total + shift) ** (1 / rules.temperature) for expert, total in totals.items()}
    whole = math.fsum(totals.values())
    return {expert: total / whole if whole else 0.0 for expert, total in totals.items()}


def weights(
    suitability: np.ndarray, present: np.ndarray, gamma: np.ndarray, allowed: np.ndarray, rules: RoutingRules
) -> tuple[np.ndarray, np.ndarray]:
    """Each question's probability of each expert (questions x experts, rows summing to 1), and its fallback's number.

    `suitability` and `present` (whose S counts) are questions x experts, `gamma` has one number per expert, `allowed`
    says who may be drawn (per expert, or questions x experts). Fallbacks are numbered as in `FALLBACKS`.

    `reference`: proportional to S * gamma over the experts with S > 0; if none is positive, over all with S - min S + 1
    (`none_positive`). `paper`: softmax(gamma * S / T) over all. Where all of these products are zero, the same experts
    are equally likely (`all_zero`). Where nobody is present, the question has no skills (`no_skills`): every expert
    counts as S = 1, or all are equally likely with no_skills=uniform.
    """
    allowed = np.broadcast_to(allowed, suitability.shape)
    among = present & allowed
    without: np.ndarray = ~_any(among)
    fallback = np.where(without, NO_SKILLS, 0).astype(np.int8)
    among = np.where(without[:, None], allowed, among)
    scores = np.where(without[:, None], 1.0, suitability)
    if rules.router == "reference":
        positive = among & (scores > 0)
        none = ~_any(positive)
        lowest = np.where(among, scores, np.inf).min(axis=1)
        scores = np.where(none[:, None], scores - lowest[:, None] + 1, scores)
        among = np.where(none[:, None], among, positive)
        fallback[none] = NONE_POSITIVE
    products = np.where(among, scores * gamma, 0.0)
    equal = ~_any(products)
    fallback[equal] = ALL_ZERO
    if rules.no_skills == "uniform":
        equal |= without
        fallback[without] = NO_SKILLS
    if rules.router == "paper":
        highest = np.where(among, products, -np.inf).max(axis=1)
        products = np.where(among, np.exp((products - highest[:, None]) / rules.temperature), 0.0)
    return normalised(np.where(equal[:, None], among, products)), fallback


def _any(table: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.asarray(table.any(axis=1))
    return found


def normalised(values: np.ndarray) -> np.ndarray:
    """Rows divided by their sums, which must not be zero."""
    # A cumulative sum adds one by one: a row comes out the same alone as in a large batch.
    divided: np.ndarray = values / np.cumsum(values, axis=1)[:, -1:]
    return divided
