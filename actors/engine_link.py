"""The connection to one engine process: submits requests, passes commands, and notices when the process dies.

A death is an exception on everything that was not finished, never a hang.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from actors.launcher import EngineProcess, Launcher
from actors.protocol import (
    Abort,
    Beat,
    Delta,
    Fatal,
    Finished,
    Frame,
    Generate,
    LoadEngine,
    Measure,
    Measured,
    Obeyed,
    Probed,
    Ready,
    Rejected,
    encode,
    read_frame,
)

END_TIMEOUT_S = 60.0

OnDelta = Callable[[Sequence[tuple[int, str]]], None]
"""Called with (sample, text) of what has been added."""


class EngineDiedError(RuntimeError):
    """The engine process ended, hung or failed while it had work."""


class StuckError(RuntimeError):
    """An engine process was killed and does not end."""


class EngineLink:
    """A started engine. `sequences` counts the samples it works on, `tokens` what it has generated since its start.

    `on_death` is called with the cause when it ends without having been told to.
    """

    def __init__(
        self, process: EngineProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ready: Ready,
        on_death: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.process, self._writer, self.ready, self._on_death = process, writer, ready, on_death
        self.tokens = self.sequences = 0
        self._cause = ""
        self._silence = ""
        self._watch: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[Finished | Rejected]] = {}
        self._listeners: dict[str, OnDelta] = {}
        self._reply: asyncio.Future[Frame] | None = None
        self._measures: deque[asyncio.Future[Measured]] = deque()
        self._tags = itertools.count()
        self._heard = time.monotonic()
        self._fewer = asyncio.Event()
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def start(cls, launcher: Launcher, frame: LoadEngine, on_death: Callable[[str], None]) -> EngineLink:
        """A new process with the engine described; EngineDiedError or LaunchError where it does not come up.

        Cancelling it leaves no process behind.
        """
        process = await launcher.launch()
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(sock=process.sock)
            try:
                writer.write(encode(frame))
                answer = await read_frame(reader)
            except (asyncio.IncompleteReadError, OSError, RuntimeError):  # the last is uvloop's, of a closed connection
                raise EngineDiedError(await _cause(process)) from None
            if not isinstance(answer, Ready):
                raise EngineDiedError(answer.message if isinstance(answer, Fatal) else f"unexpected {answer!r}")
        except BaseException:
            process.kill()
            (writer or process.sock).close()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.ended), END_TIMEOUT_S)
            raise
        return cls(process, reader, writer, answer, on_death)

    @property
    def alive(self) -> bool:
        """Whether it has not died."""
        return not self._reading.done()

    @property
    def busy(self) -> bool:
        """Whether something is being generated."""
        return bool(self._waiting)

    async def generate(
        self, frame: Generate, stall_timeout_s: float, on_delta: OnDelta | None = None
    ) -> Finished | Rejected:
        """Submit a request, whose tag is set here; cancelling aborts it, EngineDiedError where the engine ends first.

        An engine that gives no sign of life for `stall_timeout_s` is killed. `on_delta` is called with what a streamed
        request's samples grow by.
        """
        tag = str(next(self._tags))
        answer: asyncio.Future[Finished | Rejected] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._heard = time.monotonic()
            self._watch = asyncio.create_task(self._kill_when_silent(stall_timeout_s))
        self._waiting[tag] = answer
        if on_delta is not None:
            self._listeners[tag] = on_delta
        self.sequences += frame.n
        try:
            self._send(msgspec.structs.replace(frame, tag=tag))
            return await answer
        except asyncio.CancelledError:
            if self.alive:
                self._send(Abort(tags=[tag]))
            raise
        finally:
            del self._waiting[tag]
            self._listeners.pop(tag, None)
            self.sequences -= frame.n
            self._fewer.set()
            if not self._waiting and self._watch is not None:
                self._watch.cancel()

    async def command(self, frame: Frame, timeout_s: float) -> Frame:
        """Have an idle engine do something else than generate; EngineDiedError where it fails, which ends it."""
        self._reply = asyncio.get_running_loop().create_future()
        try:
            self._send(frame)
            return await asyncio.wait_for(self._reply, timeout_s)
        except TimeoutError:
            raise EngineDiedError(f"{type(frame).__name__} took more than {timeout_s:.0f} s") from None
        finally:
            self._reply = None

    async def measure(self, timeout_s: float) -> Measured:
        """What the engine says that it works on, and what vLLM has counted; TimeoutError, EngineDiedError."""
        answer: asyncio.Future[Measured] = asyncio.get_running_loop().create_future()
        self._send(Measure())
        self._measures.append(answer)
        return await asyncio.wait_for(answer, timeout_s)

    async def below(self, sequences: int) -> None:
        """Return as soon as the engine works on fewer samples than this; EngineDiedError if it ends before."""
        while self.sequences >= sequences:
            if not self.alive:
                raise EngineDiedError(self._cause)
            self._fewer.clear()
            await self._fewer.wait()

    async def end(self) -> None:
        """Kill it and wait until it is gone; StuckError if it does not go. What was not finished raises."""
        self.process.kill()
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        self._writer.close()
        try:
            await asyncio.wait_for(asyncio.shield(self.process.ended), END_TIMEOUT_S)
        except TimeoutError:
            raise StuckError(
                f"engine process {self.process.pid} was killed and does not end: is its device stuck?"
            ) from None

    def _send(self, frame: Frame) -> None:
        if not self.alive:
            raise EngineDiedError(self._cause or "the engine was unloaded")
        with suppress(RuntimeError, OSError):  # uvloop's word for a connection that has just closed: the reader tells
            self._writer.write(encode(frame))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        cause = "the engine failed"
        try:
            while True:
                received = await read_frame(reader)
                self._heard = time.monotonic()
                if isinstance(received, Fatal):
                    cause = received.message
                    return
                self._take(received)
        except (asyncio.IncompleteReadError, OSError):
            cause = self._silence or await _cause(self.process)
        except asyncio.CancelledError:
            cause = ""
            raise
        finally:
            self._cause = cause or "the engine was unloaded"
            if cause:
                self._on_death(cause)
            self._fewer.set()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(EngineDiedError(self._cause))
            for asked in (*self._measures, self._reply):
                if asked is not None and not asked.done():
                    asked.set_exception(EngineDiedError(self._cause))

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Beat):
            self.tokens = frame.tokens
        elif isinstance(frame, Delta):
            if frame.tag in self._listeners:
                self._listeners[frame.tag](frame.texts)
        elif isinstance(frame, Finished | Rejected):
            answer = self._waiting.get(frame.tag)
            if answer is not None and not answer.done():
                answer.set_result(frame)
        elif isinstance(frame, Measured):
            asked = self._measures.popleft()
            if not asked.done():
                asked.set_result(frame)
        elif isinstance(frame, Obeyed | Probed) and self._reply is not None and not self._reply.done():
            self._reply.set_result(frame)

    async def _kill_when_silent(self, timeout_s: float) -> None:
        while (quiet_s := time.monotonic() - self._heard) < timeout_s:
            await asyncio.sleep(timeout_s - quiet_s)
        self._silence = f"no sign of life for {timeout_s:.0f} s"
        self.process.kill()


async def _cause(process: EngineProcess) -> str:
    """How a process without a connection ended; one that stays behind is killed."""
    try:
        status = await asyncio.wait_for(asyncio.shield(process.ended), END_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        return "it closed its connection and did not end"
    return f"the engine process was killed by signal {-status}" if status < 0 else f"it exited with status {status}"
