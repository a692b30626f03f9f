"""A started engine process in the hands of the slot that has started it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass


class LaunchError(RuntimeError):
    """This way of starting an engine does not work (any more); another one may."""


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """Its id, our end of its socket, its return code once it ends (negative: a signal).

    `leads` a group: an engine over several GPUs has processes of its own, which end with it.
    """

    pid: int
    sock: socket.socket
    ended: asyncio.Future[int]
    leads: bool = False

    def kill(self) -> None:
        """End it at once."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                (os.killpg if self.leads else os.kill)(self.pid, signal.SIGKILL)
