"""Step 6: the aggregator writes the final answer from the seats' drafts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pipelines.bench_aggregators import aggregator_of
from pipelines.grading import graded
from pipelines.run import Run
from pipelines.sharding import Rows, collect, generate, rows_of_shards
from symoe_ray.aggregators import consensus
from symoe_ray.core import ExpertSpec, Failure, Question, Request
from symoe_ray.fingerprints import digest
from symoe_ray.grading import Verify
from symoe_ray.ledger import responses
from symoe_ray.requests import aggregate_request, seat_samples
from symoe_ray.settings import AggregateSettings
from symoe_ray.stage_sizes import baselines_of
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, RECRUITS, question_of, request_row

STAGE = "aggregate"
SEATS_OF = {"symoe": "experts", "random_experts": "random_experts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is needed to aggregate: the same for building requests and for collecting what came of them."""

    spec: ExpertSpec
    rules: AggregateSettings
    grader: str
    methods: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One question, method and seed: a request to the aggregator, or the reason why there is none."""

    question: Question
    shard: int
    method: str
    experts: tuple[str, ...]
    request: Request | None = None
    cut: int = 0
    agreed: dict[str, Any] | None = None
    failure: Failure | None = None


def run_stage(run: Run) -> None:
    """Write answers/part-*.parquet (in seed=<N> folders for several seeds): final answers per question and method."""
    settings = run.settings
    aggregator = aggregator_of(run)
    methods = tuple(SEATS_OF) if baselines_of(settings) == "all" else ("symoe",)
    plan = _Plan(
        spec=settings.pool.expert(aggregator), rules=settings.aggregate, grader=settings.grader, methods=methods,
        max_tokens=settings.max_tokens,
    )  # fmt: skip
    inputs = digest(run.output("answer"), run.output("recruit"), aggregator, asdict(settings.aggregate), methods)
    if not run.begin(STAGE, inputs):
        return
    folders = {seed: run.seed_folder(seed) for seed in settings.all_seeds}
    commits = generate(run, STAGE, ("test",), partial(_requests, plan, folders), inputs)
    for seed, folder in folders.items():
        function = partial(_answers, plan, seed, folder, run.verify)
        collect(run, folder + "answers", ("test",), function, ANSWERS)
    run.done(STAGE, inputs, commits, aggregator=aggregator)


def _requests(plan: _Plan, folders: dict[int, str], storage: Storage, rows: Rows) -> Iterator[dict[str, Any]]:
    for seed, folder in folders.items():
        seen = set()
        for case in _cases(plan, seed, folder, storage, rows):
            if case.request is not None and case.request.id not in seen:
                seen.add(case.request.id)
                yield request_row(case.request, case.shard, seed)


def _answers(
    plan: _Plan, seed: int, folder: str, verify: Verify | None, storage: Storage, rows: Rows
) -> Iterator[dict[str, Any]]:
    written = {r["request_id"]: r for r in responses(storage, STAGE, {row["shard"] for row in rows}).to_pylist()}
    for case in _cases(plan, seed, folder, storage, rows):
        head = {
            "question_id": case.question.id,
            "shard": case.shard,
            "method": case.method,
            "aggregator": plan.spec.name,
            "skipped": "unanimous" if case.agreed else "",
            "experts": case.experts,
            "cut_drafts": case.cut,
        }
        if case.agreed is not None:
            yield head | {k: v for k, v in case.agreed.items() if k in ANSWERS.names and k not in head} | _FREE
        elif case.request is not None:
            response = written[case.request.id]
            yield head | graded(response, case.question, plan.spec.think_end_token, verify)
        else:
            failed = {
                "finish_reason": "",
                "text": "",
                **_FREE,
                "failure": asdict(case.failure) if case.failure else None,
            }
            yield head | graded(failed, case.question, "", None)


_FREE = {"prompt_tokens": 0, "completion_tokens": 0}


def _cases(plan: _Plan, seed: int, folder: str, storage: Storage, rows: Rows) -> Iterator[_Case]:
    recruits = {r["question_id"]: r for r in rows_of_shards(storage, folder + "recruits", RECRUITS, rows)}
    drafts: dict[str, dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for draft in rows_of_shards(storage, folder + "drafts", DRAFTS, rows):
        drafts[draft["question_id"]][draft["expert"], draft["sample"]] = draft
    for row in rows:
        question = question_of(row)
        for method in plan.methods:
            experts = tuple(recruits[question.id][SEATS_OF[method]])
            seats = [drafts[question.id][seat] for seat in seat_samples(experts)]
            yield _case(plan, seed, question, row["shard"], method, experts, seats)


def _case(
    plan: _Plan, seed: int, question: Question, shard: int, method: str, experts: tuple[str, ...],
    seats: Sequence[dict[str, Any]],
) -> _Case:  # fmt: skip
    usable = [d for d in seats if d["failure"] is None and d["text"].strip()]
    if len(usable) < max(1, plan.rules.min_experts):
        message = f"{len(usable)} of {len(seats)} seats have a usable draft, min_experts is {plan.rules.min_experts}"
        failure = Failure(boundary="aggregate", kind="too_few_drafts", message=message)
        return _Case(question=question, shard=shard, method=method, experts=experts, failure=failure)
    if plan.rules.skip_on_consensus == "unanimous" and len(usable) == len(seats):
        agreed = consensus([(d["expert"], _answer(d, plan.grader)) for d in seats])
        if agreed:
            return _Case(question=question, shard=shard, method=method, experts=experts, agreed=seats[0])
    request, cut = aggregate_request(
        plan.spec, question, [d["text"] for d in usable], run_seed=seed, max_tokens=plan.max_tokens,
        limit=plan.rules.max_draft_characters,
    )  # fmt: skip
    return _Case(question=question, shard=shard, method=method, experts=experts, request=request, cut=cut)


def _answer(draft: dict[str, Any], grader: str) -> str:
    return str(draft["reference_answer"] if grader == "reference" else draft["answer"])
