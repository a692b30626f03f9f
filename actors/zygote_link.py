"""A zygote from outside: its process, the socket that leads to it, and the engines that it has forked."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from actors.engine_process import EngineProcess, LaunchError
from actors.orphans import with_parent
from actors.protocol import MAX_PACKET, Exited, Fork, Forked, Frame, ZygoteReady, decode, encode_packet

ANSWER_TIMEOUT_S = 300.0


class ZygoteLink:
    """A started zygote. `unusable` says why it must not fork any more ("": it may)."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket, log: str) -> None:
        self._process, self._control, self._log = process, control, log
        self.unusable = ""
        self._lost = ""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked: deque[asyncio.Future[tuple[int, asyncio.Future[int]]]] = deque()
        self._engines: dict[int, asyncio.Future[int]] = {}
        self._retired = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, module: str, environment: Mapping[str, str], log: str) -> ZygoteLink:
        """`python -m MODULE FD`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs, Path(log).open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *with_parent([sys.executable, "-m", module, str(theirs.fileno())]),
                    pass_fds=[theirs.fileno()], env=dict(environment),
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        return cls(process, ours, log)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._reading.done()

    async def ready(self) -> str:
        """Return when it has imported what it was told to; why it cannot fork, or ""."""
        await asyncio.shield(self._ready)
        return self._lost or self.unusable

    def learn(self, packet: bytes) -> None:
        """Send it a `Learn`, whose end `ready` awaits. One that has ended learns nothing."""
        with suppress(OSError):
            self._control.send(packet)
            if self._ready.done():
                self._ready = asyncio.get_running_loop().create_future()

    async def fork(self) -> EngineProcess:
        """Have it fork an engine; LaunchError where it does not. Cancelling it leaves no engine behind."""
        ours, theirs = socket.socketpair()
        forked: asyncio.Future[tuple[int, asyncio.Future[int]]] = asyncio.get_running_loop().create_future()
        try:
            with theirs:
                socket.send_fds(self._control, [encode_packet(Fork(log=self._log))], [theirs.fileno()])
            self._asked.append(forked)
            pid, ended = await asyncio.wait_for(forked, ANSWER_TIMEOUT_S)
        except BaseException as error:
            ours.close()  # an engine that is forked all the same finds nobody there, and ends
            if isinstance(error, TimeoutError):
                await self.end()
            if isinstance(error, OSError):
                raise LaunchError(f"the zygote does not answer: {str(error) or f'{ANSWER_TIMEOUT_S:.0f} s'}") from error
            raise
        return EngineProcess(pid, ours, ended)

    def retire(self) -> None:
        """Have it end when the engines that it has forked have: they would die with it."""
        self._retired = True
        self._end_if_unused()

    async def end(self) -> None:
        """End it now, and with it its engines."""
        self._kill()
        await self._process.wait()
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._control, MAX_PACKET):
                self._take(decode(data))
        except OSError:
            return
        finally:
            self._control.close()
            self._lose()

    def _take(self, frame: Frame) -> None:
        match frame:
            case ZygoteReady(unusable=unusable):
                self.unusable = unusable
                if not self._ready.done():
                    self._ready.set_result(None)
            case Forked(pid=pid):
                ended = self._engines[pid] = asyncio.get_running_loop().create_future()
                asked = self._asked.popleft()
                if not asked.done():
                    asked.set_result((pid, ended))
            case Exited(pid=pid, status=status):
                self._engines.pop(pid).set_result(status)
                self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._retired and not self._engines and not self._asked:
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    def _lose(self) -> None:
        self._lost = f"the zygote has ended (see {self._log})"
        if not self._ready.done():
            self._ready.set_result(None)
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(LaunchError(self._lost))
        for ended in self._engines.values():
            ended.set_result(-signal.SIGKILL)
