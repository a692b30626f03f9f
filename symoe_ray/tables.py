"""Arrow schemas of what lies on disk, and the way from record to row and back.

`REQUESTS` and `RESPONSES` files have no column for the expert: it is in their folder's name (`expert=NAME`), as Hive
partitions have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from symoe_ray.core import Completion, Draft, Failure, Message, Question, Recruitment, Request, Sampling

TEXTS = pa.list_(pa.string())
FAILURE = pa.struct(
    [
        ("boundary", pa.string()), ("kind", pa.string()), ("message", pa.string()), ("retryable", pa.bool_()),
        ("attempt", pa.int32()),
    ]
)  # fmt: skip
QUESTIONS = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("text", pa.string()),
        ("kind", pa.string()),
        ("task", pa.string()),
        ("choices", TEXTS),
        ("gold", TEXTS),
        ("category", pa.string()),
    ]
)
REQUESTS = pa.schema(
    [
        ("request_id", pa.string()),
        ("question_id", pa.string()),
        ("shard", pa.int32()),
        ("run_seed", pa.int64()),
        ("n", pa.int32()),
        ("seed", pa.int64()),
        ("relative_length", pa.float32()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        (
            "sampling",
            pa.struct(
                [
                    ("temperature", pa.float64()),
                    ("top_p", pa.float64()),
                    ("top_k", pa.int64()),
                    ("max_tokens", pa.int64()),
                    ("repetition_penalty", pa.float64()),
                    ("stop", TEXTS),
                    ("min_p", pa.float64()),
                    ("presence_penalty", pa.float64()),
                    ("frequency_penalty", pa.float64()),
                ]
            ),
        ),
    ]
)
RESPONSES = pa.schema(
    [
        ("request_id", pa.string()),
        ("question_id", pa.string()),
        ("shard", pa.int32()),
        ("run_seed", pa.int64()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("attempt", pa.int32()),
        ("failure", FAILURE),
    ]
)
SKILLS = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("skills", TEXTS),
        ("samples", TEXTS),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("failure", FAILURE),
    ]
)
_GRADED = [
    ("answer", pa.string()),
    ("correct", pa.bool_()),
    ("unparsed", pa.bool_()),
    ("truncated", pa.bool_()),
    ("reference_answer", pa.string()),
    ("reference_correct", pa.bool_()),
    ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
    ("failure", FAILURE),
]
DRAFTS = pa.schema(
    [
        ("question_id", pa.string()),
        ("shard", pa.int32()),
        ("expert", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        *_GRADED,
    ]
)
ANSWERS = pa.schema(
    [
        ("question_id", pa.string()),
        ("shard", pa.int32()),
        ("method", pa.string()),
        ("aggregator", pa.string()),
        ("skipped", pa.string()),
        ("experts", TEXTS),
        ("cut_drafts", pa.int32()),
        ("text", pa.string()),
        *_GRADED,
    ]
)
RECRUITS = pa.schema(
    [
        ("question_id", pa.string()),
        ("shard", pa.int32()),
        ("skills", TEXTS),
        ("mapped", TEXTS),
        ("cosines", pa.list_(pa.float64())),
        ("candidates", TEXTS),
        ("weights", pa.list_(pa.float64())),
        ("experts", TEXTS),
        ("fallback", pa.string()),
        ("random_experts", TEXTS),
    ]
)

SEATS = pa.schema([RECRUITS.field(name) for name in ("question_id", "shard", "experts", "random_experts")])
"""The columns of `RECRUITS` that say who answers."""
SKILLED_SEATS = SEATS.append(RECRUITS.field("mapped"))
"""And for which skills of the profiles."""


def table_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly that schema."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def question_row(question: Question, split: str, shard: int, position: int) -> dict[str, Any]:
    """A `QUESTIONS` row. `shard` numbers the group of questions that is read, joined and written together."""
    row = asdict(question)
    row["question_id"] = row.pop("id")
    return row | {"split": split, "shard": shard, "position": position}


def question_of(row: dict[str, Any]) -> Question:
    """The question of a `QUESTIONS` row."""
    return Question(
        id=row["question_id"],
        text=row["text"],
        kind=row["kind"],
        task=row["task"],
        choices=tuple(row["choices"] or ()),
        gold=tuple(row["gold"] or ()),
        category=row["category"] or "",
    )


def request_row(request: Request, shard: int, run_seed: int, relative_length: float = 1.0) -> dict[str, Any]:
    """A `REQUESTS` row, with the expert that its partition is named after.

    `relative_length` is what its answers are guessed to have over others of the expert in the stage.
    """
    return {
        "request_id": request.id,
        "question_id": request.question_id,
        "expert": request.expert,
        "shard": shard,
        "run_seed": run_seed,
        "n": request.n,
        "seed": request.seed,
        "relative_length": relative_length,
        "messages": [asdict(m) for m in request.messages],
        "sampling": asdict(request.sampling),
    }


def request_of(row: dict[str, Any], expert: str, samples: Sequence[int]) -> Request:
    """The request for consecutive `samples` of a `REQUESTS` row of that expert; an older file may lack a field."""
    sampling = {name: held for name, held in row["sampling"].items() if held is not None}
    return Request(
        id=row["request_id"],
        question_id=row["question_id"],
        expert=expert,
        messages=tuple(Message(**m) for m in row["messages"]),
        sampling=Sampling(**(sampling | {"stop": tuple(sampling.get("stop", ()))})),
        seed=row["seed"],
        n=len(samples),
        first_sample=samples[0],
    )


def response_row(row: dict[str, Any], completion: Completion, attempt: int) -> dict[str, Any]:
    """A `RESPONSES` row: a completion beside what its `REQUESTS` row says of it."""
    return {
        **{name: row[name] for name in ("request_id", "question_id", "shard", "run_seed")},
        "sample": completion.index,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "attempt": attempt,
        "failure": {**asdict(completion.failure), "attempt": attempt} if completion.failure else None,
    }


def failure_of(value: dict[str, Any] | None) -> Failure | None:
    """The failure of a row, if it has one; an older file may lack a field."""
    return Failure(**{name: held for name, held in value.items() if held is not None}) if value else None


def recruitment_row(recruitment: Recruitment, shard: int, random_experts: Sequence[str]) -> dict[str, Any]:
    """A `RECRUITS` row."""
    return {
        "question_id": recruitment.question_id,
        "shard": shard,
        "skills": recruitment.skills,
        "mapped": recruitment.mapped,
        "cosines": recruitment.cosines,
        "candidates": recruitment.candidates,
        "weights": recruitment.weights,
        "experts": recruitment.experts,
        "fallback": recruitment.fallback,
        "random_experts": list(random_experts),
    }


def draft_of(row: dict[str, Any]) -> Draft:
    """The draft of a `DRAFTS` row."""
    return Draft(
        question_id=row["question_id"],
        expert=row["expert"],
        sample=row["sample"],
        text=row["text"],
        answer=row["answer"],
        truncated=row["truncated"],
        failure=failure_of(row["failure"]),
    )
