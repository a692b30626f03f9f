"""One who reads several drafts and writes: the aggregator of step 6, the aggregators and proposers of the baselines.

A layer is a stage of generation with some panels; each panel has one request for every question, or a reason for none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.grading import graded
from pipelines.sharding import Rows, rows_of_shards, seats_of
from symoe_ray.aggregators import consensus
from symoe_ray.core import ExpertSpec, Failure, Question, Request
from symoe_ray.grading import Verify
from symoe_ray.ledger import responses
from symoe_ray.requests import aggregate_request, seat_samples
from symoe_ray.settings import AggregateSettings
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, question_of, request_row

Seat = tuple[str, int]
_FREE = {"prompt_tokens": 0, "completion_tokens": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Who writes after reading which drafts, under the name of a `method`.

    The drafts lie in the seed's folder `source`; `seats` are those of every question, or the column of recruits/ that
    holds each question's experts.
    """

    method: str
    writer: ExpertSpec
    seats: tuple[Seat, ...] | str
    source: str = "drafts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Panels that write in one stage. What the stages in `shared` have generated is taken from there."""

    stage: str
    panels: tuple[Panel, ...]
    rules: AggregateSettings
    grader: str
    max_tokens: int
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question, panel and seed: a request to the writer, or the reason why there is none."""

    question: Question
    shard: int
    panel: Panel
    experts: tuple[str, ...]
    request: Request | None = None
    cut: int = 0
    agreed: dict[str, Any] | None = None
    failure: Failure | None = None


def panel_requests(layer: Layer, folders: Mapping[int, str], storage: Storage, rows: Rows) -> Iterator[dict[str, Any]]:
    """The `REQUESTS` rows of some questions, each request once; `folders` are those of the seeds."""
    seen = set(_written(layer.shared, storage, rows))
    for seed, folder in folders.items():
        for case in _cases(layer, seed, folder, storage, rows):
            if case.request is not None and case.request.id not in seen:
                seen.add(case.request.id)
                yield request_row(case.request, case.shard, seed)


def panel_answers(
    layer: Layer, seed: int, folder: str, verify: Verify | None, storage: Storage, rows: Rows
) -> Iterator[dict[str, Any]]:
    """The `ANSWERS` rows of some questions with one seed: graded, skipped on consensus, or failed."""
    written = _written((*layer.shared, layer.stage), storage, rows)
    for case in _cases(layer, seed, folder, storage, rows):
        yield answer_row(case, written[case.request.id] if case.request else None, verify)


def answer_row(case: Case, response: dict[str, Any] | None, verify: Verify | None) -> dict[str, Any]:
    """The `ANSWERS` row of a case; one that has a request needs its response."""
    head = {
        "question_id": case.question.id,
        "shard": case.shard,
        "method": case.panel.method,
        "aggregator": case.panel.writer.name,
        "skipped": "unanimous" if case.agreed else "",
        "experts": case.experts,
        "cut_drafts": case.cut,
    }
    if case.agreed is not None:
        return head | {k: v for k, v in case.agreed.items() if k in ANSWERS.names and k not in head} | _FREE
    if response is not None:
        return head | graded(response, case.question, case.panel.writer.think_end_token, verify)
    failure = asdict(case.failure) if case.failure else None
    return head | graded({"finish_reason": "", "text": "", **_FREE, "failure": failure}, case.question, "", None)


def panel_drafts(
    layer: Layer, seed: int, folder: str, verify: Verify | None, storage: Storage, rows: Rows
) -> Iterator[dict[str, Any]]:
    """What the writers wrote as `DRAFTS` rows, the first sample of each, for those who read them next."""
    for row in panel_answers(layer, seed, folder, verify, storage, rows):
        own = row | {"expert": row["aggregator"], "sample": 0}
        yield {name: own[name] for name in DRAFTS.names}


def _written(stages: Sequence[str], storage: Storage, rows: Rows) -> dict[str, dict[str, Any]]:
    """The responses of some stages to some questions by their request."""
    shards = {row["shard"] for row in rows}
    return {r["request_id"]: r for stage in stages for r in responses(storage, stage, shards).to_pylist()}


def _cases(layer: Layer, seed: int, folder: str, storage: Storage, rows: Rows) -> Iterator[Case]:
    recruits = seats_of(storage, folder, rows)
    drafts = {source: _drafts(storage, folder + source, rows) for source in {p.source for p in layer.panels}}
    for row in rows:
        question = question_of(row)
        for panel in layer.panels:
            own = recruits[question.id]
            seats = seat_samples(own[panel.seats]) if isinstance(panel.seats, str) else panel.seats
            read = [drafts[panel.source][question.id][seat] for seat in seats]
            yield case_of(layer, seed, question, row["shard"], panel, read)


def _drafts(storage: Storage, folder: str, rows: Rows) -> dict[str, dict[Seat, dict[str, Any]]]:
    found: dict[str, dict[Seat, dict[str, Any]]] = defaultdict(dict)
    for draft in rows_of_shards(storage, folder, DRAFTS, rows):
        found[draft["question_id"]][draft["expert"], draft["sample"]] = draft
    return found


def case_of(
    layer: Layer, seed: int, question: Question, shard: int, panel: Panel, drafts: Sequence[dict[str, Any]]
) -> Case:
    """The case of a question whose `drafts` (`DRAFTS` rows in seat order) the panel's writer reads."""
    experts = tuple(draft["expert"] for draft in drafts)
    usable = [d for d in drafts if d["failure"] is None and d["text"].strip()]
    least = max(1, min(layer.rules.min_experts, len(drafts)))
    if len(usable) < least:
        message = f"{len(usable)} of {len(drafts)} seats have a usable draft, min_experts is {least}"
        failure = Failure(boundary="aggregate", kind="too_few_drafts", message=message)
        return Case(question=question, shard=shard, panel=panel, experts=experts, failure=failure)
    if layer.rules.skip_on_consensus == "unanimous" and len(usable) == len(drafts):
        agreed = consensus([(d["expert"], _answer(d, layer.grader)) for d in drafts])
        if agreed:
            return Case(question=question, shard=shard, panel=panel, experts=experts, agreed=drafts[0])
    request, cut = aggregate_request(
        panel.writer, question, [d["text"] for d in usable], run_seed=seed, max_tokens=layer.max_tokens,
        limit=layer.rules.max_draft_characters,
    )  # fmt: skip
    return Case(question=question, shard=shard, panel=panel, experts=experts, request=request, cut=cut)


def _answer(draft: dict[str, Any], grader: str) -> str:
    return str(draft["reference_answer"] if grader == "reference" else draft["answer"])
