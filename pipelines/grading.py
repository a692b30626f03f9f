"""Grading generated rows against their questions, as table rows: shared by every stage that collects answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pipelines.sharding import Rows
from symoe_ray.core import ExpertSpec, Question
from symoe_ray.grading import Verify, grade, strip_reasoning
from symoe_ray.ledger import responses
from symoe_ray.storage import Storage
from symoe_ray.tables import question_of


def graded(response: dict[str, Any], question: Question, think_end_token: str, verify: Verify | None) -> dict[str, Any]:
    """What the graders say of a `RESPONSES` row; a failed one is neither right nor parsed."""
    costs = {name: response[name] for name in ("prompt_tokens", "completion_tokens", "failure")}
    if response["failure"] is not None:
        nothing = {"answer": "", "correct": False, "unparsed": False, "truncated": False}
        return {"text": "", **nothing, "reference_answer": "", "reference_correct": False, **costs}
    result = grade(
        response["text"], question, think_end_token=think_end_token,
        finish_reason=response["finish_reason"], verify=verify,
    )  # fmt: skip
    return {
        "text": strip_reasoning(response["text"], think_end_token)[0],
        "answer": result.answer,
        "correct": result.correct,
        "unparsed": result.unparsed,
        "truncated": result.truncated,
        "reference_answer": result.reference_answer,
        "reference_correct": result.reference_correct,
        **costs,
    }


def graded_drafts(
    stage: str, specs: dict[str, ExpertSpec], run_seed: int, verify: Verify | None, storage: Storage, rows: Rows
) -> Iterator[dict[str, Any]]:
    """The `DRAFTS` rows of some questions: every sample that the stage has generated for them with this run seed."""
    by_question = defaultdict(list)
    for response in responses(storage, stage, {row["shard"] for row in rows}).to_pylist():
        if response["run_seed"] == run_seed:
            by_question[response["question_id"]].append(response)
    for row in rows:
        question = question_of(row)
        for response in sorted(by_question[question.id], key=lambda r: (r["expert"], r["sample"])):
            token = specs[response["expert"]].think_end_token
            yield {
                "question_id": question.id,
                "shard": row["shard"],
                "expert": response["expert"],
                "sample": response["sample"],
                **graded(response, question, token, verify),
            }


def is_right(row: dict[str, Any], grader: str) -> bool:
    """Whether a graded row counts as right by the run's grader."""
    return bool(row["reference_correct"] if grader == "reference" else row["correct"])
