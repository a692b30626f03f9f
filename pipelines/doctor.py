"""`symoe doctor`: print what is here, whether each expert fits, and what to do about it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.signals import DONE, MISSING, Signals
from symoe_ray.config import load
from symoe_ray.findings import Finding


def add_command(commands: Any) -> None:
    """Add `doctor` to the parser's commands."""
    parser = commands.add_parser("doctor", help="what is here, and whether each expert fits")
    parser.add_argument("--json", action="store_true", help="machine-readable standard output")
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    from actors.inspection import inspect_machine

    return doctor(inspect_machine(load(overrides)), as_json=options.json)


def doctor(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print the findings; exit code 0 if all are fine, 4 otherwise."""
    fine = all(f.fine for f in findings)
    if as_json:
        print(json.dumps({"fine": fine, "findings": [asdict(f) for f in findings]}))
    else:
        width = max(len(f.what) for f in findings)
        for finding in findings:
            print(f"{'ok  ' if finding.fine else 'FAIL'} {finding.what:<{width}}  {finding.value}")
            if finding.advice:
                print(f"     {'':<{width}}  -> {finding.advice}")
    return DONE if fine else MISSING
