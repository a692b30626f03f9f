"""The questions of a run: read from the task once, checked, and laid down in shards."""

from __future__ import annotations

from pipelines.run import Run
from pipelines.sharding import SHARD_ROWS
from symoe_ray.core import InputError, Question
from symoe_ray.fingerprints import digest
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS, question_of, question_row, table_of
from symoe_ray.tasks import TaskData, load_task

SPLITS = ("validation", "test")
STAGE = "questions"


def load_questions(settings: Settings) -> TaskData:
    """The questions that a run with these settings is about; InputError where a file is wrong or a split is missing."""
    data = load_task(settings.task, limit=settings.limit)
    if not data.test:
        raise InputError(f"task {settings.task.name!r} has no test questions: set task.test")
    if not data.validation and not settings.profiles:
        raise InputError(
            f"task {settings.task.name!r} has no validation questions to profile the experts with: "
            "set task.validation, or profiles=RUN to use those of another run"
        )
    return data


def run_stage(run: Run) -> None:
    """Read the task's files and write questions/<split>/part-*.parquet; InputError as of `load_questions`."""
    data = load_questions(run.settings)
    for warning in data.warnings:
        run.warn(warning)
    inputs = digest([[_content(q) for q in split] for split in (data.validation, data.test)])
    if run.is_done(STAGE, inputs):
        return
    run.storage.delete("questions")
    shard = 0
    for split, questions in zip(SPLITS, (data.validation, data.test), strict=True):
        for start in range(0, len(questions), SHARD_ROWS):
            rows = [
                question_row(q, split, shard, start + i) for i, q in enumerate(questions[start : start + SHARD_ROWS])
            ]
            run.storage.write_table(f"questions/{split}/part-{shard:05d}.parquet", table_of(rows, QUESTIONS))
            shard += 1
    run.done(STAGE, inputs, validation=len(data.validation), test=len(data.test), warnings=run.warnings)


def read_questions(storage: Storage, split: str) -> list[tuple[Question, int]]:
    """All questions of a split with their shards, in file order."""
    table = storage.read_tables(storage.names(f"questions/{split}", ".parquet"), QUESTIONS)
    return [(question_of(row), row["shard"]) for row in table.to_pylist()]


def _content(question: Question) -> list[object]:
    return [question.id, question.text, list(question.choices), list(question.gold), question.kind, question.category]
