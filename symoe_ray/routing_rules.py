"""The formulas of routing (method, step 4) and which of them hold: competence, suitability, weights. All pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from symoe_ray.core import InputError, Profile
from symoe_ray.settings import Settings

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
        """The rules of a run for one of its seeds; compat=reference overrides all that the released code fixes."""
        if settings.compat == "reference":
            return cls(
                k=settings.k, router="reference", sampler="reference", replacement=True, trim_threshold=0.0,
                temperature=settings.temperature, no_skills="uniform", seed=seed,
            )  # fmt: skip
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


def suitability(mapped: Sequence[str], profiles: Sequence[Profile]) -> dict[str, float]:
    """S of every expert: the sum of its scores over the mapped skills; a skill absent from its profile adds nothing."""
    return {p.expert: math.fsum(p.scores.get(skill, 0.0) for skill in mapped) for p in profiles}


def weights(
    suitability: Mapping[str, float], competence: Mapping[str, float], rules: RoutingRules
) -> tuple[dict[str, float], str]:
    """The probability of each expert that may be drawn (summing to 1), and the fallback that was needed ("": none).

    `reference`: proportional to S * gamma over the experts with S > 0; if none is positive, over all with S - min S + 1
    (`none_positive`). `paper`: softmax(gamma * S / T) over all. Where all of these products are zero, the same experts
    are equally likely (`all_zero`). An empty `suitability` stands for a question without skills (`no_skills`): every
    expert counts as S = 1, or all are equally likely with no_skills=uniform.
    """
    fallback = ""
    if not suitability:
        fallback = "no_skills"
        if rules.no_skills == "uniform":
            return normalised(dict.fromkeys(competence, 1.0)), fallback
        suitability = dict.fromkeys(competence, 1.0)
    if rules.router == "reference":
        positive = {expert: score for expert, score in suitability.items() if score > 0}
        if not positive:
            fallback, lowest = "none_positive", min(suitability.values())
            positive = {expert: score - lowest + 1 for expert, score in suitability.items()}
        suitability = positive
    products = {expert: score * competence[expert] for expert, score in suitability.items()}
    if not any(products.values()):
        return normalised(dict.fromkeys(products, 1.0)), "all_zero"
    if rules.router == "paper":
        highest = max(products.values())
        products = {expert: math.exp((w - highest) / rules.temperature) for expert, w in products.items()}
    return normalised(products), fallback


def normalised(values: Mapping[str, float]) -> dict[str, float]:
    """The same values, divided by their sum, which must not be zero."""
    whole = math.fsum(values.values())
    return {name: value / whole for name, value in values.items()}
