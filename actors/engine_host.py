"""A slot's engine: loads experts through the swap tiers, submits requests, and notices when the process dies.

One engine at a time, one owner (the slot). A death is an exception on every submission that was not finished, never a
hang.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from actors.launcher import EngineProcess, Launcher, LaunchError
from actors.protocol import (
    Abort,
    Beat,
    Fatal,
    Finished,
    Generate,
    LoadEngine,
    Ready,
    Rejected,
    encode,
    read_frame,
)
from symoe_ray.core import Completion, Failure, Request

END_TIMEOUT_S = 60.0


class EngineDiedError(RuntimeError):
    """The engine process ended, hung or failed while it had work."""


class LoadError(RuntimeError):
    """No tier could start the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """How an expert came to the slot. `note` says which tiers failed before."""

    tier: str
    seconds: float
    pid: int
    max_num_seqs: int
    max_model_len: int
    note: str = ""


class EngineHost:
    """Holds the live engine of a slot, or none."""

    def __init__(self, tiers: Sequence[Launcher], *, load_timeout_s: float, stall_timeout_s: float) -> None:
        self._tiers, self._load_timeout_s, self._stall_timeout_s = tiers, load_timeout_s, stall_timeout_s
        self._process: EngineProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[Finished | Rejected]] = {}
        self._tags = itertools.count()
        self._taught: set[str] = set()
        self._heard = 0.0
        self._closed = False
        self.tokens = 0
        self.deaths: list[str] = []
        self.report: LoadReport | None = None

    @property
    def alive(self) -> bool:
        """Whether an engine is loaded and has not died."""
        return self._reading is not None and not self._reading.done()

    async def load(self, frame: LoadEngine) -> LoadReport:
        """Replace the engine by the one described; LoadError where no tier can start it, or the host is closed."""
        if self._closed:
            raise LoadError("the slot is ending")
        await self.unload()
        started, notes = time.monotonic(), []
        for launcher in self._tiers:
            try:
                ready = await asyncio.wait_for(self._start(launcher, frame), self._load_timeout_s)
            except (LaunchError, EngineDiedError, TimeoutError, OSError) as error:
                await self.unload()
                reason = str(error) or f"not ready after {self._load_timeout_s:.0f} s"
                notes.append(f"{launcher.tier}: {reason}")
                continue
            self.report = LoadReport(
                tier=launcher.tier, seconds=time.monotonic() - started, pid=ready.pid,
                max_num_seqs=ready.max_num_seqs, max_model_len=ready.max_model_len, note="; ".join(notes),
            )  # fmt: skip
            new = set(ready.modules) - self._taught
            self._taught |= new
            await launcher.learn(sorted(new))
            return self.report
        raise LoadError("; ".join(notes))

    async def unload(self) -> None:
        """End the engine, if there is one; its unfinished submissions raise `EngineDiedError`."""
        process, self._process, self.report = self._process, None, None
        if process is not None:
            process.kill()
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
            self._reading = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if process is not None:
            try:
                await asyncio.wait_for(asyncio.shield(process.ended), END_TIMEOUT_S)
            except TimeoutError:
                raise LoadError(
                    f"engine process {process.pid} was killed and does not end: is its device stuck?"
                ) from None

    async def generate(self, request: Request) -> list[Completion]:
        """The samples of a request, in order. A request that the engine refuses has a failure; cancelling aborts it."""
        if not self.alive or self._writer is None:
            raise EngineDiedError("no engine is loaded")
        tag = str(next(self._tags))
        answer: asyncio.Future[Finished | Rejected] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._heard = time.monotonic()
        self._waiting[tag] = answer
        self._writer.write(encode(_frame_of(tag, request)))
        try:
            return _completions(request, await answer)
        except asyncio.CancelledError:
            if self._writer is not None:
                self._writer.write(encode(Abort(tags=[tag])))
            raise
        finally:
            self._waiting.pop(tag, None)

    async def close(self) -> None:
        """End the engine and everything that starts engines, for good."""
        self._closed = True
        await self.unload()
        for launcher in self._tiers:
            await launcher.close()

    async def _start(self, launcher: Launcher, frame: LoadEngine) -> Ready:
        self._process = await launcher.launch()
        reader, self._writer = await asyncio.open_connection(sock=self._process.sock)
        self._writer.write(encode(frame))
        try:
            answer = await read_frame(reader)
        except (asyncio.IncompleteReadError, OSError):
            raise EngineDiedError(await self._cause(self._process)) from None
        if not isinstance(answer, Ready):
            raise EngineDiedError(answer.message if isinstance(answer, Fatal) else f"unexpected {answer!r}")
        self.tokens = 0
        self._reading = asyncio.create_task(self._read(reader, self._process))
        return answer

    async def _read(self, reader: asyncio.StreamReader, process: EngineProcess) -> None:
        cause = "the engine failed"
        frame = asyncio.create_task(read_frame(reader))
        try:
            while True:
                done, _ = await asyncio.wait({frame}, timeout=self._stall_timeout_s)
                if not done:
                    if self._waiting and time.monotonic() - self._heard > self._stall_timeout_s:
                        cause = f"no sign of life for {self._stall_timeout_s:.0f} s"
                        process.kill()
                        return
                    continue
                self._heard = time.monotonic()
                received = frame.result()
                if isinstance(received, Fatal):
                    cause = received.message
                    return
                self._take(received)
                frame = asyncio.create_task(read_frame(reader))
        except (asyncio.IncompleteReadError, OSError):
            cause = await self._cause(process)
        except asyncio.CancelledError:
            cause = ""
            raise
        finally:
            frame.cancel()
            if cause:
                self.deaths.append(cause)
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(EngineDiedError(cause or "the engine was unloaded"))

    def _take(self, frame: object) -> None:
        if isinstance(frame, Beat):
            self.tokens = frame.tokens
        elif isinstance(frame, Finished | Rejected):
            answer = self._waiting.get(frame.tag)
            if answer is not None and not answer.done():
                answer.set_result(frame)

    @staticmethod
    async def _cause(process: EngineProcess) -> str:
        """How a process without a connection ended; one that stays behind is killed."""
        try:
            status = await asyncio.wait_for(asyncio.shield(process.ended), END_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            return "it closed its connection and did not end"
        return f"the engine process was killed by signal {-status}" if status < 0 else f"it exited with status {status}"


def _frame_of(tag: str, request: Request) -> Generate:
    s = request.sampling
    return Generate(
        tag=tag, messages=[{"role": m.role, "content": m.content} for m in request.messages],
        n=request.n, first_sample=request.first_sample, seed=request.seed,
        temperature=s.temperature, top_p=s.top_p, top_k=s.top_k, max_tokens=s.max_tokens,
        repetition_penalty=s.repetition_penalty, stop=s.stop,
    )  # fmt: skip


def _completions(request: Request, answer: Finished | Rejected) -> list[Completion]:
    if isinstance(answer, Rejected):
        failure = Failure(boundary="engine", kind=answer.kind, message=answer.message)
        indices = range(request.first_sample, request.first_sample + request.n)
        return [Completion(request_id=request.id, index=i, failure=failure) for i in indices]
    return [
        Completion(
            request_id=request.id, index=s.index, text=s.text, finish_reason=s.finish_reason,
            prompt_tokens=answer.prompt_tokens, completion_tokens=s.tokens,
        )
        for s in sorted(answer.samples, key=lambda s: s.index)
    ]  # fmt: skip
