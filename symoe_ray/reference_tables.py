"""The released code's CSV files: who was recruited for each test question and, in round-0 files, what they answered.

An expert's answers stand in columns `<expert>_answer_<n>`, n counting down: of c seats its first is in `_answer_<c>`.
An empty cell is an empty answer: the CSV does not tell it from none.
"""

from __future__ import annotations

import ast
import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from symoe_ray.core import InputError
from symoe_ray.requests import seat_samples

_ANSWER = re.compile(r".+_answer_[1-9]\d*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSeats:
    """One test question's seats. `answers` has one text a seat, or is None where the file holds no answers at all."""

    place: str
    keywords: tuple[str, ...]
    experts: tuple[str, ...]
    answers: tuple[str, ...] | None


def read_seats(path: Path, asked: Sequence[tuple[str, str]], experts: set[str]) -> tuple[ReferenceSeats, ...]:
    """The rows of a recruit or round-0 file, checked against the test questions (text, gold) and the known experts."""
    with _wide_fields(), _opened(path) as file:
        reader = csv.DictReader(file, strict=True)
        names = set(reader.fieldnames or ())
        for name in ("question", "gold_answer", "keywords", "solvers"):
            if name not in names:
                raise InputError(f"{path}, line 1: has no column {name!r}; there are: {', '.join(sorted(names))}")
        has_answers = any(_ANSWER.fullmatch(name) for name in names)
        rows: list[ReferenceSeats] = []
        for place, row in _rows(path, reader):
            if len(rows) == len(asked):
                raise InputError(f"{place}: more questions than the test file's {len(asked)}")
            _check_question(place, row, asked[len(rows)])
            rows.append(_seats(place, row, experts, has_answers))
    if len(rows) < len(asked):
        raise InputError(f"{path}: {len(rows)} questions, but the test file has {len(asked)}")
    return tuple(rows)


@contextmanager
def _wide_fields() -> Iterator[None]:
    """The csv module refuses fields beyond 128 KiB unless told; chains of thought are longer."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start} of a block") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each row with its place, the line that it begins on."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: not valid CSV: {error}") from None
        if None in row or None in row.values():
            raise InputError(f"{path}, line {line}: not as many fields as the first line has columns")
        yield f"{path}, line {line}", row


def _check_question(place: str, row: Mapping[str, str], asked: tuple[str, str]) -> None:
    text, gold = asked
    if row["question"].split() != text.split():
        raise InputError(f"{place}: its question is not that of the test file at this place: {row['question'][:60]!r}")
    if row["gold_answer"] != gold:
        raise InputError(f"{place}: gold {row['gold_answer']!r}, but {gold!r} in the test file")


def _seats(place: str, row: Mapping[str, str], experts: set[str], has_answers: bool) -> ReferenceSeats:
    drawn = _list(place, row, "solvers")
    for name in drawn:
        if name not in experts:
            raise InputError(f"{place}: solver {name!r} has no profile; there are: {', '.join(sorted(experts))}")
    answers = _answers(place, row, drawn) if has_answers else None
    return ReferenceSeats(place=place, keywords=_list(place, row, "keywords"), experts=drawn, answers=answers)


def _list(place: str, row: Mapping[str, str], name: str) -> tuple[str, ...]:
    try:
        value = ast.literal_eval(row[name])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{place}: {name!r} must be a list of texts as Python writes it, but is {row[name][:60]!r}")
    return tuple(value)


def _answers(place: str, row: Mapping[str, str], drawn: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(drawn)
    columns = [f"{expert}_answer_{counts[expert] - sample}" for expert, sample in seat_samples(drawn)]
    for name in columns:
        if name not in row:
            raise InputError(f"{place}: the file has no column {name!r} for one of its solvers")
    for name, text in row.items():
        if text and _ANSWER.fullmatch(name) and name not in columns:
            raise InputError(f"{place}: an answer in {name!r}, but the solvers are {', '.join(drawn)}")
    return tuple(row[name] for name in columns)
