"""One question of a run as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from symoe_ray.options import LETTERS
from symoe_ray.reporting.questions import FILTERS, Graded, QuestionRow, disagree, marks_of, seats_of
from symoe_ray.reporting.wording import percent


def question_text(question: QuestionRow, grader: str) -> str:
    """Question, skills, weights, drafts and final answer, each with what both graders say; `grader` is what counts."""
    return "\n".join(_lines(question, grader))


def _lines(question: QuestionRow, grader: str) -> Iterator[str]:
    yield from _heading(f"question {question['id']}")
    yield question["question"]
    yield from (f"  {letter}) {choice}" for letter, choice in zip(LETTERS, question["choices"], strict=False))
    yield f"gold: {' or '.join(question['gold']) or 'unknown'}"
    yield f"filters: {', '.join(FILTERS[mark] for mark in marks_of(question, grader)) or 'none'}"
    yield from _heading("why these experts")
    yield from _skills(question)
    yield from _weights(question)
    for draft in question["drafts"]:
        yield from _heading(f"draft of {draft['expert']}, sample {draft['sample']}")
        yield from _graded(draft)
    final = question["final"]
    how = f"no aggregator: {final['skipped']}" if final["skipped"] else f"aggregated by {final['aggregator']}"
    yield from _heading(f"final answer, {how}")
    yield from _graded(final)


def _heading(words: str) -> Iterator[str]:
    yield ""
    yield f"== {words}"


def _skills(question: QuestionRow) -> Iterator[str]:
    if not question["skills"]:
        yield "no skills found"
    for skill, mapped, cosine in zip_longest(question["skills"], question["mapped"], question["cosines"]):
        known = f" (cosine {cosine:.3f})" if cosine is not None else ""
        yield f"  {skill}" + (f" -> {mapped}{known}" if mapped is not None and mapped != skill else "")
    if question["fallback"]:
        yield f"fallback: {question['fallback']}"


def _weights(question: QuestionRow) -> Iterator[str]:
    seats = seats_of(question)
    width = max(map(len, question["candidates"]), default=0)
    for expert, weight in zip(question["candidates"], question["weights"], strict=True):
        yield f"  {expert:<{width}}  {percent(weight):>5}%  {'*' * seats.get(expert, 0)}".rstrip()
    yield f"seats: {', '.join(question['experts'])}"


def _graded(row: Graded) -> Iterator[str]:
    if row["failure"]:
        yield f"failed: {row['failure']}"
        return
    yield row["text"].strip()
    notes = [word for word in ("unparsed", "truncated") if row[word]]
    yield (
        f"-- ours: {_reading(row['answer'], row['correct'])}; "
        f"released grader: {_reading(row['reference_answer'], row['reference_correct'])}"
        + ("; THEY DISAGREE" if disagree(row) else "")
        + "".join(f"; {note}" for note in notes)
        + f"; {row['prompt_tokens']} + {row['completion_tokens']} tokens"
    )


def _reading(answer: str, correct: bool | None) -> str:
    return f"{answer or 'nothing'}{'' if correct is None else ' (right)' if correct else ' (wrong)'}"
