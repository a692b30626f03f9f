"""A run's tables in the released code's formats (arXiv 2503.05641, `skills/<TASK>/`): what `reference_files` reads."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from symoe_ray.core import Profile, Question
from symoe_ray.options import HEADING
from symoe_ray.requests import seat_samples

ANNOTATOR = "Qwen"  # The released scripts look for this name, whoever annotated.


def question_entry(question: Question, keywords: Sequence[str] | None = None) -> dict[str, Any]:
    """One item of a question or keyword file. Several accepted integers stand as "80 or 81"; of letters the first."""
    gold = " or ".join(question.gold) if question.kind == "integer" else "".join(question.gold[:1])
    entry: dict[str, Any] = {"question": question_text(question), "gold_answer": gold}
    if question.category:
        entry["category"] = question.category
    return entry if keywords is None else entry | {"keywords": list(keywords)}


def question_text(question: Question) -> str:
    """The question with its options behind "The options are:", as `split_options` takes them apart."""
    if not any(question.choices):
        return question.text
    options = " ".join(f"({a}) {b}" for a, b in zip(question.letters, question.choices, strict=True))
    return f"{question.text} {HEADING} {options}"


def profile_name(profile: Profile) -> str:
    """A profile's file name, with the validation accuracy in %."""
    return f"{profile.expert}_profile_{percent(profile.correct, profile.graded)}.json"


def profile_scores(profile: Profile) -> dict[str, int]:
    """A profile file's content."""
    return {skill: round(score) for skill, score in profile.scores.items()}


def percent(correct: int, graded: int) -> float:
    """An accuracy as the released file names have it."""
    return round(correct / graded * 100, 2) if graded else 0.0


def chain_entry(entry: Mapping[str, Any], expert: str, text: str, answer: str, correct: bool) -> dict[str, Any]:
    """One item of a CoT file, from that of the keyword file."""
    return {
        **entry, f"reasoning_{expert}": text, f"pred_{expert}": answer, f"is_correct_{expert}": int(correct)
    }  # fmt: skip


def recruit_row(entry: Mapping[str, Any], experts: Sequence[str]) -> dict[str, Any]:
    """One row of a recruit file; the entry's keywords are the mapped ones."""
    return {**entry, "keywords": repr(list(entry["keywords"])), "solvers": repr(list(experts))}


def answer_columns(experts: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """A round-0 row's answers: of an expert's c seats the first is `<expert>_answer_<c>`, the last `_answer_1`."""
    counts = Counter(experts)
    names = (f"{expert}_answer_{counts[expert] - sample}" for expert, sample in seat_samples(experts))
    return dict(zip(names, texts, strict=True))


def csv_text(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as CSV (RFC 4180: with other line ends the csv module would leave a lone carriage return unquoted).

    The columns are all that occur, in order of their first row; a cell that a row lacks is empty.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def json_text(value: object) -> str:
    """A JSON file's text."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
