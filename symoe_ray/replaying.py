"""Replays: a run's answers recruited and scored under other settings. The grid of settings and the scores; pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from symoe_ray.comparing import compare, p_text
from symoe_ray.core import InputError
from symoe_ray.statistics import clustered_interval, holm

VARIED = (
    "k", "router", "sampler", "replacement", "trim_threshold", "temperature", "no_skills", "seed", "seeds", "compat",
    "grader", "aggregator", "profiles", "embedding_model", "aggregate.skip_on_consensus", "aggregate.min_experts",
    "aggregate.max_draft_characters",
)  # fmt: skip
"""The settings that a replay may change: none of them decides what a row that is generated already looks like."""
MACHINE = ("engine.", "cluster.", "gpus", "cluster", "output_dir")
_COMMAS = re.compile(r",(?![^\[]*\])")


def grid_of(overrides: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    """`key=value` words as (every combination of the values, words about the machine).

    Several values of a key stand between commas; `profiles` is a list itself, and lists in brackets are one value.
    InputError for a key that a replay cannot change.
    """
    axes: dict[str, list[str]] = {}
    machine = []
    for word in overrides:
        key, _, value = word.removeprefix("++").partition("=")
        if key.startswith(MACHINE):
            machine.append(word)
        elif key in VARIED:
            axes[key] = [value] if key == "profiles" else _COMMAS.split(value)
        else:
            raise InputError(f"{key} cannot be replayed; these can: {', '.join(VARIED)}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())], machine


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replayed:
    """What came of one setting: arrays of questions x seeds.

    `drafted`: all drafts of the question are there; only then majority and oracle count. `answered`: so is its final
    answer; only then `correct`, `calls` and the tokens do. `best_possible` is 1 where any expert of the pool was right,
    0 where none was, NaN where not every expert's answer is there.
    """

    drafted: np.ndarray
    answered: np.ndarray
    correct: np.ndarray
    majority: np.ndarray
    oracle: np.ndarray
    best_possible: np.ndarray
    calls: np.ndarray
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray


def scores_of(made: Replayed, own: np.ndarray | None) -> dict[str, Any]:
    """The scores of a setting, each over the questions that are covered in all seeds; `n` says how many those are.

    `own` is what the run itself got right, questions x its seeds (None: not known). `regret` is what a perfect judge of
    the whole pool would have got right beside it, over the questions where that is known.
    """
    drafted, answered = np.asarray(made.drafted.all(axis=1)), np.asarray(made.answered.all(axis=1))
    known = answered & ~np.isnan(made.best_possible).any(axis=1)
    possible = made.best_possible[known]
    pair = compare(made.correct[answered], own[answered]) if own is not None and answered.any() else None
    return {
        "questions": len(answered),
        "coverage": {"drafts": _share(drafted), "answers": _share(answered), "oracle_pool": _share(known)},
        "methods": {
            "symoe": _accuracy(made.correct[answered]),
            "majority": _accuracy(made.majority[drafted]),
            "oracle": _accuracy(made.oracle[drafted]),
            "oracle_pool": _accuracy(possible),
        },
        "regret": float(possible.mean() - made.correct[known].mean()) if known.any() else None,
        "calls": _per_seed(made.calls, answered),
        "prompt_tokens": _per_seed(made.prompt_tokens, answered),
        "completion_tokens": _per_seed(made.completion_tokens, answered),
        "vs_run": asdict(pair) if pair else None,
    }


def adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row's "vs_run" the p-value adjusted for all settings of one call (Holm)."""
    pairs = [row["vs_run"] for row in rows if row["vs_run"]]
    for pair, p in zip(pairs, holm([pair["mcnemar_p"] for pair in pairs]), strict=True):
        pair["mcnemar_p_holm"] = p


def replay_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Settings and their scores as aligned text; a score over some of the questions only says over how many.

    "vs run" is the difference from the run's own result on the same questions in points, p is McNemar's exact p,
    "p Holm" the same adjusted for all settings.
    """
    header = ("setting", "answers", "symoe", "95% CI", "majority", "oracle", "regret", "calls", "vs run", "p", "p Holm")
    lines = [header, *map(_line, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    notes = []
    if any(row["coverage"]["answers"] < 1 for row in rows):
        notes.append("Scores are over the questions that are covered: symoe by answers, majority and oracle by drafts.")
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], *notes])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    methods, pair = row["methods"], row["vs_run"]
    ours = methods["symoe"]
    return (
        " ".join(f"{key}={value}" for key, value in row["changes"].items()) or "as the run",
        f"{ours['n']:,}/{row['questions']:,}",
        _points(ours["accuracy"]),
        f"{100 * ours['ci95'][0]:.1f}-{100 * ours['ci95'][1]:.1f}" if ours["n"] else "-",
        _points(methods["majority"]["accuracy"]),
        _points(methods["oracle"]["accuracy"]),
        _points(row["regret"]),
        f"{row['calls']:,.0f}",
        f"{100 * pair['difference']:+.1f}" if pair else "-",
        p_text(pair["mcnemar_p"]) if pair else "-",
        p_text(pair["mcnemar_p_holm"]) if pair else "-",
    )


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _accuracy(outcomes: np.ndarray) -> dict[str, Any]:
    mean, low, high = clustered_interval(outcomes)
    return {"accuracy": mean if len(outcomes) else None, "ci95": [low, high], "n": len(outcomes)}


def _share(covered: np.ndarray) -> float:
    return float(covered.mean()) if covered.size else 0.0


def _per_seed(costs: np.ndarray, rows: np.ndarray) -> float:
    return float(costs[rows].sum() / costs.shape[1])
