"""Trying in a forked child what might spoil this process: the child may crash, hang, or start what cannot be undone."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence

from actors.orphans import die_with_parent

_FINE = b"\0"


def tried(steps: Sequence[Callable[[], str]], timeout_s: float) -> tuple[int, str]:
    """How many of the steps can be done, in this order; and why the next one must not be, "" where all can.

    A step returns why it must not be done, or ""; one that raises must not be. The child has `timeout_s` for all.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        die_with_parent(parent)
        _try(steps, writing)
    os.close(writing)
    try:
        told, late = _read(reading, time.monotonic() + timeout_s)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    done = told.count(_FINE)
    if done == len(steps):
        return done, ""
    why = told.replace(_FINE, b"").decode(errors="replace")
    ended = f"it took more than {timeout_s:.0f} s" if late else f"it ended with {os.waitstatus_to_exitcode(status)}"
    return done, why or ended


def _try(steps: Sequence[Callable[[], str]], writing: int) -> None:
    """The child's part; it never returns."""
    try:
        for step in steps:
            why = step()
            os.write(writing, why.encode()[:2000] or _FINE)
            if why:
                break
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}".encode()[:2000])
    finally:
        os._exit(0)


def _read(source: int, deadline: float) -> tuple[bytes, bool]:
    """What comes until the other side ends, and whether it was cut off at the deadline."""
    told = b""
    while select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(source, 65536)
        if not piece:
            return told, False
        told += piece
    return told, True
