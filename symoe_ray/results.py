"""results.json in lm-eval's layout, from rows that are already graded, and its table for the terminal. Pure assembly.

The layout follows lm-evaluation-harness 0.4 (EvaluationTracker, `evaluate`), so that tools which read its files read
these; what is ours stands under the key "symoe".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from symoe_ray.comparing import adjusted, compare, p_text, pair_entry
from symoe_ray.core import InputError
from symoe_ray.outcomes import MethodOutcomes
from symoe_ray.statistics import clustered_error, clustered_interval

_OURS = "symoe"
_BASELINES = (
    "best_single",
    "best_single_test",
    "majority",
    "random_experts",
    "self_consistency",
    "top_k",
    "moa",
    "self_moa",
    "debate",
    "oracle",
    "oracle_pool",
)


def ranked(validation: Mapping[str, tuple[int, int]]) -> list[str]:
    """The experts by validation accuracy, highest first, from expert -> (right, asked); ties go to the first name.

    An expert that was asked nothing counts as 0. InputError where there is no expert at all.
    """
    if not validation:
        raise InputError("best_single: no expert has a validation result; profile the pool first")

    def rank(expert: str) -> tuple[float, str]:
        correct, asked = validation[expert]
        return (-(correct / asked) if asked else 0.0), expert

    return sorted(validation, key=rank)


def build_results(
    *,
    task: str,
    methods: Sequence[MethodOutcomes],
    grading: Mapping[str, object],
    engine: Mapping[str, object],
    config: Mapping[str, object],
    versions: Mapping[str, str],
    counts: Mapping[str, int],
    notes: Mapping[str, object],
    date: float,
) -> dict[str, Any]:
    """The whole of results.json as JSON-able values.

    `methods` of all seeds over the same questions in the same order, seeds in the order of the run (`mcnemar_p` is
    taken from the first); `grading` of our final answers and `engine` are passed through; `config` the run's settings;
    `versions` of packages (and `git_hash` if known); `counts` of the data (`test_questions_in_all`, before any limit,
    becomes n-samples' "original"); `date` epoch seconds. Calls, tokens and seconds are totals over the questions,
    averaged over seeds; accuracy weighs questions equally. A method that lacks a seed is left out; one that is there
    twice with a seed is a ValueError.
    """
    grouped = _by_method(methods)
    ours = grouped.get(_OURS, [])
    questions = len(ours[0].correct) if ours else 0
    seeds = list(dict.fromkeys(made.seed for made in methods))
    return {
        "results": {task: _lm_eval_metrics(task, ours)},
        "group_subtasks": {task: []},
        "configs": {task: _lm_eval_task(task, len(seeds))},
        "versions": {task: 1},
        "n-shot": {task: 0},
        "higher_is_better": {task: {"acc": True}},
        "n-samples": {task: {"original": counts.get("test_questions_in_all", questions), "effective": questions}},
        "config": {
            "model": _OURS,
            "model_args": dict(config),
            "limit": config.get("limit") or None,
            "random_seed": seeds[0] if seeds else None,
        },
        "git_hash": versions.get("git_hash"),
        "date": date,
        "transformers_version": versions.get("transformers"),
        "model_source": _OURS,
        "model_name": _OURS,
        "model_name_sanitized": _OURS,
        "total_evaluation_time_seconds": str(engine["wall_s"]) if "wall_s" in engine else None,
        "symoe": {
            "methods": {name: _summary(of_method) for name, of_method in grouped.items()},
            "paired": _paired(grouped),
            "grading": dict(grading),
            "engine": dict(engine),
            "seeds": seeds,
            "counts": dict(counts),
            "versions": dict(versions),
            "notes": dict(notes),
        },
    }


def accuracy_table(results: Mapping[str, Any]) -> str:
    """The methods of `build_results` as an aligned table for the terminal, ours first; "" without methods.

    "symoe ahead" is ours minus the row's accuracy in points, p is McNemar's exact p, "p Holm" the same adjusted for all
    rows together, and "detectable" the least true difference in points that so many questions reveal with 80 % power
    ("-": none).
    """
    block = results["symoe"]
    if not block["methods"]:
        return ""
    header = (
        "method", "accuracy", "95% CI", "n", "calls", "tokens", "seconds", "symoe ahead", "p", "p Holm", "detectable",
    )  # fmt: skip
    lines = [header] + [
        _table_row(method, row, block["paired"].get(f"{_OURS}_vs_{method}")) for method, row in block["methods"].items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _by_method(methods: Sequence[MethodOutcomes]) -> dict[str, list[MethodOutcomes]]:
    """The seeds of each method that has them all: ours, the baselines, then the experts by name."""
    grouped: dict[str, list[MethodOutcomes]] = {}
    for made in methods:
        seeds = grouped.setdefault(made.method, [])
        if made.seed in {other.seed for other in seeds}:
            raise ValueError(f"method {made.method} is there twice with seed {made.seed}")
        seeds.append(made)
    rank = {name: position for position, name in enumerate((_OURS, *_BASELINES))}
    most = max(map(len, grouped.values()), default=0)
    complete = [name for name, seeds in grouped.items() if len(seeds) == most]
    order = sorted(complete, key=lambda name: (rank.get(name.split("@")[0], len(rank)), name))
    return {name: grouped[name] for name in order}


def _paired(grouped: Mapping[str, Sequence[MethodOutcomes]]) -> dict[str, dict[str, Any]]:
    """Ours against each of the others, the p-values adjusted for all of them."""
    others = [name for name in grouped if name != _OURS] if _OURS in grouped else []
    pairs = adjusted([compare(_correct(grouped[_OURS]), _correct(grouped[name])) for name in others])
    return {f"{_OURS}_vs_{name}": pair_entry(pair) for name, pair in zip(others, pairs, strict=True)}


def _correct(seeds: Sequence[MethodOutcomes], column: str = "correct") -> np.ndarray:
    """Questions x seeds of right and wrong."""
    return np.column_stack([getattr(made, column) for made in seeds])


def _summary(seeds: Sequence[MethodOutcomes]) -> dict[str, Any]:
    accuracy, low, high = clustered_interval(_correct(seeds))
    seconds = float(np.sum([made.seconds.sum() for made in seeds])) / len(seeds)
    return {
        "accuracy": accuracy,
        "ci95": [low, high],
        "n": len(seeds[0].correct),
        "calls": _per_seed([made.calls for made in seeds]),
        "prompt_tokens": _per_seed([made.prompt_tokens for made in seeds]),
        "completion_tokens": _per_seed([made.completion_tokens for made in seeds]),
        "seconds": None if np.isnan(seconds) else round(seconds, 3),
        "accuracy_default": clustered_interval(_correct(seeds, "correct_default"))[0],
        "accuracy_reference": clustered_interval(_correct(seeds, "correct_reference"))[0],
    }


def _lm_eval_metrics(task: str, ours: Sequence[MethodOutcomes]) -> dict[str, Any]:
    """lm-eval's metric,filter keys: filter "none" is the run's grader, "default" ours, "reference" the released one."""
    metrics: dict[str, Any] = {"alias": task}
    columns = {"none": "correct", "default": "correct_default", "reference": "correct_reference"}
    for name, column in columns.items() if ours else ():
        correct = _correct(ours, column)
        error = clustered_error(correct)
        metrics[f"acc,{name}"] = clustered_interval(correct)[0]
        metrics[f"acc_stderr,{name}"] = "N/A" if error is None else error
    return metrics


def _lm_eval_task(task: str, repeats: int) -> dict[str, Any]:
    return {
        "task": task,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "repeats": repeats,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


def _per_seed(costs: Sequence[np.ndarray]) -> int | float:
    total, seeds = int(sum(values.sum() for values in costs)), len(costs)
    return total // seeds if total % seeds == 0 else total / seeds


def _table_row(method: str, row: Mapping[str, Any], pair: Mapping[str, Any] | None) -> tuple[str, ...]:
    low, high = row["ci95"]
    tokens = row["prompt_tokens"] + row["completion_tokens"]
    return (
        method,
        f"{100 * row['accuracy']:.1f}%",
        f"{100 * low:.1f}-{100 * high:.1f}",
        f"{row['n']:,}",
        f"{row['calls']:,.0f}",
        f"{tokens:,.0f}",
        "" if row["seconds"] is None else f"{row['seconds']:,.1f}",
        *(("",) * 4 if pair is None else _table_pair(pair)),
    )


def _table_pair(pair: Mapping[str, Any]) -> tuple[str, str, str, str]:
    detectable = pair["smallest_detectable"]
    return (
        f"{100 * pair['difference']:+.1f}",
        p_text(pair["mcnemar_p"]),
        p_text(pair["mcnemar_p_holm"]),
        "-" if detectable is None else f"{100 * detectable:.1f}",
    )
