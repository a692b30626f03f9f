"""`symoe show RUN QUESTION_ID`: one question of a finished run in the terminal."""

from __future__ import annotations

import argparse
import difflib
import json
from typing import Any

from pipelines.question_records import question_records
from pipelines.report import finished_run
from pipelines.signals import DONE, Signals
from symoe_ray.core import InputError
from symoe_ray.reporting.question_text import question_text
from symoe_ray.reporting.questions import QuestionRow, marks_of
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS


def add_command(commands: Any) -> None:
    """Add `show` to the parser's commands."""
    parser = commands.add_parser("show", help="one question of a run: skills, weights, drafts, answer, both graders")
    parser.add_argument("run", metavar="RUN", help="name or path of the run")
    parser.add_argument("question_id", metavar="QUESTION_ID", help="id of a test question")
    parser.add_argument("--json", action="store_true", help="machine-readable standard output")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    storage, settings = finished_run(options.run, overrides)
    question = find_question(storage, settings, options.question_id)
    if options.json:
        print(json.dumps({**question, "filters": marks_of(question, settings.grader)}, ensure_ascii=False))
    else:
        print(question_text(question, settings.grader).strip())
    return DONE


def find_question(storage: Storage, settings: Settings, question_id: str) -> QuestionRow:
    """The test question of that id; InputError with ids that look like it where there is none."""
    found = next(question_records(storage, settings, question_id=question_id), None)
    if found is not None:
        return found
    names = storage.names("questions/test", ".parquet")
    known: list[str] = storage.read_tables(names, QUESTIONS, ["question_id"])["question_id"].to_pylist()
    if question_id in known:
        raise InputError(f"run {storage.uri} has not answered question {question_id!r}: finish it with `symoe run`")
    close = difflib.get_close_matches(question_id, known, n=3) or known[:3]
    raise InputError(
        f"run {storage.uri} has no test question {question_id!r}; it has, for instance, {', '.join(map(repr, close))}"
    )
