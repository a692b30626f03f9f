"""The questions of a finished run with all that led to their answers, read a slice at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from symoe_ray.core import Question
from symoe_ray.reporting.questions import DraftRow, FinalRow, Graded, QuestionRow
from symoe_ray.requests import seat_samples
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, QUESTIONS, RECRUITS, question_of

SLICE = 512

Row = dict[str, Any]


def first_seed_folder(settings: Settings) -> str:
    """Where the derived data of a run's first seed lie: the seed whose recruits and answers are shown."""
    return f"seed={settings.all_seeds[0]}/" if len(settings.all_seeds) > 1 else ""


def question_records(
    storage: Storage, settings: Settings, *, question_id: str = "", most: int | None = None, characters: int = 0
) -> Iterator[QuestionRow]:
    """The test questions of the first seed in file order: all, at most `most`, or the one of that id.

    Texts longer than `characters` are cut in the middle (0: never). A question without recruits or answer, of a run
    that is not finished, is left out.
    """
    folder = first_seed_folder(settings)
    own = pc.field("question_id") == question_id if question_id else None
    final = pc.field("method") == "symoe"
    questions = _read(storage, "questions/test", QUESTIONS, own).sort_by("position").slice(0, most)
    recruits = _read(storage, f"{folder}recruits", RECRUITS, own)
    answers = _read(storage, f"{folder}answers", ANSWERS, final if own is None else final & own)
    drafts = _seat_drafts(storage, f"{folder}drafts", recruits, own)
    for start in range(0, len(questions), SLICE):
        part = questions.slice(start, SLICE)
        ids = part["question_id"]
        yield from _records(
            part.to_pylist(), _by_id(recruits, ids), _by_id(answers, ids), _drafts_by_id(drafts, ids), characters
        )


def _read(storage: Storage, folder: str, schema: pa.Schema, rows: pc.Expression | None) -> pa.Table:
    files = storage.names(folder, ".parquet")
    tables = [storage.read_table(name, schema.names, rows).cast(schema) for name in files]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _seat_drafts(storage: Storage, folder: str, recruits: pa.Table, rows: pc.Expression | None) -> pa.Table:
    """The drafts that sit on a seat. Other methods' samples lie in the same files: their texts are not kept."""
    seats = _seat_counts(recruits)
    tables = [
        table.take(_on_seats(table, seats))
        for name in storage.names(folder, ".parquet")
        for table in [storage.read_table(name, DRAFTS.names, rows).cast(DRAFTS)]
    ]
    return pa.concat_tables(tables) if tables else DRAFTS.empty_table()


def _seat_counts(recruits: pa.Table) -> pa.Table:
    """(question_id, expert, seats): an expert that sits on n seats has given its samples 0 to n - 1."""
    experts = recruits["experts"].combine_chunks()
    owners = recruits["question_id"].combine_chunks().take(pc.list_parent_indices(experts))
    flat = pa.table({"question_id": owners, "expert": pc.list_flatten(experts)})
    counted = flat.group_by(["question_id", "expert"]).aggregate([([], "count_all")])
    return counted.rename_columns(["question_id", "expert", "seats"])


def _on_seats(drafts: pa.Table, seats: pa.Table) -> pa.Array:
    """The row numbers of the drafts that sit on a seat, in order."""
    keys = drafts.select(["question_id", "expert", "sample"]).append_column("row", pa.array(np.arange(len(drafts))))
    found = keys.join(seats, ["question_id", "expert"], join_type="inner")
    return pa.array(np.sort(found.filter(pc.less(found["sample"], found["seats"]))["row"].to_numpy()))


def _by_id(table: pa.Table, ids: pa.ChunkedArray) -> dict[str, Row]:
    rows = table.filter(pc.is_in(table["question_id"], ids.combine_chunks()))
    return {row["question_id"]: row for row in rows.to_pylist()}


def _drafts_by_id(drafts: pa.Table, ids: pa.ChunkedArray) -> dict[str, dict[tuple[str, int], Row]]:
    found: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
    for row in drafts.filter(pc.is_in(drafts["question_id"], ids.combine_chunks())).to_pylist():
        found[row["question_id"]][row["expert"], row["sample"]] = row
    return found


def _records(
    questions: Sequence[Row],
    recruits: dict[str, Row],
    answers: dict[str, Row],
    drafts: dict[str, dict[tuple[str, int], Row]],
    characters: int,
) -> Iterator[QuestionRow]:
    for question in map(question_of, questions):
        recruit, answer = recruits.get(question.id), answers.get(question.id)
        if recruit is not None and answer is not None:
            seats = [drafts[question.id].get(seat) for seat in seat_samples(recruit["experts"])]
            yield _record(question, recruit, answer, [row for row in seats if row is not None], characters)


def _record(question: Question, recruit: Row, answer: Row, drafts: Sequence[Row], characters: int) -> QuestionRow:
    known = bool(question.gold)
    return QuestionRow(
        id=question.id,
        question=question.text,
        choices=question.choices,
        gold=question.gold,
        skills=recruit["skills"],
        mapped=recruit["mapped"],
        cosines=[None if cosine is None else round(cosine, 4) for cosine in recruit["cosines"] or ()],
        candidates=recruit["candidates"],
        weights=[round(weight, 5) for weight in recruit["weights"]],
        experts=recruit["experts"],
        fallback=recruit["fallback"],
        drafts=[
            DraftRow(expert=row["expert"], sample=row["sample"], **_graded(row, known, characters)) for row in drafts
        ],
        final=FinalRow(
            aggregator=answer["aggregator"], skipped=answer["skipped"], **_graded(answer, known, characters)
        ),
    )


def _graded(row: Row, known: bool, characters: int) -> Graded:
    return Graded(
        text=_cut(row["text"], characters),
        answer=row["answer"],
        correct=row["correct"] if known else None,
        reference_answer=row["reference_answer"],
        reference_correct=row["reference_correct"] if known else None,
        unparsed=row["unparsed"],
        truncated=row["truncated"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        failure=row["failure"]["message"] or row["failure"]["kind"] if row["failure"] else "",
    )


def _cut(text: str, characters: int) -> str:
    """The text, or its begin and end with the number of characters left out between them."""
    if not characters or len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]}\n\n[... {len(text) - 2 * half:,} characters left out ...]\n\n{text[-half:]}"
