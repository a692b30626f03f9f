"""Step 1: the skills of every question, of both splits in one load of the annotator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from pipelines.run import Run
from pipelines.sharding import Rows, Work, collect, generate
from symoe_ray.core import ExpertSpec
from symoe_ray.fingerprints import digest
from symoe_ray.ledger import responses
from symoe_ray.prompts import annotate_messages
from symoe_ray.requests import make_request
from symoe_ray.settings import AnnotateSettings
from symoe_ray.skills import consistent_skills
from symoe_ray.storage import Storage
from symoe_ray.tables import SKILLS, question_of, request_row

STAGE = "annotate"


def run_stage(run: Run) -> None:
    """Write skills/part-*.parquet: the kept skills of each question and the samples they come from."""
    work = _work(run)
    if not run.begin(STAGE, work.inputs):
        return
    commits = generate(run, work)
    collect(run, "skills", work.splits, partial(_skills, run.settings.annotate), SKILLS)
    table = run.storage.read_tables(run.storage.names("skills", ".parquet"), SKILLS, ["skills"])
    empty = sum(not skills for skills in table["skills"].to_pylist())
    run.say(f"annotate: {len(table) - empty} of {len(table)} questions have skills")
    run.done(STAGE, work.inputs, commits, questions=len(table), without_skills=empty)


def due_work(run: Run) -> Work | None:
    """What the stage will have generated, None if it has run."""
    work = _work(run)
    return work if run.is_due(STAGE, work.inputs) else None


def _work(run: Run) -> Work:
    settings = run.settings
    spec = settings.pool.expert(settings.annotator_name)
    splits = ("test",) if settings.profiles else ("validation", "test")
    seed = settings.all_seeds[0]
    build = partial(_requests, spec, settings.annotate, seed)
    inputs = digest(run.output("questions"), spec.name, splits, seed)
    return Work(stage=STAGE, splits=splits, build=build, inputs=inputs)


def _requests(spec: ExpertSpec, rules: AnnotateSettings, seed: int, _: Storage, rows: Rows) -> Iterator[dict[str, Any]]:
    sampling = replace(spec.sampling, max_tokens=rules.sampling_max_tokens)
    for row in rows:
        question = question_of(row)
        request = make_request(spec, question.id, annotate_messages(question), sampling, run_seed=seed, n=rules.samples)
        yield request_row(request, row["shard"], seed)


def _skills(rules: AnnotateSettings, storage: Storage, rows: Rows) -> Iterator[dict[str, Any]]:
    by_question = defaultdict(list)
    for response in responses(storage, STAGE, {row["shard"] for row in rows}).to_pylist():
        by_question[response["question_id"], response["shard"]].append(response)
    for row in rows:
        samples = sorted(by_question[row["question_id"], row["shard"]], key=lambda r: r["sample"])
        texts = [s["text"] for s in samples if s["failure"] is None]
        yield {
            "question_id": row["question_id"],
            "split": row["split"],
            "skills": consistent_skills(texts, min_count=rules.min_count, max_characters=rules.max_characters),
            "samples": texts,
            "prompt_tokens": max((s["prompt_tokens"] for s in samples), default=0),
            "completion_tokens": sum(s["completion_tokens"] for s in samples),
            "failure": next((s["failure"] for s in samples if s["failure"]), None),
        }
