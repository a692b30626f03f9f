"""What a process has started, and what that has started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress


def family(*pids: int) -> list[tuple[int, int, str]]:
    """Process id, parent and command line of these processes and all that they have started."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(a), int(b), c) for a, b, c in (line.split(None, 2) for line in listing.splitlines())]
    found, new = set(pids), set(pids)
    while new:
        new = {pid for pid, parent, _ in rows if parent in found} - found
        found |= new
    return [row for row in rows if row[0] in found]


def kill(pids: Iterable[int]) -> None:
    """Kill processes; those that are gone already are no matter."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
