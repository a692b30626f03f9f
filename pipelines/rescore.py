"""`symoe rescore RUN`: a run's stored answers graded again, with all that follows without generating."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import evaluate
from pipelines.opening import opened
from pipelines.profile import book_of, read_profiles
from pipelines.progress import Display
from pipelines.recruit import read_asked
from pipelines.regrading import Regraded, regrade
from pipelines.report import write_report
from pipelines.run import Run, run_uri, settings_of
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.grading import GRADER_VERSION
from symoe_ray.profiles import profile_of
from symoe_ray.requests import seat_samples
from symoe_ray.results import accuracy_table
from symoe_ray.routing import Router, RoutingRules, SkillMap
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, RECRUITS

ALLOWED = ("grader", "output_dir")
WARNING = "rescored:"


def add_command(commands: Any) -> None:
    """Add `rescore` to the parser's commands."""
    parser = commands.add_parser(
        "rescore",
        help="grade a run's stored answers again, generating nothing",
        description="Grades all stored answers again (after a change of a grader, or with grader=default|reference) "
        "and writes the grades, results.json, samples, methods and the report. Profiles, the aggregator and the "
        "recruits stay as they were drawn, since the answers were made by them; how many recruitments would be others "
        "by the new grades, and how many of their drafts were never generated, is said and kept as a warning in the "
        "results. `symoe replay RUN grader=... --offline` scores them as they would be drawn; `symoe run` draws and "
        "generates.",
    )
    parser.add_argument("run", metavar="RUN", help="name or path of the run")
    parser.add_argument("--json", action="store_true", help="machine-readable standard output")
    parser.set_defaults(function=run_command)


def run_command(options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    """`symoe rescore`; the exit code."""
    storage, settings = _finished(options.run, overrides)
    started = time.monotonic()
    display = Display(sys.stderr if options.json else sys.stdout)
    before = storage.read_json("results.json")
    with opened(settings, storage.uri, display, signals) as run:
        made = rescore(run)
        results = storage.read_json("results.json")
        report = write_report(storage, settings)
        run.set_status("finished", failed=evaluate.failed_rows(results))
    made |= {
        "run": storage.uri, "seconds": round(time.monotonic() - started, 2), "report": report,
        "accuracy_before": _accuracy(before), "accuracy": _accuracy(results),
    }  # fmt: skip
    print(json.dumps(made) if options.json else _summary(made, results))
    return DONE


def _finished(name: str, overrides: Sequence[str]) -> tuple[Storage, Settings]:
    others = [o for o in overrides if o.lstrip("+").split("=")[0] not in ALLOWED]
    if others:
        raise InputError(f"rescore: {' '.join(others)}: only grader= can change here; `symoe replay` takes the others")
    storage = Storage(run_uri(load([o for o in overrides if "output_dir" in o]), name))
    settings = settings_of(storage, overrides)
    if settings is None or not storage.exists("results.json"):
        raise InputError(f"there is no finished run at {storage.uri}: finish it with `symoe run` first")
    return storage, settings


def rescore(run: Run) -> dict[str, Any]:
    """Grade again and write grades, results, samples and methods; what changed, and how the recruits would."""
    told = run.storage.read_json("results.json")["symoe"]["notes"]["warnings"]
    run.warnings += [warning for warning in told if not warning.startswith(WARNING)]
    regraded = regrade(run)
    differing, missing = redrawn(run)
    if differing:
        run.warn(
            f"{WARNING} by these grades {differing} recruitments would be others, and {missing} drafts of them were "
            "never generated; the recruits, the aggregator and their answers stay as drawn"
        )
    run.manifest["stages"].pop(evaluate.STAGE, None)
    run.save()
    evaluate.run_stage(run)
    return {
        "grader": run.settings.grader, "grader_version": GRADER_VERSION, **_counts(regraded),
        "recruitments_that_would_differ": differing, "drafts_never_generated": missing,
    }  # fmt: skip


def redrawn(run: Run) -> tuple[int, int]:
    """How many recruitments (questions x seeds) the stored grades would draw otherwise, and their missing drafts.

    Skills are mapped as the run has mapped them. (0, 0) where the profiles are another run's.
    """
    if run.settings.profiles or not run.storage.names("profiles", ".parquet"):
        return 0, 0
    order = [profile.expert for profile in read_profiles(run.storage)]
    book = book_of(run.storage, run.settings)
    profiles = [profile_of(name, book[name]) for name in order if name in book]
    asked, _ = read_asked(run.storage)
    differing = missing = 0
    for seed in run.settings.all_seeds:
        folder = run.seed_folder(seed)
        recruits = run.storage.read_tables(run.storage.names(f"{folder}recruits", ".parquet"), RECRUITS)
        drawn = dict(zip(*(recruits[name].to_pylist() for name in ("question_id", "experts")), strict=True))
        made = Router(profiles, RoutingRules.from_settings(run.settings, seed)).recruit(asked, _mapping(recruits))
        seats = {
            q: [made.experts[i] for i in row] for (q, _), row in zip(made.questions, made.seats.tolist(), strict=True)
        }
        others = {question: experts for question, experts in seats.items() if experts != drawn[question]}
        held = _held(run.storage, folder)
        differing += len(others)
        missing += sum((q, *seat) not in held for q, experts in others.items() for seat in set(seat_samples(experts)))
    return differing, missing


def _mapping(recruits: Any) -> SkillMap:
    columns = (recruits[name].to_pylist() for name in ("skills", "mapped", "cosines"))
    rows = zip(*columns, strict=True)
    return {s: (to, cosine) for skills, mapped, cos in rows for s, to, cosine in zip(skills, mapped, cos, strict=False)}


def _held(storage: Storage, folder: str) -> set[tuple[str, str, int]]:
    columns = ["question_id", "expert", "sample"]
    table = storage.read_tables(storage.names(f"{folder}drafts", ".parquet"), DRAFTS, columns)
    return set(zip(*(table[name].to_pylist() for name in columns), strict=True))


def _counts(regraded: Regraded) -> dict[str, Any]:
    return {"texts": sum(regraded.rows.values()), "changed": dict(regraded.changed)}


def _accuracy(results: Mapping[str, Any]) -> dict[str, float]:
    return {name: row["accuracy"] for name, row in results["symoe"]["methods"].items()}


def _summary(made: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    changed = sum(made["changed"].values())
    now, then = made["accuracy"].get("symoe", 0.0), made["accuracy_before"].get("symoe", 0.0)
    return (
        f"{accuracy_table(results)}\n\n{made['texts']:,} answers graded again (grader {made['grader']}, version "
        f"{made['grader_version']}) in {made['seconds']} s: {changed:,} have other grades; symoe {100 * then:.1f}% -> "
        f"{100 * now:.1f}%\nreport: {made['report']}"
    )
