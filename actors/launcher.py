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
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from actors.protocol import (
    MAX_PACKET,
    Exited,
    Fork,
    Forked,
    Frame,
    Learn,
    ZygoteReady,
    decode,
    encode_packet,
)

REPOSITORY = str(Path(__file__).resolve().parent.parent)


class LaunchError(RuntimeError):
    """This way of starting an engine does not work (any more); another one may."""


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A started engine process: its id, our end of its socket, its return code once it ends (negative: a signal)."""

    pid: int
    sock: socket.socket
    ended: asyncio.Future[int]

    def kill(self) -> None:
        """End it at once."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Launcher(Protocol):
    """A way to start engine processes. `tier` is its name in the events."""

    tier: str

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
    """A fresh interpreter for every engine: `python -m MODULE FD`."""

    tier = "spawn"

    def __init__(self, module: str, environment: Mapping[str, str], log: str) -> None:
        self._module, self._environment, self._log = module, _environment(environment), log
        self._waiting: set[asyncio.Task[None]] = set()

    async def launch(self) -> EngineProcess:
        """Start one."""
        ours, theirs = socket.socketpair()
        with theirs, Path(self._log).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, str(theirs.fileno()),
                pass_fds=[theirs.fileno()], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_report_end(process, ended))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return EngineProcess(process.pid, ours, ended)

    async def learn(self, modules: Sequence[str], engines: Sequence[Mapping[str, object]] = ()) -> None:
        """A fresh interpreter learns nothing."""

    async def close(self) -> None:
        """Its engines are closed by who holds them."""


async def _report_end(process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
    status = await process.wait()
    if not ended.done():
        ended.set_result(status)


class ForkLauncher:
    """Engines forked from a zygote, which is started at the first use and again if it has died."""

    tier = "fork"

    def __init__(self, environment: Mapping[str, str], log: str, module: str = "actors.zygote") -> None:
        self._environment, self._log, self._module = _environment(environment), log, module
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[str] | None = None
        self._forked: asyncio.Queue[int] = asyncio.Queue()
        self._children: dict[int, asyncio.Future[int]] = {}
        self._lock = asyncio.Lock()
        self._refused = ""
        self._taught, self._teachable = False, True

    async def start(self) -> str:
        """Have a zygote; why it cannot be used, or ""."""
        async with self._lock:
            if self._refused:
                return self._refused
            if self._ready is None or self._process is None or self._process.returncode is not None:
                await self._start_zygote()
            assert self._ready is not None
            return await asyncio.shield(self._ready)

    async def launch(self) -> EngineProcess:
        """Fork one."""
        unusable = await self.start()
        if unusable and self._taught:  # what it learned has spoilt it: a new one is fit, and learns nothing
            self._taught, self._teachable, self._refused = False, False, ""
            await self.close()
            unusable = await self.start()
        if unusable:
            await self.close()  # it may hold a GPU's memory
            raise LaunchError(f"engines cannot be forked here: {unusable}")
        ours, theirs = socket.socketpair()
        async with self._lock:
            assert self._control is not None
            try:
                with theirs:
                    socket.send_fds(self._control, [encode_packet(Fork(log=self._log))], [theirs.fileno()])
                pid = await self._forked.get()
            except OSError as error:
                ours.close()
                raise LaunchError(f"the zygote does not answer: {error}") from error
            except asyncio.CancelledError:  # its answer would be taken for that of the next launch
                ours.close()
                await self.close()
                raise
        if pid < 0:
            ours.close()
            raise LaunchError("the zygote has ended")
        ended = self._child(pid)
        ended.add_done_callback(lambda _: self._children.pop(pid, None))
        return EngineProcess(pid, ours, ended)

    async def learn(self, modules: Sequence[str], engines: Sequence[Mapping[str, object]] = ()) -> None:
        """Let the zygote import what an engine needed, and read the tokenizers of engines to come when it is idle.

        `engines` are vLLM's engine arguments. The next engine finds all that done; without a zygote nothing is learned.
        """
        packet = encode_packet(Learn(modules=list(modules), engines=[dict(e) for e in engines]))
        wanted = self._teachable and bool(modules or engines)
        if self._control is not None and wanted and len(packet) < MAX_PACKET:
            self._taught = True
            with suppress(OSError):
                self._control.send(packet)
                self._ready = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """End the zygote; its engines die with it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
        if self._control is not None:
            self._control.close()
            self._control = None

    async def _start_zygote(self) -> None:
        await self.close()
        loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        self._ready, self._forked = loop.create_future(), asyncio.Queue()
        with theirs, Path(self._log).open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, str(theirs.fileno()),
                pass_fds=[theirs.fileno()], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self._control))

    async def _read(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(control, MAX_PACKET)
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._take(decode(data))

    def _take(self, frame: Frame) -> None:
        match frame:
            case ZygoteReady(unusable=unusable):
                assert self._ready is not None
                self._refused = unusable  # a new zygote would find the same
                if not self._ready.done():
                    self._ready.set_result(unusable)
            case Forked(pid=pid):
                self._forked.put_nowait(pid)
            case Exited(pid=pid, status=status):
                ended = self._child(pid)  # kept until `launch` has it, which may be later
                if not ended.done():
                    ended.set_result(status)

    def _child(self, pid: int) -> asyncio.Future[int]:
        return self._children.setdefault(pid, asyncio.get_running_loop().create_future())

    def _lost(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(f"the zygote has ended (see {self._log})")
        self._forked.put_nowait(-1)
        for ended in self._children.values():
            if not ended.done():
                ended.set_result(-signal.SIGKILL)
