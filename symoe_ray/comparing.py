"""Two methods on the same questions: how far apart they are, and whether that can be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from symoe_ray.statistics import (
    Interval,
    clustered_error,
    clustered_interval,
    holm,
    mcnemar_exact,
    paired_difference,
    smallest_detectable,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A against B on `n` shared questions. Differences are A - B, accuracies are means over questions and seeds.

    `ci95` is the paired bootstrap interval of the difference and `stderr` its error, both clustered by question (None:
    one question has none). `mcnemar_p` is from the first seed, in which only A got `only_a` right and only B `only_b`;
    `mcnemar_p_holm` is adjusted for all comparisons that were made together. `smallest_detectable` is the least true
    difference that so many questions with so much disagreement reveal with 80 % power, None if even 1 could be missed.
    """

    n: int
    accuracy_a: float
    ci95_a: Interval
    accuracy_b: float
    ci95_b: Interval
    difference: float
    ci95: Interval
    stderr: float | None
    only_a: int
    only_b: int
    mcnemar_p: float
    mcnemar_p_holm: float | None = None
    smallest_detectable: float | None


def compare(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Compare two methods by questions x seeds of right (1) and wrong (0), row i of both being one question.

    The numbers of seeds may differ; the first column is each one's first seed. ValueError where there is no question.
    """
    ours, theirs = _matrix(a), _matrix(b)
    mean_a, *ci95_a = clustered_interval(ours)
    mean_b, *ci95_b = clustered_interval(theirs)
    differences = ours.mean(axis=1) - theirs.mean(axis=1)
    difference, ci95 = paired_difference(differences)
    only_a = int(np.count_nonzero((ours[:, 0] > 0) & (theirs[:, 0] == 0)))
    only_b = int(np.count_nonzero((ours[:, 0] == 0) & (theirs[:, 0] > 0)))
    detectable = smallest_detectable(len(ours), (only_a + only_b) / len(ours))
    return Comparison(
        n=len(ours), accuracy_a=mean_a, ci95_a=(ci95_a[0], ci95_a[1]), accuracy_b=mean_b,
        ci95_b=(ci95_b[0], ci95_b[1]), difference=difference, ci95=ci95, stderr=clustered_error(differences),
        only_a=only_a, only_b=only_b, mcnemar_p=mcnemar_exact(only_a, only_b),
        smallest_detectable=detectable if detectable <= 1 else None,
    )  # fmt: skip


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, each with its p-value adjusted for all of them (Holm)."""
    p_values = holm([comparison.mcnemar_p for comparison in comparisons])
    return [replace(c, mcnemar_p_holm=p) for c, p in zip(comparisons, p_values, strict=True)]


def pair_entry(comparison: Comparison) -> dict[str, Any]:
    """The comparison as results.json has it under "paired"."""
    names = ("difference", "ci95", "stderr", "mcnemar_p", "mcnemar_p_holm", "smallest_detectable")
    values = asdict(comparison)
    return {name: list(values[name]) if name == "ci95" else values[name] for name in names}


def _matrix(outcomes: ArrayLike) -> np.ndarray:
    matrix = np.asarray(outcomes, dtype=float)
    return matrix[:, None] if matrix.ndim == 1 else matrix


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Comparisons as aligned text, in points with 95 % intervals.

    A row holds the fields of a `Comparison`, and `task`, `a`, `b`, `only_in_a` and `only_in_b` beside them.
    "detectable" is the least true difference that so many questions reveal with 80 % power ("-": none).
    """
    header = ("task", "A", "B", "n", "A %", "B %", "A - B", "SE", "p", "p Holm", "detectable")
    lines = [header, *map(_table_row, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([*map(str.ljust, line[:3], widths), *map(str.rjust, line[3:], widths[3:])]) for line in lines]
    notes = [
        f"{row['task']}: {row['only_in_a']:,} questions are only in A and {row['only_in_b']:,} only in B: left out"
        for row in rows
        if row["only_in_a"] or row["only_in_b"]
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], *notes])


def _table_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    def points(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def accuracy(side: str) -> str:
        low, high = row[f"ci95_{side}"]
        return f"{points(row[f'accuracy_{side}'])} ({points(low)} to {points(high)})"

    low, high = row["ci95"]
    return (
        row["task"], row["a"], row["b"], f"{row['n']:,}", accuracy("a"), accuracy("b"),
        f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})", points(row["stderr"]),
        p_text(row["mcnemar_p"]), p_text(row["mcnemar_p_holm"]), points(row["smallest_detectable"]),
    )  # fmt: skip


def p_text(p: float) -> str:
    """A p-value as it is printed."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
