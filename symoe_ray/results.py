"""results.json in lm-eval's layout, from rows that are already graded, and its table for the terminal. Pure assembly.

The layout follows lm-evaluation-harness 0.4 (EvaluationTracker, `evaluate`), so that tools which read its files read
these; what is ours stands under the key "symoe".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from symoe_ray.core import InputError
from symoe_ray.statistics import (
    clustered_error,
    clustered_interval,
    mcnemar_exact,
    paired_difference,
    smallest_detectable,
)

_OURS = "symoe"
_BASELINES = (
    "best_single",
    "best_single_test",
    "majority",
    "random_experts",
    "self_consistency",
    "oracle",
    "oracle_pool",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """One method's graded answer to one question with one seed, and what it cost.

    `correct` is by the run's grader, `correct_reference` by the released one; `graders_disagree` is whether our
    default one and the released one do. `calls` counts model calls and the token
    counts everything that the answer needed, drafts included.
    """

    method: str
    question_id: str
    seed: int
    correct: bool
    correct_reference: bool
    graders_disagree: bool = False
    answer: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    unparsed: bool = False
    truncated: bool = False
    failed: bool = False


def best_single(validation: Mapping[str, tuple[int, int]]) -> str:
    """The expert with the highest validation accuracy, from expert -> (right, graded); ties go to the first name.

    An expert without a graded answer counts as 0. InputError where there is no expert at all.
    """
    if not validation:
        raise InputError("best_single: no expert has a validation result; profile the pool first")

    def rank(expert: str) -> tuple[float, str]:
        correct, graded = validation[expert]
        return (-(correct / graded) if graded else 0.0), expert

    return min(validation, key=rank)


def build_results(
    *,
    task: str,
    rows: Iterable[MethodRow],
    engine: Mapping[str, object],
    config: Mapping[str, object],
    versions: Mapping[str, str],
    counts: Mapping[str, int],
    notes: Mapping[str, object],
    date: float,
) -> dict[str, Any]:
    """The whole of results.json as JSON-able values.

    `rows` of all methods and seeds, seeds in the order of the run (`mcnemar_p` is taken from the first); `engine` is
    passed through; `config` the run's settings; `versions` of packages (and `git_hash` if known); `counts` of the data
    (`test_questions`, before any limit, becomes n-samples' "original"); `date` epoch seconds. A method without rows is
    absent. Calls and tokens are totals over the questions, averaged over seeds; accuracy weighs questions equally;
    grading counts add up over seeds. Two rows for one method, question and seed: ValueError.
    """
    methods = _by_method(rows)
    ours = methods.get(_OURS, [])
    summaries = {method: _summary(of_method) for method, of_method in methods.items()}
    questions = len({row.question_id for row in ours})
    seeds = list(dict.fromkeys(row.seed for of_method in methods.values() for row in of_method))
    return {
        "results": {task: _lm_eval_metrics(task, ours)},
        "group_subtasks": {task: []},
        "configs": {task: _lm_eval_task(task, len(seeds))},
        "versions": {task: 1},
        "n-shot": {task: 0},
        "higher_is_better": {task: {"acc": True}},
        "n-samples": {task: {"original": counts.get("test_questions", questions), "effective": questions}},
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
            "methods": summaries,
            "paired": {f"{_OURS}_vs_{name}": pair for name in methods if (pair := _pair(ours, methods[name], name))},
            "grading": _grading(ours),
            "engine": dict(engine),
            "seeds": seeds,
            "counts": dict(counts),
            "versions": dict(versions),
            "notes": dict(notes),
        },
    }


def accuracy_table(results: Mapping[str, Any]) -> str:
    """The methods of `build_results` as an aligned table for the terminal, ours first; "" without methods.

    "symoe ahead" is ours minus the row's accuracy in points, over the questions that both have; p is McNemar's exact p.
    """
    block = results["symoe"]
    if not block["methods"]:
        return ""
    header = ("method", "accuracy", "95% CI", "n", "calls", "tokens", "symoe ahead", "p")
    lines = [header] + [
        _table_row(method, row, block["paired"].get(f"{_OURS}_vs_{method}")) for method, row in block["methods"].items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def _by_method(rows: Iterable[MethodRow]) -> dict[str, list[MethodRow]]:
    """Rows by method: ours, the baselines, then the experts by name."""
    methods: dict[str, list[MethodRow]] = {}
    seen: set[tuple[str, str, int]] = set()
    for row in rows:
        key = (row.method, row.question_id, row.seed)
        if key in seen:
            raise ValueError(f"two rows for method {row.method}, question {row.question_id}, seed {row.seed}")
        seen.add(key)
        methods.setdefault(row.method, []).append(row)
    rank = {name: position for position, name in enumerate((_OURS, *_BASELINES))}
    return {name: methods[name] for name in sorted(methods, key=lambda name: (rank.get(name, len(rank)), name))}


def _summary(rows: Sequence[MethodRow]) -> dict[str, Any]:
    accuracy, low, high = clustered_interval(_outcomes(rows))
    reference, _, _ = clustered_interval(_outcomes(rows, reference=True))
    seeds = len({row.seed for row in rows})
    return {
        "accuracy": accuracy,
        "ci95": [low, high],
        "n": len({row.question_id for row in rows}),
        "calls": _per_seed(sum(row.calls for row in rows), seeds),
        "prompt_tokens": _per_seed(sum(row.prompt_tokens for row in rows), seeds),
        "completion_tokens": _per_seed(sum(row.completion_tokens for row in rows), seeds),
        "accuracy_reference": reference,
    }


def _pair(ours: Sequence[MethodRow], other: Sequence[MethodRow], name: str) -> dict[str, Any] | None:
    """The comparison over shared questions; None for ourselves, and where no question is shared.

    `smallest_detectable` is what a set of this size and disagreement can find with 80 % power, None if nothing.
    """
    a, b = _outcomes(ours), _outcomes(other)
    if name == _OURS or not a.keys() & b.keys():
        return None
    difference, interval = paired_difference(_means(a), _means(b))
    only_ours, only_other, shared = _discordant(ours, other)
    detectable = smallest_detectable(shared, (only_ours + only_other) / shared) if shared else float("inf")
    return {
        "difference": difference,
        "ci95": list(interval),
        "mcnemar_p": mcnemar_exact(only_ours, only_other) if shared else None,
        "smallest_detectable": detectable if detectable <= 1 else None,
    }


def _discordant(ours: Sequence[MethodRow], other: Sequence[MethodRow]) -> tuple[int, int, int]:
    """In the first seed that both have: questions only ours got right, only the other did, and all they share."""
    common = {row.seed for row in other}
    first = next((row.seed for row in ours if row.seed in common), None)
    a = {row.question_id: row.correct for row in ours if row.seed == first}
    b = {row.question_id: row.correct for row in other if row.seed == first}
    shared = a.keys() & b.keys()
    return sum(a[q] and not b[q] for q in shared), sum(b[q] and not a[q] for q in shared), len(shared)


def _grading(rows: Sequence[MethodRow]) -> dict[str, int]:
    return {
        "unparsed": sum(row.unparsed for row in rows),
        "truncated": sum(row.truncated for row in rows),
        "failed": sum(row.failed for row in rows),
        "grader_disagreement": sum(row.graders_disagree for row in rows),
    }


def _lm_eval_metrics(task: str, ours: Sequence[MethodRow]) -> dict[str, Any]:
    """lm-eval's metric,filter keys: filter "none" is the run's grader, "reference" the released one."""
    metrics: dict[str, Any] = {"alias": task}
    for name in ("none", "reference") if ours else ():
        outcomes = _outcomes(ours, reference=name == "reference")
        error = clustered_error(outcomes)
        metrics[f"acc,{name}"] = clustered_interval(outcomes)[0]
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


def _outcomes(rows: Sequence[MethodRow], *, reference: bool = False) -> dict[str, list[float]]:
    outcomes: dict[str, list[float]] = {}
    for row in rows:
        outcomes.setdefault(row.question_id, []).append(float(row.correct_reference if reference else row.correct))
    return outcomes


def _means(outcomes: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {question: sum(seeds) / len(seeds) for question, seeds in outcomes.items()}


def _per_seed(total: int, seeds: int) -> int | float:
    return total // seeds if total % seeds == 0 else total / seeds


def _table_row(method: str, row: Mapping[str, Any], pair: Mapping[str, Any] | None) -> tuple[str, ...]:
    low, high = row["ci95"]
    tokens = row["prompt_tokens"] + row["completion_tokens"]
    p = pair["mcnemar_p"] if pair else None
    return (
        method,
        f"{100 * row['accuracy']:.1f}%",
        f"{100 * low:.1f}-{100 * high:.1f}",
        f"{row['n']:,}",
        f"{row['calls']:,.0f}",
        f"{tokens:,.0f}",
        f"{100 * pair['difference']:+.1f}" if pair else "",
        "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
    )
