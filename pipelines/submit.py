"""`symoe submit -- run ...`: a command as a job on a Ray cluster that is up, followed to its end.

Ray's own `ray job submit` ends with 1 whatever a failed job ended with. Here the exit code is the job's: Ray knows that
of a job that ended by itself; of one that was stopped, the run's status.json does.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.run import run_uri
from pipelines.signals import DONE, FAILED, INTERRUPTED, INTERRUPTIONS, TERMINATED, Signals
from pipelines.stage_commands import STAGES
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.storage import Storage

KILLED = 137


def add_command(commands: Any) -> None:
    """Add `submit` to the parser's commands."""
    parser = commands.add_parser(
        "submit", help="run a command as a job on a Ray cluster", usage="symoe submit [options] [--] COMMAND ...",
        epilog="Ctrl-C detaches, and asks first whether to stop the job where it is on a terminal.",
    )  # fmt: skip
    parser.add_argument("--address", default="", metavar="URL", help="the job server ($RAY_ADDRESS, or 127.0.0.1:8265)")
    parser.add_argument("--working-dir", default=".", metavar="DIR", help="what is uploaded (default: this folder)")
    parser.add_argument("--python", default="python", help="the interpreter on the cluster's nodes")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this environment variable on")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--follow", metavar="ID", help="follow a job that was submitted before")
    which.add_argument("--stop", metavar="ID", help="have a job write what it has and end")
    which.add_argument("--resume", metavar="ID", help="submit a job's command again, with these settings on top")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND", help="run ..., or any other command")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
    from actors.jobs import Jobs

    command = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    given = options.follow or options.stop or options.resume
    if bool(given) == bool(command) or (overrides and not command and not options.resume):
        raise InputError("symoe submit: give a command (symoe submit -- run ...), or one of --follow, --stop, --resume")
    environment = _environment(options.env)
    if not Path(options.working_dir).is_dir():
        raise InputError(f"--working-dir {options.working_dir}: there is no such folder")
    if command:
        _check_place([*command, *overrides])
    jobs = Jobs(options.address)
    if options.stop:
        jobs.stop(given)
        return _code(jobs, given)
    if options.follow:
        return _follow(jobs, given, signals)
    name = f"symoe-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    arguments = [*(command or jobs.arguments_of(given)), *overrides]
    jobs.submit(name, arguments, python=options.python, working_dir=options.working_dir, environment=environment)
    if options.no_wait:
        print(name)
        return DONE
    return _follow(jobs, name, signals)


def _environment(names: list[str]) -> dict[str, str]:
    if absent := [name for name in names if name not in os.environ]:
        raise InputError(f"--env {absent[0]}: there is no such environment variable here")
    return {name: os.environ[name] for name in names}


def _follow(jobs: Any, name: str, signals: Signals) -> int:
    """Show what a job says until it ends or this command is interrupted; the exit code."""
    try:
        print(f"symoe submit: job {name}", file=sys.stderr, flush=True)
        jobs.follow(name, _show)
    except BaseException as error:
        reason = signals.reason_of(error)
        if not isinstance(reason, INTERRUPTIONS):
            raise
        if isinstance(reason, KeyboardInterrupt) and _asked_to_stop(name):
            jobs.stop(name)
            return _code(jobs, name)
        print(
            f"symoe submit: detached, job {name} goes on (symoe submit --follow {name}, or --stop {name})",
            file=sys.stderr,
        )
        return INTERRUPTED if isinstance(reason, KeyboardInterrupt) else TERMINATED
    return _code(jobs, name)


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _asked_to_stop(name: str) -> bool:
    if not sys.stdin.isatty():
        return False
    return input(f"\nstop job {name}? [y/N] ").strip().lower() in ("y", "yes")


def _code(jobs: Any, name: str) -> int:
    """The exit code of a job that has ended; what became of it is said where it was not all right."""
    ended = jobs.ended(name)
    code: int | None = ended.exit_code
    if code is None:
        code = _code_in_status(jobs.arguments_of(name), ended.started)
    if code is None:
        code = TERMINATED if ended.state == "STOPPED" else FAILED
    if code != DONE:
        why = "" if ended.exit_code is not None or ended.state == "STOPPED" else f": {ended.message[:500]}"
        print(f"symoe submit: job {name} {ended.state.lower()}, exit code {code}{why}", file=sys.stderr)
        print(f"symoe submit: to go on: symoe submit --resume {name}", file=sys.stderr)
    return code


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The run that a command line names ("": none), and its settings."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--run", default="")
    options, words = parser.parse_known_args(arguments[1:])
    return options.run, [word for word in words if "=" in word and not word.startswith("-")]


def _check_place(arguments: list[str]) -> None:
    """InputError for a run in the job's own folder, which Ray deletes with the job."""
    run, overrides = _split(arguments)
    place = run if "/" in run else load([o for o in overrides if o.startswith("output_dir=")]).output_dir
    if arguments[0] in ("run", *STAGES) and not place.startswith("/") and "://" not in place:
        raise InputError(
            f"output_dir={place}: a job's own folder is gone with the job; name storage that every node sees, "
            "output_dir=/shared/runs or output_dir=s3://BUCKET/runs"
        )


def _code_in_status(arguments: list[str], since: float) -> int | None:
    """What the run's status.json says of an attempt that began after `since`; None where it is not seen from here.

    An attempt that is still `running` there was killed before it could write its end.
    """
    run, overrides = _split(arguments)
    try:
        settings = load(overrides)
        uri = run_uri(settings, run or f"{settings.task.name}-{settings.pool.name}")
        status = Storage(uri).read_json("status.json")
    except (OSError, ValueError):
        return None
    if status["time"] < since:
        return None
    return KILLED if status["state"] == "running" else status.get("exit_code")
