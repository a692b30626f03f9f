"""Has the kernel kill engines for want of memory, in a control group of their slot (version 1, as root)."""

from __future__ import annotations

import os
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 6_000_000
PATIENCE_S = 20.0


def available() -> bool:
    """Whether this process may make control groups that limit memory."""
    return (GROUPS / "memory.limit_in_bytes").exists() and os.access(GROUPS, os.W_OK)


def out_of_memory(slot: int, engine: int) -> bool:
    """Leave a slot's next engine so little memory that the kernel kills it; whether that has happened.

    The engine that the slot has is killed, so that there is a next one.
    """
    group = GROUPS / f"symoe-faults-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        (group / "cgroup.procs").write_text(str(slot))
        os.kill(engine, signal.SIGKILL)
        return _waited_for_a_kill(group)
    except OSError:  # the slot has ended meanwhile
        return False
    finally:
        (group / "memory.limit_in_bytes").write_text("-1")
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (GROUPS / "cgroup.procs").write_text(pid)
        for _ in range(50):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def _waited_for_a_kill(group: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        told = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
        if int(told["oom_kill"]):
            return True
        time.sleep(0.1)
    return False
