"""Finds the processes of a command by what they do, so that a fault can be injected into one of them.

They are known by a token in their environment: a process whose parent was killed is still found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARK = "SYMOE_FAULTS"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is alive: its parent and its command line."""

    pid: int
    parent: int
    args: str


def marked(token: str) -> list[Process]:
    """All living processes with the token in their environment."""
    wanted, found = f"{MARK}={token}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(_process(int(entry)))
            except (OSError, IndexError):  # it has ended meanwhile
                continue
    return [p for p in found if p.args]  # a zombie has none


def _process(pid: int) -> Process:
    args = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]), args)


def with_role(processes: list[Process], role: str) -> list[int]:
    """Process ids of those that are engines, zygotes, slot actors, ..., of a command."""
    zygotes = {p.pid for p in processes if "actors.zygote" in p.args}
    forked = {p.pid for p in processes if {p.pid, p.parent} <= zygotes}
    rules: dict[str, Callable[[Process], bool]] = {
        "engine": lambda p: "actors.fake_engine" in p.args or "actors.engine" in p.args or p.pid in forked,
        "zygote": lambda p: p.pid in zygotes - forked,
        "slot": lambda p: p.args.startswith("ray::Slot"),
        "pool": lambda p: p.args.startswith("ray::EnginePool"),
        "worker": lambda p: p.args.startswith(("ray::Map", "ray::Read", "ray::Write")),
        "raylet": lambda p: p.args.split()[0].endswith("/raylet"),
        "head": lambda p: p.args.split()[0].endswith("/gcs_server"),
    }
    return sorted(p.pid for p in processes if rules[role](p))


def left_after(token: str, within_s: float) -> list[Process]:
    """What is left of a command after at most so many seconds."""
    deadline = time.monotonic() + within_s
    while (left := marked(token)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left
