"""`symoe import-reference`: a run from the released code's files, so that these stand in for the stages before."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import imported_answers, imported_profiles
from pipelines.opening import opened
from pipelines.progress import Display
from pipelines.questions import load_questions
from pipelines.questions import run_stage as lay_down_questions
from pipelines.run import MANIFEST, Run, run_uri
from pipelines.signals import DONE, Signals
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.options import split_options
from symoe_ray.reference_files import ReferenceFolder, read_folder
from symoe_ray.settings import PoolSettings, Settings, TaskSettings
from symoe_ray.storage import Storage

_WIDE_TASK = "MMLU_Pro"
_TABLES: dict[str, Callable[[Run, ReferenceFolder], object]] = {
    "profiles": imported_profiles.profiles,
    "skills": imported_profiles.skills,
    "aggregators": imported_profiles.aggregators,
    "recruits": imported_answers.recruits,
    "answers": imported_answers.answers,
    "finals": imported_answers.finals,
}


def add_command(commands: Any) -> None:
    """Add `import-reference` to the parser's commands."""
    parser = commands.add_parser(
        "import-reference",
        help="a run from the released code's skills/<TASK>/ files",
        description="Reads profiles, keyword files, CoT files, recruit and round-0 CSVs and final answers of the "
        "released code into a new run. `symoe recruit`, `answer`, `aggregate`, `run` ... --run NAME then go on from "
        "there. Settings beside it (key=value) hold for the run; compat=reference and baselines=off unless they say "
        "otherwise, pool=paper16 with the experts that have a profile, and the seeds that have a CSV.",
    )
    parser.add_argument("folder", metavar="DIR", help="skills/<TASK>, or a folder above it that holds one task")
    parser.add_argument("--run", metavar="NAME_OR_PATH", help="where the run lies (default: reference-<TASK>)")
    parser.add_argument("--restart", action="store_true", help="delete what the run has and import again")
    parser.add_argument("--json", action="store_true", help="what was imported as JSON on standard output")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    reference = read_folder(Path(options.folder).expanduser())
    settings = settings_for(reference, overrides)
    uri = run_uri(settings, options.run or f"reference-{reference.task}")
    if not options.restart and Storage(uri).exists(MANIFEST):
        raise InputError(f"there is a run at {uri} already; choose another --run, or --restart to replace it")
    load_questions(settings)  # whatever is wrong with them is said before a run is made
    display = Display(sys.stderr if options.json else sys.stdout)
    with opened(settings, uri, display, signals, restart=options.restart) as run:
        facts = import_reference(run, reference)
        run.set_status("finished", stage="import-reference")
    if options.json:
        print(json.dumps({"run": run.storage.uri, **facts}))
    else:
        display.say(f"run: {run.storage.uri}")
    return DONE


def settings_for(reference: ReferenceFolder, overrides: Sequence[str]) -> Settings:
    """The imported run's settings: those given, over what the released code's files say."""
    keys = {text.removeprefix("++").partition("=")[0].strip() for text in overrides}
    for name in keys & {"limit", "exclude_leaks"}:
        raise InputError(f"import-reference: {name}= cannot be set; the folder's files are read whole")
    settings = load(["pool=paper16", "compat=reference", "baselines=off", *overrides])
    return replace(
        settings,
        task=_task(reference),
        pool=_pool(settings.pool, reference),
        k=_seats_per_question(reference) or settings.k,
        **({} if keys & {"seed", "seeds"} else _seeds(reference)),
    )


def _task(reference: ReferenceFolder) -> TaskSettings:
    """Golds that are letters make a choice task; unnamed options are as many as the released code looks for."""
    rows = (*reference.validation, *reference.test)
    named = all(split_options(row.question)[1] for row in rows)
    options = 10 if reference.task == _WIDE_TASK else 4
    choice = any(row.gold.strip().isalpha() for row in rows)
    return TaskSettings(
        name=reference.task,
        kind="choice" if choice else "integer",
        validation=str(reference.validation_file),
        test=str(reference.test_file),
        unnamed_options=options if choice and not named else 0,
    )


def _pool(pool: PoolSettings, reference: ReferenceFolder) -> PoolSettings:
    """The pool's experts that have a profile, in the order of the profiles, which the released draws depend on."""
    missing = reference.profiles.keys() - {expert.name for expert in pool.experts}
    if missing:
        raise InputError(
            f"pool {pool.name!r} has no {', '.join(sorted(missing))}, but the folder has their profiles; "
            "give pool=FILE.yaml with all of them"
        )
    experts = tuple(pool.expert(name) for name in reference.profiles)
    return replace(pool, experts=experts, annotator=pool.annotator if pool.annotator in reference.profiles else "")


def _seats_per_question(reference: ReferenceFolder) -> int:
    sizes = {len(row.experts): row.place for rows in reference.seats.values() for row in rows}
    if len(sizes) > 1:
        raise InputError(f"{list(sizes.values())[-1]}: {list(sizes)[-1]} solvers, but {next(iter(sizes))} elsewhere")
    return next(iter(sizes), 0)


def _seeds(reference: ReferenceFolder) -> dict[str, Any]:
    seeds = tuple(reference.seats)
    return {"seed": seeds[0], "seeds": seeds if len(seeds) > 1 else ()} if seeds else {}


def import_reference(run: Run, reference: ReferenceFolder) -> dict[str, Any]:
    """Fill the run's stages from the folder, as far as it goes; what was imported, by table."""
    lay_down_questions(run)
    if run.settings.task.unnamed_options:
        run.warn(f"questions that name no options get {run.settings.task.unnamed_options}, as the released code has it")
    for name in reference.unread:
        run.warn(f"{name} is no file of the released code and was not read")
    facts: dict[str, Any] = {"from": str(reference.test_file.parent)}
    run.manifest["imported"] = facts
    for table, fill in _TABLES.items():
        facts[table] = fill(run, reference)
        run.save()
        run.say(f"import-reference: {table}: {facts[table] or 'none'}")
    return facts
