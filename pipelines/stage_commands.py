"""`symoe run` and each of its stages as a command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from pipelines import (
    aggregate,
    annotate,
    answer,
    bench_aggregators,
    evaluate,
    moa,
    profile,
    questions,
    recruit,
)  # fmt: skip
from pipelines.opening import check_engines, opened
from pipelines.progress import Display
from pipelines.report import write_report
from pipelines.run import MANIFEST, Run, check_same, other_settings, run_uri, settings_of
from pipelines.sharding import Work, generate
from pipelines.signals import DONE, TOO_MANY_FAILURES, Signals
from symoe_ray.config import load, to_yaml
from symoe_ray.results import accuracy_table
from symoe_ray.settings import Settings
from symoe_ray.stage_sizes import PASSES
from symoe_ray.storage import Storage

STAGES: dict[str, Callable[[Run], Any]] = {
    "annotate": annotate.run_stage,
    "profile": profile.run_stage,
    "recruit": recruit.run_stage,
    "bench-aggregators": bench_aggregators.run_stage,
    "answer": answer.run_stage,
    "aggregate": aggregate.run_stage,
    "baselines": moa.run_stage,
    "evaluate": evaluate.run_stage,
}
DUE_WORK: dict[str, Callable[[Run], Work | None]] = {
    "annotate": annotate.due_work,
    "profile": profile.due_work,
    "bench-aggregators": bench_aggregators.due_work,
    "answer": answer.due_work,
}


def add_commands(commands: Any) -> None:
    """Add `run` and the stages to the parser's commands."""
    _add(commands, "run", "all stages, resuming what is there")
    for name in STAGES:
        _add(commands, name, f"the stage {name} alone")


def _add(commands: Any, name: str, what: str) -> None:
    parser = commands.add_parser(name, help=what)
    parser.add_argument("--run", metavar="NAME_OR_PATH", help="where the run lies (default: <task>-<pool>)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N questions of each split")
    parser.add_argument(
        "--json", action="store_true", help="results as JSON on standard output, progress on standard error"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check settings and data, say what would run, run nothing"
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and stop")
    parser.add_argument("--restart", action="store_true", help="delete what the run has and start over")
    parser.add_argument("--retry-failed", action="store_true", help="generate failed rows again")
    parser.set_defaults(function=run_stages)


def run_stages(options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    """All stages or the one that the command names; the exit code."""
    if options.limit is not None:
        overrides = [*overrides, f"limit={options.limit}"]
    settings = _settings(options, overrides)
    if options.print_config:
        print(to_yaml(settings), end="")
        return DONE
    check_engines(settings)
    display = Display(sys.stderr if options.json else sys.stdout)
    uri = run_uri(settings, options.run or f"{settings.task.name}-{settings.pool.name}")
    wanted = list(STAGES) if options.command == "run" else [options.command]
    if options.dry_run:
        return _dry_run(settings, uri, wanted, display, restart=options.restart)
    with opened(settings, uri, display, signals, restart=options.restart, retry_failed=options.retry_failed) as run:
        questions.run_stage(run)
        made: Any = None
        for name in wanted:
            run.say(f"== {name}")
            if options.command == "run":
                _generate_together(run, name)
            made = STAGES[name](run)
            display.end_stage()
        if wanted[-1] != "evaluate":
            run.set_status("finished", stage=wanted[-1], exit_code=DONE)
            return DONE
        report = write_report(run.storage, settings)
        failed = evaluate.failed_rows(made)
        code = DONE if failed <= settings.max_failures else TOO_MANY_FAILURES
        run.set_status("finished", failed=failed, exit_code=code)
    if options.json:
        print(json.dumps(made))
    else:
        display.say("\n" + accuracy_table(made))
        display.say(f"\nresults: {run.storage.path('results.json')}\nreport:  {report}")
    return _too_many(failed, settings.max_failures)


def _generate_together(run: Run, name: str) -> None:
    """If a pass begins with this stage, have generated what all of its stages want."""
    for stages in PASSES:
        if stages[0] == name:
            generate(run, *filter(None, (DUE_WORK[stage](run) for stage in stages)))


def _too_many(failed: int, allowed: int) -> int:
    """The exit code of a finished run with so many failed rows."""
    if failed <= allowed:
        return DONE
    print(f"symoe: {failed} failed rows, max_failures is {allowed}", file=sys.stderr)
    return TOO_MANY_FAILURES


def _settings(options: argparse.Namespace, overrides: list[str]) -> Settings:
    """A single stage, and any command on an imported run, takes the run's own settings, with the given ones on top.

    So does `run` where neither a task nor a pool is named and the default ones cannot be this run's.
    """
    if options.run is None:
        return load(overrides)
    storage = Storage(run_uri(load([o for o in overrides if o.startswith("output_dir=")]), options.run))
    manifest = storage.read_json(MANIFEST, {})
    if options.command != "run" or "imported" in manifest:
        return settings_of(storage, overrides) or load(overrides)
    given = load(overrides)
    if options.restart or _names_a_group(overrides) or not other_settings(manifest, given):
        return given
    own = settings_of(storage, overrides) or given
    if not other_settings(manifest, own):
        print(f"symoe: run {storage.uri} goes on with its own settings (no task= or pool= is given)", file=sys.stderr)
    return own


def _names_a_group(overrides: list[str]) -> bool:
    return any(override.removeprefix("++").startswith(("task=", "pool=")) for override in overrides)


def _dry_run(settings: Settings, uri: str, wanted: list[str], display: Display, *, restart: bool) -> int:
    storage = Storage(uri)
    manifest = {} if restart else storage.read_json(MANIFEST, {})
    check_same(storage, manifest, settings)
    data = questions.load_questions(settings)
    for warning in data.warnings:
        display.say(f"warning: {warning}")
    display.say(f"run {uri}: {len(data.validation)} validation and {len(data.test)} test questions")
    display.say(f"experts: {', '.join(e.name for e in settings.pool.experts)}; annotator {settings.annotator_name}")
    display.say(f"stages: {', '.join(wanted)}; k={settings.k}, seeds {', '.join(map(str, settings.all_seeds))}")
    if done := manifest.get("stages"):
        display.say(f"done before, and again only where what it follows from has changed: {', '.join(done)}")
    return DONE
