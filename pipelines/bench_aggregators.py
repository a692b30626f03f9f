"""Step 3: which expert is the best aggregator, measured on synthetic cases with a known outcome."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pipelines.grading import graded_drafts, is_right
from pipelines.profile import read_profiles, sources_of
from pipelines.run import Run
from pipelines.sharding import Rows, Work, collect, generate, rows_of_shards
from symoe_ray.aggregators import best_aggregator, synthetic_case
from symoe_ray.core import ExpertSpec
from symoe_ray.fingerprints import digest
from symoe_ray.requests import aggregate_request
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, question_of, request_row

STAGE = "bench-aggregators"
RESULT = "aggregators/aggregators.json"


def run_stage(run: Run) -> None:
    """Write aggregators/part-*.parquet (graded outcomes) and aggregators/aggregators.json (scores and the best one).

    An expert that the settings name needs no measuring. Profiles of other runs bring those runs' benchmarks with them.
    """
    settings = run.settings
    validation = {p.expert: p.accuracy for p in read_profiles(run.storage)}
    if not _is_measured(settings):
        chosen, reason, scores = _known(settings, validation)
        inputs = digest(validation, chosen, reason, scores)
        if run.begin(STAGE, inputs):
            run.storage.write_json(RESULT, {"chosen": chosen, "reason": reason, "scores": _to_json(scores)})
            run.say(f"bench-aggregators: {chosen} ({reason})")
            run.done(STAGE, inputs, chosen)
        return
    work = _work(run)
    if not run.begin(STAGE, work.inputs):
        return
    commits = generate(run, work)
    specs, seed = {e.name: e for e in settings.pool.experts}, settings.all_seeds[0]
    collect(run, "aggregators", work.splits, partial(graded_drafts, STAGE, specs, seed, run.verify), DRAFTS)
    scores = _scores(run)
    chosen, reason = best_aggregator(scores, validation)
    run.storage.write_json(
        RESULT,
        {
            "chosen": chosen,
            "reason": reason,
            "scores": _to_json(scores),
            "cases": max((n for _, n in scores.values()), default=0),
            "validation_questions": run.manifest["stages"]["questions"]["validation"],
        },
    )
    run.say(f"bench-aggregators: {chosen} ({reason})")
    run.done(STAGE, work.inputs, commits)


def due_work(run: Run) -> Work | None:
    """What the stage will have generated, None if it has run, or has nothing to measure."""
    if not _is_measured(run.settings):
        return None
    work = _work(run)
    return work if run.is_due(STAGE, work.inputs) else None


def _is_measured(settings: Settings) -> bool:
    return settings.aggregator == "auto" and not settings.profiles


def _work(run: Run) -> Work:
    settings, seed = run.settings, run.settings.all_seeds[0]
    limit = settings.aggregate.max_draft_characters
    build = partial(_requests, settings.pool.experts, settings.grader, settings.max_tokens, limit, seed)
    inputs = digest(run.output("profile"), seed, limit)
    return Work(stage=STAGE, splits=("validation",), build=build, inputs=inputs)


def aggregator_of(run: Run) -> str:
    """The aggregator of a run: the one that its settings name, or that was chosen; "" before that."""
    if run.settings.aggregator != "auto":
        return run.settings.aggregator
    return str(run.storage.read_json(RESULT)["chosen"]) if run.storage.exists(RESULT) else ""


def _known(settings: Settings, validation: Mapping[str, float]) -> tuple[str, str, dict[str, tuple[int, int]]]:
    """The aggregator that needs no benchmark, why, and its known scores: the named one, or the profiles' runs' best.

    Where none of those runs has measured: the first of their aggregators in this pool, or else by validation accuracy.
    """
    if settings.aggregator != "auto":
        return settings.aggregator, "named in the settings", {}
    experts = {e.name for e in settings.pool.experts}
    sources = [source for source in sources_of(settings) if source.exists(RESULT)]
    results = [source.read_json(RESULT) for source in sources]
    scores: dict[str, tuple[int, int]] = {}
    for result in results:
        for name in experts & result["scores"].keys():
            correct, cases = scores.get(name, (0, 0))
            score = result["scores"][name]
            scores[name] = (correct + score["correct"], cases + score["graded"])
    if not any(cases for _, cases in scores.values()):
        for source, result in zip(sources, results, strict=True):
            if result["chosen"] in experts:
                return result["chosen"], f"the aggregator of {source.uri}", {}
        scores = {}
    return *best_aggregator(scores, validation), scores


def _to_json(scores: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {name: {"correct": correct, "graded": cases} for name, (correct, cases) in sorted(scores.items())}


def _requests(
    experts: Sequence[ExpertSpec], grader: str, max_tokens: int, limit: int, seed: int, storage: Storage, rows: Rows
) -> Iterator[dict[str, Any]]:
    drafts = defaultdict(list)
    for draft in rows_of_shards(storage, "profiles", DRAFTS, rows):
        if draft["failure"] is None:
            drafts[draft["question_id"]].append((draft["expert"], draft["text"], is_right(draft, grader)))
    for row in rows:
        question = question_of(row)
        case = synthetic_case(question, drafts[question.id], seed=seed)
        if case is not None:
            for spec in experts:
                request, _ = aggregate_request(
                    spec, question, case.responses, run_seed=seed, max_tokens=max_tokens, limit=limit
                )
                yield request_row(request, row["shard"], seed)


def _scores(run: Run) -> dict[str, tuple[int, int]]:
    """Right answers and cases of each expert; a failed case is not right."""
    scores = {e.name: (0, 0) for e in run.settings.pool.experts}
    table = run.storage.read_tables(run.storage.names("aggregators", ".parquet"), DRAFTS)
    for row in table.to_pylist():
        correct, cases = scores[row["expert"]]
        right = row["failure"] is None and is_right(row, run.settings.grader)
        scores[row["expert"]] = (correct + right, cases + 1)
    return scores
