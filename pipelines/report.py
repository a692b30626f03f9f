"""`symoe report`: report.html and report.md of a finished run, gathered from its folder."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.bench_aggregators import RESULT
from pipelines.evaluate import read_events
from pipelines.profile import read_profiles
from pipelines.question_records import first_seed_folder, question_records
from pipelines.run import CONFIG, run_uri, settings_of
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.reporting.page import AggregatorRow, ReportData, render
from symoe_ray.reporting.paper_table import paper_table
from symoe_ray.reporting.question_blocks import pack
from symoe_ray.results import accuracy_table
from symoe_ray.routing import COUNTED
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import RECRUITS
from symoe_ray.timeline import PlannedSpan, PlannedStage

PAGE, TABLE = "report.html", "report.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a page may hold: test questions, in file order, and characters of each text (0: no limit)."""

    questions: int = 50_000
    characters: int = 8_000


def add_command(commands: Any) -> None:
    """Add `report` to the parser's commands."""
    parser = commands.add_parser(
        "report", help=f"write a run's {PAGE} and {TABLE} again, generating nothing",
        description=f"Writes {PAGE}, one file that needs no network, and {TABLE}, its table of methods for a paper.",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="name or path of the run")
    parser.add_argument(
        "--format",
        choices=("summary", "markdown"),
        default="summary",
        help="what to print; markdown: the paper table",
    )
    parser.add_argument(
        "--questions", type=int, default=Limits().questions, metavar="N", help="questions in the page (%(default)s)"
    )
    parser.add_argument(
        "--characters", type=int, default=Limits().characters, metavar="N",
        help="longer texts are cut in the middle; 0 cuts none (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable standard output")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    if options.questions < 0 or options.characters < 0:
        raise InputError("--questions and --characters are counts, 0 or more")
    storage, settings = finished_run(options.run, overrides)
    limits = Limits(questions=options.questions, characters=options.characters)
    page, table = write_report(storage, settings, limits), storage.path(TABLE)
    if options.json:
        print(json.dumps({"report": page, "table": table}))
    elif options.format == "markdown":
        print(storage.read_bytes(TABLE).decode(), end="")
    else:
        print(f"{accuracy_table(storage.read_json('results.json'))}\n\nreport: {page}\ntable:  {table}")
    return DONE


def finished_run(name: str, overrides: list[str]) -> tuple[Storage, Settings]:
    """A run with its own settings; InputError where there is none of that name, or none with results."""
    storage = Storage(run_uri(load(overrides), name))
    settings = settings_of(storage)
    if settings is None:
        raise InputError(f"there is no run at {storage.uri} (no {CONFIG})")
    if not storage.exists("results.json"):
        raise InputError(f"run {storage.uri} has no results.json: finish it with `symoe run` first")
    return storage, settings


def write_report(storage: Storage, settings: Settings, limits: Limits | None = None) -> str:
    """Write report.html and report.md of a finished run and return the page's path."""
    data = _data(storage, settings, limits or Limits())
    storage.write_bytes(PAGE, render(data).encode())
    storage.write_bytes(TABLE, paper_table(data.results, run=data.run, settings=data.settings).encode())
    return storage.path(PAGE)


def _data(storage: Storage, settings: Settings, limits: Limits) -> ReportData:
    results, manifest = storage.read_json("results.json"), storage.read_json("manifest.json")
    stages, benchmark = manifest["stages"], storage.read_json(RESULT)
    seats, by_skill = _seats(storage, first_seed_folder(settings))
    records = question_records(storage, settings, most=limits.questions, characters=limits.characters)
    return ReportData(
        run=storage.uri.rsplit("/", 1)[-1],
        date=results["date"],
        settings=_settings(settings, stages["aggregate"]["aggregator"]),
        results=results,
        grader=settings.grader,
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
        planned=_planned(manifest),
        questions=pack(records, settings.grader),
        questions_total=stages["questions"]["test"],
        warnings=results["symoe"]["notes"]["warnings"],
        notes=_notes(stages, settings),
    )


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


def _seats(storage: Storage, folder: str) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Seats by expert, and by skill and expert."""
    table = storage.read_tables(storage.names(f"{folder}recruits", ".parquet"), RECRUITS, ["mapped", "experts"])
    seats: Counter[str] = Counter()
    by_skill: dict[str, Counter[str]] = defaultdict(Counter)
    for mapped, experts in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        seats.update(experts)
        for skill in set(mapped):
            by_skill[skill].update(experts)
    return dict(seats), {skill: dict(counts) for skill, counts in by_skill.items()}


def _planned(manifest: Mapping[str, Any]) -> list[PlannedStage]:
    """What was predicted when the run began; nothing in a run that has no plan."""
    return [
        PlannedStage(
            stage=stage["stage"],
            seconds=stage["seconds"],
            spans=tuple(
                PlannedSpan(slot=slot, event=event, expert=experts, begin_s=begin_s, end_s=end_s)
                for slot, event, experts, begin_s, end_s in stage["spans"]
            ),
        )
        for stage in manifest.get("plan", ())
    ]


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
        notes += [f"seed {seed}: {words}: {counts[name]:,}" for name, words in COUNTED.items() if name in counts]
    if len(settings.all_seeds) > 1:
        notes.append(f"recruits and questions are those of seed {settings.all_seeds[0]}; accuracies pool all seeds")
    return notes
