"""No engine outlives its slot, not even one that loads, hangs or is stopped, and never sees its connection end."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread of `parent` that has started it ends; end now if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def with_parent(command: Sequence[str]) -> list[str]:
    """The command, as one that dies like that from its first instruction on, where util-linux is here.

    Without it, a process that is stopped while it still imports, before it has called `die_with_parent`, would stay.
    """
    return [*_setpriv(), *command]


@cache
def _setpriv() -> tuple[str, ...]:
    """What to put before a command; () where there is no such program, or one that cannot do it (BusyBox')."""
    path = shutil.which("setpriv")
    prefix = (path or "", "--pdeathsig", "KILL", "--")
    try:
        subprocess.run([*prefix, sys.executable, "-V"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ()
    return prefix


def maker_of(sock: socket.socket) -> int:
    """The process that has made the pair of sockets which this one is of."""
    if sys.platform != "linux":
        return os.getppid()
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
