"""report.html: what symoe_ray.report draws, gathered from a finished run's folder."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from pipelines.bench_aggregators import RESULT
from pipelines.evaluate import read_events
from pipelines.methods import SeedTables, read_seed
from pipelines.profile import read_profiles
from pipelines.questions import read_questions
from pipelines.run import CONFIG, run_uri, settings_of
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError, Question
from symoe_ray.report import AggregatorRow, QuestionRow, ReportData, render
from symoe_ray.requests import seat_samples
from symoe_ray.results import accuracy_table
from symoe_ray.routing import COUNTED
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage

QUESTIONS_SHOWN = 500


def add_command(commands: Any) -> None:
    """Add `report` to the parser's commands."""
    parser = commands.add_parser("report", help="write a run's report.html again, generating nothing")
    parser.add_argument("run", metavar="RUN", help="name or path of the run")
    parser.add_argument("--json", action="store_true", help="machine-readable standard output")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    storage = Storage(run_uri(load(overrides), options.run))
    settings = settings_of(storage)
    if settings is None:
        raise InputError(f"there is no run at {storage.uri} (no {CONFIG})")
    path = write_report(storage, settings)
    results = storage.read_json("results.json")
    print(json.dumps({"report": path}) if options.json else f"{accuracy_table(results)}\n\nreport: {path}")
    return DONE


def write_report(storage: Storage, settings: Settings) -> str:
    """Write report.html of a finished run and return its path; InputError where the run has no results yet."""
    if not storage.exists("results.json"):
        raise InputError(f"run {storage.uri} has no results.json: finish it with `symoe run` first")
    results = storage.read_json("results.json")
    manifest = storage.read_json("manifest.json")
    seed = settings.all_seeds[0]
    tables = read_seed(storage, f"seed={seed}/" if len(settings.all_seeds) > 1 else "")
    questions = [q for q, _ in read_questions(storage, "test")]
    seats, by_skill = _seats(tables)
    stages, benchmark = manifest["stages"], storage.read_json(RESULT)
    data = ReportData(
        run=storage.uri.rsplit("/", 1)[-1],
        date=results["date"],
        settings=_settings(settings, stages["aggregate"]["aggregator"]),
        results=results,
        seats=seats,
        seats_by_skill=by_skill,
        profiles={p.expert: p.scores for p in read_profiles(storage)},
        aggregators=_aggregators(benchmark),
        aggregator_reason=f"{benchmark['chosen']}: {benchmark['reason']}",
        annotation={
            "questions annotated": stages["annotate"]["questions"],
            "of these without a skill": stages["annotate"]["without_skills"],
        },
        events=read_events(storage),
        questions=[_question(q, tables, settings) for q in questions[:QUESTIONS_SHOWN] if q.id in tables.recruits],
        questions_total=len(questions),
        warnings=results["symoe"]["notes"]["warnings"],
        notes=_notes(stages, settings),
    )
    storage.write_bytes("report.html", render(data).encode())
    return storage.path("report.html")


def _settings(settings: Settings, aggregator: str) -> dict[str, object]:
    return {
        "task": settings.task.name,
        "pool": f"{settings.pool.name} ({len(settings.pool.experts)} experts)",
        "annotator": settings.annotator_name,
        "aggregator": aggregator,
        "k": settings.k,
        "router": settings.router,
        "sampler": settings.sampler,
        "trim_threshold": settings.trim_threshold,
        "grader": settings.grader,
        "seeds": ", ".join(map(str, settings.all_seeds)),
        "engine": settings.engine.kind,
    }


def _seats(tables: SeedTables) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    seats: Counter[str] = Counter()
    by_skill: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for recruit in tables.recruits.values():
        seats.update(recruit["experts"])
        for skill in set(recruit["mapped"]):
            for expert in recruit["experts"]:
                by_skill[skill][expert] += 1
    return dict(seats), {skill: dict(counts) for skill, counts in by_skill.items()}


def _aggregators(benchmark: Mapping[str, Any]) -> list[AggregatorRow]:
    return [
        AggregatorRow(expert=name, correct=s["correct"], graded=s["graded"], chosen=name == benchmark["chosen"])
        for name, s in benchmark["scores"].items()
    ]


def _notes(stages: dict[str, Any], settings: Settings) -> list[str]:
    notes = []
    for seed, facts in stages["recruit"]["seeds"].items():
        if facts["trimmed"]:
            notes.append(f"seed {seed}: trimmed from the pool for too few seats: {', '.join(facts['trimmed'])}")
        counts = facts["counts"]
        notes += [f"seed {seed}: {words}: {counts[name]}" for name, words in COUNTED.items() if name in counts]
    if len(settings.all_seeds) > 1:
        notes.append(f"recruits and questions are those of seed {settings.all_seeds[0]}; accuracies pool all seeds")
    return notes


def _question(question: Question, tables: SeedTables, settings: Settings) -> QuestionRow:
    recruit, answer = tables.recruits[question.id], tables.answers[question.id]["symoe"]
    reference = settings.grader == "reference"
    right = "reference_correct" if reference else "correct"
    drafts = [tables.drafts[question.id][seat] for seat in seat_samples(recruit["experts"])]
    return {
        "id": question.id,
        "question": question.text,
        "choices": question.choices,
        "gold": question.gold,
        "skills": recruit["skills"],
        "mapped": recruit["mapped"],
        "candidates": recruit["candidates"],
        "weights": recruit["weights"],
        "experts": recruit["experts"],
        "drafts": [
            {
                "expert": d["expert"],
                "answer": d["reference_answer" if reference else "answer"],
                "correct": d[right] if question.gold else None,
                "text": d["text"],
                "truncated": d["truncated"],
                "failure": d["failure"]["message"] if d["failure"] else "",
            }
            for d in drafts
        ],
        "text": answer["text"],
        "value": answer["reference_answer" if reference else "answer"],
        "correct": answer[right] if question.gold else None,
        "method": "all drafts agreed" if answer["skipped"] else f"aggregated by {answer['aggregator']}",
        "failure": answer["failure"]["message"] if answer["failure"] else "",
    }
