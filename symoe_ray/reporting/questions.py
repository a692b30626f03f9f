"""One question of a run as the report and `symoe show` present it, and the filters that it falls under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Graded(TypedDict):
    """A text as both graders read it: `answer` and `correct` by ours, `reference_*` by the released one.

    An answer is "" where none could be read; `correct` is None where gold is unknown; `failure` is "" where a text was
    generated.
    """

    text: str
    answer: str
    correct: bool | None
    reference_answer: str
    reference_correct: bool | None
    unparsed: bool
    truncated: bool
    prompt_tokens: int
    completion_tokens: int
    failure: str


class DraftRow(Graded):
    """One seat's answer: the expert's sample of that number."""

    expert: str
    sample: int


class FinalRow(Graded):
    """The pool's answer. `skipped` names the rule by which no aggregator was asked ("": one was)."""

    aggregator: str
    skipped: str


class QuestionRow(TypedDict):
    """One question with all that led to its answer.

    `mapped` and `cosines` (None: not known) have one entry per skill, `weights` one per candidate; `experts` are the
    seats as drawn; `fallback` names the rule that was needed where the usual one could not decide ("": none).
    """

    id: str
    question: str
    choices: Sequence[str]
    gold: Sequence[str]
    skills: Sequence[str]
    mapped: Sequence[str]
    cosines: Sequence[float | None]
    candidates: Sequence[str]
    weights: Sequence[float]
    experts: Sequence[str]
    fallback: str
    drafts: Sequence[DraftRow]
    final: FinalRow


FILTERS = {
    "right": "Right",
    "wrong": "Wrong",
    "missed": "Wrong, though a draft was right",
    "all_wrong": "Wrong, as was every draft",
    "rescued": "Right, though no draft was",
    "disagree": "Graders disagree",
    "draft_disagree": "Graders disagree on a draft",
    "unparsed": "Unreadable",
    "truncated": "Cut off",
    "failed": "Failed",
    "fallback": "Recruited by a fallback rule",
}
"""Every filter with its label. The order is that of the bits in the report's index."""


def is_right(row: Graded, grader: str) -> bool | None:
    """Whether a text counts as right by the grader ("reference" or ours); None where gold is unknown."""
    return row["reference_correct"] if grader == "reference" else row["correct"]


def answer_of(row: Graded, grader: str) -> str:
    """The answer that counts."""
    return row["reference_answer"] if grader == "reference" else row["answer"]


def marks_of(question: QuestionRow, grader: str) -> list[str]:
    """The filters that a question falls under. A failed answer counts as wrong, as it does in the accuracy."""
    final, drafts = question["final"], question["drafts"]
    right, drafts_right = is_right(final, grader), [bool(is_right(draft, grader)) for draft in drafts]
    facts = {
        "right": right is True,
        "wrong": right is False,
        "missed": right is False and any(drafts_right),
        "all_wrong": right is False and bool(drafts) and not any(drafts_right),
        "rescued": right is True and bool(drafts) and not any(drafts_right),
        "disagree": disagree(final),
        "draft_disagree": any(map(disagree, drafts)),
        "unparsed": final["unparsed"],
        "truncated": final["truncated"],
        "failed": bool(final["failure"]),
        "fallback": bool(question["fallback"]),
    }
    return [name for name in FILTERS if facts[name]]


def disagree(row: Graded) -> bool:
    """Whether one grader finds the text right and the other wrong."""
    return row["correct"] != row["reference_correct"]


def seats_of(question: QuestionRow) -> dict[str, int]:
    """How many seats each expert sits on."""
    return {expert: list(question["experts"]).count(expert) for expert in question["experts"]}
