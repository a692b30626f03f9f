"""Grading a text: its reasoning is cut, its answer read and compared, by our rules and by the released code's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from symoe_ray.answer_phrases import boxes
from symoe_ray.core import Question
from symoe_ray.extraction import extract_choice
from symoe_ray.integer_extraction import boxed_integer, extract_integer, integers
from symoe_ray.reference_grading import reference_choice, reference_expression, reference_letters

__all__ = [
    "GRADER_VERSION", "Grade", "Verify", "extract_choice", "extract_integer", "grade", "grading_summary",
    "strip_reasoning",
]  # fmt: skip

GRADER_VERSION = "2"
"""Changes with every rule that may read an answer differently."""

EXAMPLES = 10
TEXT_END_CHARACTERS = 200

Verify = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Grade:
    """How one text was graded. `answer` is a letter, an integer without leading zeros, or the last box's content.

    `truncated`: the reasoning never ended, or the text hit its token limit before an answer. `unparsed`: it did end,
    and no answer could be read. `reference_*`: the same by the released code's extractor.
    """

    answer: str
    correct: bool
    unparsed: bool
    truncated: bool
    reference_answer: str
    reference_correct: bool


def strip_reasoning(text: str, think_end_token: str) -> tuple[str, bool]:
    """The text after the last end of reasoning, and whether a block of reasoning was opened after it and never ended.

    A literal `</think>` ends reasoning for every expert, `think_end_token` (may be "") as well for one that has it. Of
    an unfinished block only what stands before it is returned.
    """
    tokens = {token for token in (think_end_token, "</think>") if token}
    cut = max(text.rfind(token) + len(token) if token in text else 0 for token in tokens)
    rest = text[cut:]
    openings = [rest.find(token.replace("/", "", 1)) for token in tokens if "/" in token]
    opened = min((position for position in openings if position >= 0), default=-1)
    return (rest if opened < 0 else rest[:opened]).strip(), opened >= 0


def grade(
    text: str,
    question: Question,
    *,
    think_end_token: str = "",
    finish_reason: str = "stop",
    verify: Verify | None = None,
) -> Grade:
    """Grades one generated text. A question without gold gets its answers read and is never correct.

    `verify(boxed content, gold)` decides on a box that is not an integer as it stands; without it such a box is wrong.
    An expert with a `think_end_token` whose text hit the token limit without it was still reasoning, since chat
    templates may open the block themselves: nothing is read from such a text.
    """
    body, truncated = strip_reasoning(text, think_end_token)
    if think_end_token and finish_reason == "length" and think_end_token not in text:
        body, truncated = "", True
    read = _read_integer if question.kind == "integer" else _read_choice
    answer, correct, reference, reference_correct = read(body, text, question, verify)
    truncated = truncated or (finish_reason == "length" and not answer)
    return Grade(
        answer=answer,
        correct=correct,
        unparsed=not answer and not truncated,
        truncated=truncated,
        reference_answer=reference,
        reference_correct=reference_correct,
    )


def grading_summary(answers: pa.Table, gold: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the graders make of one method's answers (`ANSWERS` or `DRAFTS` rows, one seed or several).

    `graded` counts all of them, which is every accuracy's denominator; `failed`, `truncated` and `unparsed` are counted
    apart. `grader_disagreement`: one grader says right, the other wrong; `readings_differ`: they read another answer.
    `examples` has up to `EXAMPLES` disagreements, spread over the table, with the end of each text.
    """
    disagree = pc.not_equal(answers["correct"], answers["reference_correct"])
    differ = pc.not_equal(answers["answer"], answers["reference_answer"])
    found = answers.filter(disagree) if pc.any(disagree).as_py() else answers.filter(differ)
    spread = pa.array(range(0, len(found), max(1, -(-len(found) // EXAMPLES))), pa.int64())
    return {
        "version": GRADER_VERSION,
        "graded": len(answers),
        "unparsed": _count(answers["unparsed"]),
        "truncated": _count(answers["truncated"]),
        "failed": len(answers) - answers["failure"].null_count,
        "grader_disagreement": _count(disagree),
        "readings_differ": _count(differ),
        "examples": [_example(row, gold) for row in found.take(spread).to_pylist()],
    }


def _count(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


def _example(row: Mapping[str, Any], gold: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    read = {name: row[name] for name in ("answer", "correct", "reference_answer", "reference_correct")}
    end = row["text"][-TEXT_END_CHARACTERS:]
    return {"question_id": row["question_id"], "gold": list(gold.get(row["question_id"], ())), "text_end": end, **read}


def _read_choice(body: str, text: str, question: Question, verify: Verify | None) -> tuple[str, bool, str, bool]:
    gold = {value.strip().strip("().").upper() for value in question.gold}
    answer = extract_choice(body, question.letters, question.choices)
    reference = reference_choice(text, reference_letters(question))
    return answer, answer in gold, reference, reference in gold


def _read_integer(body: str, text: str, question: Question, verify: Verify | None) -> tuple[str, bool, str, bool]:
    gold = [value for accepted in question.gold for value in integers(accepted)]

    @cache
    def read_box(content: str) -> str:
        """The integer in the box, else the gold that it verifiably equals, else the content itself."""
        equal = (value for value in gold if content and verify is not None and verify(content, value))
        return boxed_integer(content) or next(equal, content)

    answer, found = extract_integer(body), [content for _, content in boxes(body)]
    if not answer and found and not boxed_integer(found[-1]):
        answer = read_box(found[-1])
    content = reference_expression(text)
    reference = read_box(content) if content != text else next(reversed(integers(text)), "")
    return answer, answer in gold, reference, reference in gold
