"""The command line: `symoe COMMAND [key=value ...] [options]`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipelines import (
    ask,
    compare,
    doctor,
    export,
    import_reference,
    models_command,
    plan,
    profiles_command,
    replay,
    report,
    rescore,
    route,
    serve,
    show,
    stage_commands,
    submit,
)
from pipelines.signals import Signals, exit_code

COMMANDS: tuple[Callable[[Any], None], ...] = (
    stage_commands.add_commands,
    profiles_command.add_command,
    route.add_command,
    replay.add_command,
    rescore.add_command,
    report.add_command,
    compare.add_command,
    show.add_command,
    plan.add_command,
    import_reference.add_command,
    export.add_command,
    serve.add_command,
    ask.add_command,
    doctor.add_command,
    models_command.add_command,
    submit.add_command,
)

UNREAD = 128 + signal.SIGPIPE  # as the shell says of one that `head` has cut short
SETTING = re.compile(r"\+{0,2}([A-Za-z_][\w.\[\]-]*)?=")
"""What is a setting among the words of a command line; a question such as "is 2+2=4?" is none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (see `symoe --help`)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    places = [i for i, a in enumerate(given) if SETTING.match(a) and given[i - 1 : i] != ["--run"]]
    overrides = [given[i] for i in places]
    options = _parser().parse_args([a for i, a in enumerate(given) if i not in places])
    signals = Signals()
    try:
        return int(options.function(options, overrides, signals))
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return UNREAD
        return exit_code(signals.reason_of(error))
    finally:
        signals.close()


def _nobody_reads() -> bool:
    """Whether standard output goes to a pipe that has been closed; what is left to be written is dropped then."""
    poll = select.poll()
    poll.register(1, 0)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return closed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="symoe",
        description="Symbolic mixture of experts on a pool of language models.",
        epilog="Settings are key=value anywhere on the line: task=, pool=, k=, engine.slots=, ... (conf/config.yaml). "
        "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 more failed rows than max_failures, "
        "4 resources missing, 130 and 143 interrupted (resumable).",
    )
    parser.add_argument("--version", action="version", version=f"symoe {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("symoe-ray")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
