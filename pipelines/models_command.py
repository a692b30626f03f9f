"""`symoe models pull|verify|record`: the weights of a pool on this node's disk, or on every node's."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.signals import DONE, MISSING, Signals
from symoe_ray.config import load
from symoe_ray.core import ExpertSpec, InputError, ResourceError
from symoe_ray.settings import Settings

PLAIN_EVERY_S = 10.0


def add_command(commands: Any) -> None:
    """Add `models` to the parser's commands."""
    parser = commands.add_parser("models", help="fetch the weights of a pool, or check them")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    pull = actions.add_parser("pull", help="have the pool's models here, checked; goes on where it was interrupted")
    pull.add_argument("experts", nargs="*", metavar="EXPERT", help="of these experts only")
    pull.add_argument("--every-node", action="store_true", help="on every node of the cluster (cluster=auto), at once")
    pull.add_argument("--json", action="store_true", help="machine-readable standard output")
    pull.set_defaults(function=_pull)
    verify = actions.add_parser("verify", help="compare what is here with its checksums")
    verify.add_argument("experts", nargs="*", metavar="EXPERT", help="of these experts only")
    verify.add_argument("--json", action="store_true", help="machine-readable standard output")
    verify.set_defaults(function=_verify)
    record = actions.add_parser("record", help="write a folder's checksums.json, for `verify` and for copies of it")
    record.add_argument("folder")
    record.set_defaults(function=_record)


def _pull(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    from actors.weight_pulls import pull, pull_everywhere, wanted_models

    settings = load(overrides)
    wanted = wanted_models(_experts(settings, options.experts), "" if options.experts else settings.embedding_model)
    if options.every_node:
        from actors.cluster import connected

        with connected(settings):
            pulled = _told(pull_everywhere(wanted), options.json)
    else:
        with _Meter() as meter:
            pulled = _told(pull(wanted, meter.expect, meter.add), options.json)
    if options.json:
        print(json.dumps([asdict(p) for p in pulled]))
    problems = [f"{p.node}: {', '.join(p.users)}: {p.problem}" for p in pulled if p.problem]
    if problems:
        raise ResourceError("\n".join(problems))
    return DONE


def _told(pulled: Iterable[Any], as_json: bool) -> list[Any]:
    """All of them, each printed as soon as it is known."""
    made = []
    for item in pulled:
        made.append(item)
        if not as_json and not item.problem:
            print(_line(item), flush=True)
    return made


def _line(pulled: Any) -> str:
    speed = f", {pulled.fetched_bytes / 1e6 / max(pulled.seconds, 1e-3):.0f} MB/s" if pulled.fetched_bytes else ""
    how = f"fetched {pulled.fetched_bytes / 1e9:.2f} GB in {pulled.seconds:.0f} s{speed}" if speed else "was there"
    version = f" @ {pulled.version[:12]}" if pulled.version else ""
    size = f"{pulled.size_bytes / 1e9:.2f} GB"
    return f"{pulled.node}  {', '.join(pulled.users)}: {pulled.model}{version}  {size}  {how}  {pulled.folder}"


def _verify(options: argparse.Namespace, overrides: list[str], _: Signals) -> int:
    from actors.weight_checks import verify
    from actors.weight_pulls import wanted_models

    rows, fine = [], True
    for wanted in wanted_models(_experts(load(overrides), options.experts)):
        row: dict[str, Any] = {"model": wanted.model, "revision": wanted.revision, "experts": wanted.users}
        try:
            row |= asdict(verify(wanted.model, wanted.revision))
        except ResourceError as error:
            row |= {"problems": [str(error)]}
        fine = fine and not row["problems"]
        rows.append(row)
        if not options.json:
            _print_verified(row)
    if options.json:
        print(json.dumps({"fine": fine, "models": rows}))
    return DONE if fine else MISSING


def _print_verified(row: dict[str, Any]) -> None:
    users = ", ".join(row["experts"])
    for problem in row["problems"]:
        print(f"FAIL {users}: {problem}", flush=True)
    if not row["problems"]:
        checked = f"{row['checked']} of {row['files']} files by checksum" if row["checked"] else "lengths only"
        print(f"ok   {users}: {row['model']}, {row['size_bytes'] / 1e9:.2f} GB, {checked}  {row['folder']}", flush=True)


def _record(options: argparse.Namespace, _: list[str], __: Signals) -> int:
    from actors.weight_checks import record

    folder = Path(options.folder)
    if not folder.is_dir():
        raise InputError(f"symoe models record: {folder} is no folder")
    print(f"{record(folder)} files: {folder / 'checksums.json'}")
    return DONE


def _experts(settings: Settings, names: Sequence[str]) -> list[ExpertSpec]:
    there = {spec.name: spec for spec in settings.pool.experts}
    if unknown := [name for name in names if name not in there]:
        raise InputError(f"the pool has no expert {', '.join(unknown)}; there are {', '.join(there)}")
    return [there[name] for name in names or there]


class _Meter:
    """How much has come and how fast: a live line on a terminal, now and then a plain one elsewhere."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._lock, self._started = threading.Lock(), time.monotonic()
        self._told, self._total, self._here = self._started, 0, 0
        self._live = Live(console=self._console, transient=True, get_renderable=self._text, refresh_per_second=4)

    def __enter__(self) -> _Meter:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def expect(self, size_bytes: int) -> None:
        """So many bytes are to come."""
        self._total = size_bytes

    def add(self, size_bytes: int) -> None:
        """So many more bytes have come (fewer, where a file begins again)."""
        with self._lock:
            self._here += size_bytes
            due = not self._console.is_terminal and time.monotonic() - self._told > PLAIN_EVERY_S
            if due:
                self._told = time.monotonic()
        if due:
            self._console.print(self._text())

    def _text(self) -> Text:
        seconds = max(time.monotonic() - self._started, 1e-3)
        speed = self._here / seconds
        return Text(f"{self._here / 1e9:.2f} of {self._total / 1e9:.2f} GB, {speed / 1e6:.0f} MB/s")
