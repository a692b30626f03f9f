"""No engine outlives its slot, not even one that loads, hangs or is stopped, and never sees its connection end."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread of `parent` that has started it ends; end now if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def maker_of(sock: socket.socket) -> int:
    """The process that has made the pair of sockets which this one is of."""
    if sys.platform != "linux":
        return os.getppid()
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
