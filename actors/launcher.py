"""How an engine process comes to life: forked from a zygote that has imported vLLM, or spawned from nothing.

A launcher hands out an `EngineProcess`; when the zygote cannot be used, `ForkLauncher` says so and the next tier takes
over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from actors.engine_process import EngineProcess, LaunchError
from actors.orphans import with_parent
from actors.protocol import MAX_PACKET, Learn, encode_packet
from actors.zygote_link import ZygoteLink

__all__ = ["EngineProcess", "ForkLauncher", "LaunchError", "Launcher", "SpawnLauncher"]
REPOSITORY = str(Path(__file__).resolve().parent.parent)


class Launcher(Protocol):
    """A way to start engine processes. `tier` is its name in the events."""

    tier: str

    async def start(self) -> str:
        """Have what launching needs; why it will not do, or ""."""

    async def launch(self) -> EngineProcess:
        """Start one; LaunchError where this way does not work."""

    async def learn(self, modules: Sequence[str], engines: Sequence[Mapping[str, object]] = ()) -> None:
        """Take note of what an engine had to import, and of the arguments of engines to come."""

    async def close(self) -> None:
        """End everything it has started."""


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(p for p in (REPOSITORY, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, **extra, "PYTHONPATH": path}


class SpawnLauncher:
    """A fresh interpreter for every engine: `python -m MODULE FD`. It leads a group of processes."""

    tier = "spawn"

    def __init__(self, module: str, environment: Mapping[str, str], log: str) -> None:
        self._module, self._environment, self._log = module, _environment(environment), log
        self._waiting: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """There is nothing to have."""
        return ""

    async def launch(self) -> EngineProcess:
        """Start one."""
        ours, theirs = socket.socketpair()
        with theirs, Path(self._log).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *with_parent([sys.executable, "-m", self._module, str(theirs.fileno())]),
                pass_fds=[theirs.fileno()], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_report_end(process, ended))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return EngineProcess(process.pid, ours, ended, leads=True)

    async def learn(self, modules: Sequence[str], engines: Sequence[Mapping[str, object]] = ()) -> None:
        """A fresh interpreter learns nothing."""

    async def close(self) -> None:
        """Its engines are closed by who holds them."""


async def _report_end(process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
    status = await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started and left behind
    if not ended.done():
        ended.set_result(status)


class ForkLauncher:
    """Engines forked from a zygote, which is started at the first use and again if it has died."""

    tier = "fork"

    def __init__(self, environment: Mapping[str, str], log: str, module: str = "actors.zygote") -> None:
        self._environment, self._log, self._module = _environment(environment), log, module
        self._zygote: ZygoteLink | None = None
        self._retired: list[ZygoteLink] = []
        self._lock = asyncio.Lock()
        self._refused = ""
        self._taught, self._teachable = False, True

    async def start(self) -> str:
        """Have a zygote; why it cannot be used, or ""."""
        async with self._lock:
            if not self._refused and (self._zygote is None or not self._zygote.alive):
                self._zygote = await ZygoteLink.start(self._module, self._environment, self._log)
            zygote = self._zygote
        if self._refused or zygote is None:
            return self._refused
        unusable = await zygote.ready()
        self._refused = zygote.unusable  # a new one would find the same
        return unusable

    async def launch(self) -> EngineProcess:
        """Fork one."""
        unusable = await self.start()
        if unusable and self._taught:  # what it learned has spoilt it: a new one is fit, and learns nothing
            self._taught, self._teachable, self._refused = False, False, ""
            self._retire()
            unusable = await self.start()
        if unusable or self._zygote is None:
            self._retire()  # it may hold a GPU's memory
            raise LaunchError(f"engines cannot be forked here: {unusable}")
        return await self._zygote.fork()

    async def learn(self, modules: Sequence[str], engines: Sequence[Mapping[str, object]] = ()) -> None:
        """Let the zygote import what an engine needed, and read the tokenizers of engines to come when it is idle.

        `engines` are vLLM's engine arguments. The next engine finds all that done; without a zygote nothing is learned.
        """
        packet = encode_packet(Learn(modules=list(modules), engines=[dict(e) for e in engines]))
        wanted = self._teachable and bool(modules or engines)
        if self._zygote is not None and wanted and len(packet) < MAX_PACKET:
            self._taught = True
            self._zygote.learn(packet)

    async def close(self) -> None:
        """End every zygote; its engines die with it."""
        self._retire()
        retired, self._retired = self._retired, []
        for zygote in retired:
            await zygote.end()

    def _retire(self) -> None:
        """Let go of the zygote. The engines that it has forked live on."""
        if self._zygote is not None:
            self._zygote.retire()
            self._retired = [*(z for z in self._retired if z.alive), self._zygote]
            self._zygote = None
