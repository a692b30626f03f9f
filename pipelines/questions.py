"""The questions of a run: read from the task once, checked, and laid down in shards."""

from __future__ import annotations

import math
from collections import defaultdict

from pipelines.opening import hub_rows
from pipelines.run import Run
from pipelines.sharding import SHARD_ROWS
from symoe_ray.core import InputError, Question
from symoe_ray.fingerprints import digest, uniform
from symoe_ray.leaks import without_leaks
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS, question_of, question_row, table_of
from symoe_ray.tasks import TaskData, load_task

SPLITS = ("validation", "test")
STAGE = "questions"
SPLIT_SHARDS = 1_000_000
MANY_SHARDS = 128


def load_questions(settings: Settings) -> TaskData:
    """The questions that a run with these settings is about; InputError where a file is wrong or a split is missing."""
    data = load_task(settings.task, limit=settings.limit, read_hub=hub_rows)
    if not data.test:
        raise InputError(f"task {settings.task.name!r} has no test questions: set task.test")
    if not data.validation and not settings.profiles:
        raise InputError(
            f"task {settings.task.name!r} has no validation questions to profile the experts with: "
            "set task.validation, or profiles=RUN to use those of another run"
        )
    return without_leaks(data) if settings.exclude_leaks else data


def run_stage(run: Run) -> None:
    """Read the task's files and write questions/<split>/part-*.parquet; InputError as of `load_questions`.

    A question's shard follows from its id and from the number of shards, which a run keeps: a larger limit finds all
    that was generated under a smaller one.
    """
    data = load_questions(run.settings)
    for warning in data.warnings:
        run.warn(warning)
    inputs = digest([[_content(q) for q in split] for split in (data.validation, data.test)])
    if not run.begin(STAGE, inputs):
        return
    run.storage.delete("questions")
    for number, (split, questions) in enumerate(zip(SPLITS, (data.validation, data.test), strict=True)):
        count = run.manifest["shards"].setdefault(split, shards_for(len(questions)))
        shards: dict[int, list[int]] = defaultdict(list)
        for position, question in enumerate(questions):
            shards[number * SPLIT_SHARDS + int(uniform("shard", question.id) * count)].append(position)
        for shard, positions in sorted(shards.items()):
            rows = (question_row(questions[position], split, shard, position) for position in positions)
            run.storage.write_table(f"questions/{split}/part-{shard:07d}.parquet", table_of(rows, QUESTIONS))
    counts = {"validation": len(data.validation), "test": len(data.test), "test_in_all": data.test_in_all}
    run.done(STAGE, inputs, **counts, warnings=run.warnings)


def read_questions(storage: Storage, split: str) -> list[tuple[Question, int]]:
    """All questions of a split with their shards, in file order."""
    table = storage.read_tables(storage.names(f"questions/{split}", ".parquet"), QUESTIONS).sort_by("position")
    return [(question_of(row), row["shard"]) for row in table.to_pylist()]


def shards_for(questions: int) -> int:
    """How many shards: of `SHARD_ROWS` rows, and where these would be many, of up to eight times as many rows."""
    many = max(MANY_SHARDS, math.ceil(questions / (8 * SHARD_ROWS)))
    return max(1, min(math.ceil(questions / SHARD_ROWS), many))


def _content(question: Question) -> list[object]:
    return [question.id, question.text, list(question.choices), list(question.gold), question.kind, question.category]
