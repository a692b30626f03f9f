"""A slot's engines: one that works, one that may start beside it, some that may sleep. Loads go through the swap tiers.

The tiers, fastest first: reload (weights of the same shape into the live engine), wake, fork, spawn. One that fails
falls to the next and is named in the report. One owner: the slot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from actors.canary import Canary, CanaryBook, agrees
from actors.engine_link import EngineDiedError, EngineLink, OnDelta, StuckError
from actors.launcher import Launcher, LaunchError
from actors.memory import Need, shortage, until_free, wake_need
from actors.protocol import Finished, Generate, LoadEngine, Measured, Probe, Probed, Rejected, Reload, Sleep, Wake
from symoe_ray.core import Completion, Failure, Request

__all__ = ["EngineDiedError", "EngineHost", "EnginePlan", "HostSettings", "LoadError", "LoadReport"]


class LoadError(RuntimeError):
    """No tier could start the engine."""


class _TierError(RuntimeError):
    """A tier does not lead to the engine that is wanted, or not surely."""


class _NoRoomError(_TierError):
    """There is no memory for the engine, however it is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """An engine that is wanted. `key` is its engine key.

    Engines of equal `shape` can take each other's weights ("": none can). `canary` is the key under which the answer
    of a freshly loaded engine is kept ("": it is not needed). `need` is the memory it takes (None: not known).
    """

    key: str
    frame: LoadEngine
    shape: str = ""
    canary: str = ""
    need: Need | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """How an expert came to the slot. `seconds` is how long the slot waited for it, `start_s` how long it took:
    less was waited where it was started `beside` the engine before. `kv_tokens` as in `Ready`. `note` says which tiers
    failed.
    """

    tier: str
    seconds: float
    start_s: float
    pid: int
    max_num_seqs: int
    max_model_len: int
    kv_tokens: int = 0
    beside: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """Time-outs, which tiers may be taken, and how free memory is read."""

    load_timeout_s: float
    stall_timeout_s: float
    memory_timeout_s: float = 120.0
    reload: bool = True
    max_sleeping: int = 0
    free_memory: Callable[[], Need] | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """An engine and what it is now."""

    plan: EnginePlan
    link: EngineLink
    report: LoadReport


_Tier = Callable[[EnginePlan], Awaitable[_Held]]


