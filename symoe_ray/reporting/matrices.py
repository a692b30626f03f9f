"""Numbers by skill and expert, cut to what a reader can take in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

SKILLS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """`rows` of (skill, one value per column), `peak` the largest magnitude, `left_out` counts skills not shown."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    peak: float
    left_out: int


def matrix(values: Mapping[str, Mapping[str, float]]) -> Matrix:
    """Of skill -> expert -> value: the skills with the largest sum of magnitudes, ties by name."""
    columns = tuple(sorted({expert for row in values.values() for expert in row}))
    order = sorted(values, key=lambda skill: (-sum(map(abs, values[skill].values())), skill))
    rows = tuple((skill, tuple(values[skill].get(e, 0) for e in columns)) for skill in order[:SKILLS_SHOWN])
    return Matrix(
        columns=columns,
        rows=rows,
        peak=max((abs(value) for _, row in rows for value in row), default=0) or 1,
        left_out=len(order) - len(rows),
    )


def by_skill(profiles: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Expert -> skill -> score, turned to skill -> expert -> score."""
    turned: dict[str, dict[str, float]] = defaultdict(dict)
    for expert, scores in profiles.items():
        for skill, score in scores.items():
            turned[skill][expert] = score
    return turned