class EngineHost:
    """Holds the live engine of a slot, or none, and what waits beside it."""

    def __init__(
        self, launchers: Sequence[Launcher], settings: HostSettings, canaries: CanaryBook | None = None
    ) -> None:
        self._launchers, self._settings, self._canaries = launchers, settings, canaries
        self._live: _Held | None = None
        self._asleep: dict[str, _Held] = {}
        self._beside: tuple[EnginePlan, asyncio.Task[_Held]] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._stuck = ""
        self._taught: set[str] = set()
        self._expected: list[dict[str, object]] = []
        self._closed = asyncio.Event()
        self._getting_ready: asyncio.Task[None] | None = None
        self.deaths: list[str] = []

    @property
    def alive(self) -> bool:
        """Whether an engine is loaded and has not died."""
        return self._live is not None and self._live.link.alive

    @property
    def key(self) -> str:
        """The engine key of the engine that works, "" for none."""
        return self._live.plan.key if self._live is not None and self._live.link.alive else ""

    @property
    def report(self) -> LoadReport | None:
        """How the engine that works was loaded."""
        return self._live.report if self._live is not None else None

    @property
    def tokens(self) -> int:
        """What the engine that works has generated since its process started."""
        return self._live.link.tokens if self._live is not None else 0

    @property
    def asleep(self) -> list[str]:
        """The keys of sleeping engines."""
        return [key for key, held in self._asleep.items() if held.link.alive]

    def get_ready(self) -> None:
        """Have the first launcher get what it needs, in the background."""
        self._getting_ready = asyncio.create_task(_start(self._launchers[0]))

    def expect(self, plans: Sequence[EnginePlan]) -> None:
        """Have launchers get ready for these engines, after the next load, while that engine works."""
        self._expected = [plan.frame.args for plan in plans]

    async def load(self, plan: EnginePlan) -> LoadReport:
        """Replace the engine by the one planned; LoadError where no tier leads to it, or the host is closed."""
        if self._closed.is_set():
            raise LoadError("the slot is ending")
        started, notes = time.monotonic(), []
        for tier, bring in self._tiers(plan):
            try:
                held = await asyncio.wait_for(bring(plan), self._settings.load_timeout_s)
            except (LaunchError, EngineDiedError, _TierError, TimeoutError, OSError) as error:
                notes.append(f"{tier}: {str(error) or f'not ready after {self._settings.load_timeout_s:.0f} s'}")
                if isinstance(error, _NoRoomError):
                    break
                continue
            self._drop_beside()
            if self._closed.is_set():
                self._end(held.link)
                raise LoadError("the slot is ending")
            report = replace(held.report, tier=tier, seconds=time.monotonic() - started, note="; ".join(notes))
            self._live = replace(held, report=report)
            await self._teach(held.link)
            return report
        raise LoadError("; ".join([*notes, self._stuck]).strip("; "))

    async def prepare(self, plan: EnginePlan, below: int) -> str:
        """Start an engine beside the live one, once that works on fewer than `below` samples; why it was not, or "".

        Only where both fit into the memory that is free then. `load` takes it over.
        """
        self._drop_beside()
        if self._same_shape(plan) or plan.key in self._asleep:
            return "it is loaded faster once the engine before has drained"
        live = self._live
        if live is not None and below:
            with suppress(EngineDiedError):
                await live.link.below(below)
        if plan.need is None or self._settings.free_memory is None:
            return "it is not known how much memory it needs"
        if plan.need.gpu_bytes:
            await self._all_ended()  # as before any start on a GPU
        if self._closed.is_set() or self._live is not live:
            return "the slot has something else to do by now"
        if lacks := shortage(plan.need, self._settings.free_memory()):
            return lacks
        self._drop_beside()
        self._beside = plan, asyncio.create_task(self._start(self._launchers[0], plan, beside=True))
        return ""

    async def unload(self) -> None:
        """End the live engine, if there is one; its unfinished submissions raise `EngineDiedError`."""
        live, self._live = self._live, None
        if live is not None:
            try:
                await live.link.end()
            except StuckError as error:
                raise LoadError(str(error)) from None

    async def generate(
        self, request: Request, lora: str = "", *, json_schema: str = "", on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """The samples of a request, in order. A request that the engine refuses has a failure; cancelling aborts it.

        With `on_delta` the request is streamed: it is called with what the samples grow by.
        """
        if self._live is None or not self._live.link.alive:
            raise EngineDiedError("no engine is loaded")
        frame = _frame_of(request, lora, stream=on_delta is not None, json_schema=json_schema)
        answer = await self._live.link.generate(frame, self._settings.stall_timeout_s, on_delta)
        return _completions(request, answer)

    async def measure(self, timeout_s: float) -> Measured | None:
        """What the live engine says of itself; None where there is none, or it does not say so in time."""
        if self._live is None:
            return None
        try:
            return await self._live.link.measure(timeout_s)
        except (EngineDiedError, TimeoutError):
            return None

    async def close(self) -> None:
        """End the engines and everything that starts engines, for good."""
        self._closed.set()
        if self._getting_ready is not None:
            self._getting_ready.cancel()
        self._drop_beside()
        for held in [*self._asleep.values(), *([self._live] if self._live else [])]:
            self._end(held.link)
        self._asleep, self._live = {}, None
        await self._all_ended()
        for launcher in self._launchers:
            await launcher.close()

    def _tiers(self, plan: EnginePlan) -> Iterator[tuple[str, _Tier]]:
        """The ways to an engine, in the order in which they are tried. Each is judged when its turn comes."""
        if self._beside is not None and self._beside[0].key == plan.key:
            yield self._launchers[0].tier, self._take_beside
        if self._reloads(plan):
            yield "reload", self._reload
        if plan.key in self._asleep:
            yield "wake", self._wake
        for launcher in self._launchers:
            yield launcher.tier, partial(self._launch, launcher)

    def _reloads(self, plan: EnginePlan) -> bool:
        """Whether the live engine can take the weights now."""
        return self._live is not None and not self._live.link.busy and self._same_shape(plan)

    def _same_shape(self, plan: EnginePlan) -> bool:
        """Whether the live engine, once it is idle, can take the weights, and it is known how it must answer then."""
        live = self._live
        return bool(
            self._settings.reload and plan.shape and live is not None and live.link.alive
            and live.plan.shape == plan.shape and self._canary(plan) is not None
        )  # fmt: skip

    async def _take_beside(self, plan: EnginePlan) -> _Held:
        assert self._beside is not None
        held = await asyncio.shield(self._beside[1])
        if not held.link.alive:
            raise _TierError("the engine that was started beside the one before has died")
        await self._retire_live()
        self._beside = None
        return held

    async def _reload(self, plan: EnginePlan) -> _Held:
        assert self._live is not None
        (live, self._live), started = (self._live, None), time.monotonic()
        try:
            await live.link.command(Reload(model=str(plan.frame.args["model"])), self._settings.load_timeout_s)
            await self._check(live.link, plan, self._canary(live.plan))
        except BaseException:  # its weights are neither the old nor the new ones
            self._end(live.link)
            raise
        return _Held(plan, live.link, replace(live.report, beside=False, start_s=time.monotonic() - started))

    async def _wake(self, plan: EnginePlan) -> _Held:
        held = self._asleep.pop(plan.key)
        try:
            await self._retire_live()
            try:
                await self._make_room(wake_need(plan.need) if plan.need else None)
            except _NoRoomError as error:
                raise _TierError(str(error)) from None  # there may be room once this one has ended as well
            started = time.monotonic()
            await held.link.command(Wake(), self._settings.stall_timeout_s)
            await self._check(held.link, plan, None)
        except BaseException:
            self._end(held.link)
            raise
        return replace(held, report=replace(held.report, beside=False, start_s=time.monotonic() - started))

    async def _launch(self, launcher: Launcher, plan: EnginePlan) -> _Held:
        self._drop_beside()
        await self._retire_live()
        await self._make_room(plan.need)
        return await self._start(launcher, plan)

    async def _start(self, launcher: Launcher, plan: EnginePlan, *, beside: bool = False) -> _Held:
        started = time.monotonic()
        link = await EngineLink.start(launcher, plan.frame, self.deaths.append)
        try:
            if plan.canary and self._canaries is not None:
                self._canaries.put(plan.canary, await self._probe(link))
        except BaseException:
            self._end(link)
            raise
        ready = link.ready
        report = LoadReport(
            tier=launcher.tier, seconds=0.0, start_s=time.monotonic() - started, pid=ready.pid, beside=beside,
            max_num_seqs=ready.max_num_seqs, max_model_len=ready.max_model_len, kv_tokens=ready.kv_tokens,
        )  # fmt: skip
        return _Held(plan, link, report)

    async def _make_room(self, need: Need | None) -> None:
        """Return once there is so much memory; sleeping ones are ended for it, those first that slept longest.

        On a GPU nothing may end beside a start: vLLM measures what its own process takes by what is free, and gives up
        where that grows meanwhile (https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu_worker.py).
        """
        free = self._settings.free_memory
        if need is None or free is None or need.gpu_bytes:
            await self._all_ended()
        if need is not None and free is not None and shortage(need, free()):
            while self._asleep and shortage(need, free()):
                self._end(self._asleep.pop(next(iter(self._asleep))).link)
                await self._all_ended()
            if not await until_free(need, timeout_s=self._settings.memory_timeout_s, read=free):
                raise _NoRoomError(shortage(need, free()))

    async def _retire_live(self) -> None:
        """Put the live engine to sleep where that is allowed, else end it (which goes on in the background)."""
        live, self._live = self._live, None
        if live is not None and not await self._sleeps(live):
            self._end(live.link)

    async def _sleeps(self, held: _Held) -> bool:
        """Put an engine to sleep; whether it does. One whose answer after the wake could not be judged need not."""
        if not self._settings.max_sleeping or held.link.busy or self._canary(held.plan) is None:
            return False
        try:
            await held.link.command(Sleep(), self._settings.stall_timeout_s)
        except EngineDiedError:
            return False
        except BaseException:
            self._end(held.link)
            raise
        older = [self._asleep.pop(held.plan.key)] if held.plan.key in self._asleep else []
        self._asleep[held.plan.key] = held
        while len(self._asleep) > self._settings.max_sleeping:
            older.append(self._asleep.pop(next(iter(self._asleep))))
        for each in older:
            self._end(each.link)
        return True

    def _drop_beside(self) -> None:
        """End what was started beside the live engine, or is being started; it goes on in the background."""
        beside, self._beside = self._beside, None
        if beside is not None:
            beside[1].cancel()
            self._finish(self._dropped(beside[1]))

    async def _dropped(self, starting: asyncio.Task[_Held]) -> None:
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await self._ended(starting.result().link)

    def _end(self, link: EngineLink) -> None:
        self._finish(self._ended(link))

    def _finish(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _all_ended(self) -> None:
        while self._ending:
            await asyncio.wait(self._ending)

    async def _ended(self, link: EngineLink) -> None:
        try:
            await link.end()
        except StuckError as error:
            self._stuck = str(error)

    async def _check(self, link: EngineLink, plan: EnginePlan, other: Canary | None) -> None:
        """Ask the canary; _TierError where the engine does not answer as a freshly loaded one."""
        expected = self._canary(plan)
        if expected is None:
            raise _TierError("it is not known how a fresh engine answers the canary")
        if not agrees(expected, await self._probe(link), other):
            raise _TierError("the canary differs from that of a fresh engine")

    async def _probe(self, link: EngineLink) -> Canary:
        answer = await link.command(Probe(), self._settings.stall_timeout_s)
        assert isinstance(answer, Probed)
        return Canary(answer.tokens, answer.logprobs)

    def _canary(self, plan: EnginePlan) -> Canary | None:
        return self._canaries.get(plan.canary) if self._canaries is not None and plan.canary else None

    async def _teach(self, link: EngineLink) -> None:
        """Let the launchers know what the engine had to import, and which engines are to come."""
        new = set(link.ready.modules) - self._taught
        self._taught |= new
        expected, self._expected = self._expected, []
        for launcher in self._launchers:
            await launcher.learn(sorted(new), expected)


async def _start(launcher: Launcher) -> None:
    with suppress(OSError):  # `launch` will say it
        await launcher.start()


def _frame_of(request: Request, lora: str, *, stream: bool = False, json_schema: str = "") -> Generate:
    s = request.sampling
    return Generate(
        tag="", messages=[{"role": m.role, "content": m.content} for m in request.messages],
        n=request.n, first_sample=request.first_sample, seed=request.seed,
        temperature=s.temperature, top_p=s.top_p, top_k=s.top_k, max_tokens=s.max_tokens,
        repetition_penalty=s.repetition_penalty, min_p=s.min_p, presence_penalty=s.presence_penalty,
        frequency_penalty=s.frequency_penalty, stop=s.stop, lora=lora, stream=stream, json_schema=json_schema,
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
