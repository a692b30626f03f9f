"""The slot actor: one per GPU group or CPU slot. It owns an engine, runs chunks, writes parts, survives crashes."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.canary import CanaryBook, default_folder
from actors.engine_host import EngineDiedError, EngineHost, EnginePlan, HostSettings, LoadError, LoadReport
from actors.engine_link import OnDelta
from actors.engine_plans import EngineFacts, EnginePlans
from actors.gate import Gate
from actors.launcher import ForkLauncher, Launcher, SpawnLauncher
from actors.memory import free_memory
from actors.models import weight_bytes
from actors.platform import cores_of, engine_environment, visible_gpus
from actors.read_ahead import read_ahead
from symoe_ray.core import Completion, ExpertSpec, Failure, Request, ResourceError
from symoe_ray.engine_room import Room
from symoe_ray.fingerprints import digest
from symoe_ray.ledger import Chunk, Part, work_of
from symoe_ray.retrying import delay_s
from symoe_ray.serving.asking import Ask, Grown, Growth, Reply
from symoe_ray.serving.engine_metrics import Counts, Family
from symoe_ray.settings import EngineSettings
from symoe_ray.storage import Storage
from symoe_ray.tables import RESPONSES, request_of, response_row, table_of

FLUSH_S = 15.0
TELL_S = 0.5
MEASURE_TIMEOUT_S = 2.0
PIECE_S = 0.03  # a piece of a stream takes milliseconds of other processes' time, a token of a small model one
ENGINE_DIED = "engine_died"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotConfig:
    """What a slot is made of. `index` counts the slots; `slots` is how many share the machine's cores.

    `metrics`: vLLM's own are wanted, which costs a little of every step.
    """

    id: str
    index: int
    slots: int
    run_uri: str
    epoch: int
    token: str = ""
    experts: tuple[ExpertSpec, ...]
    engine: EngineSettings
    metrics: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotInfo:
    """Where a slot is."""

    id: str
    node: str
    pid: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An expert is on the slot: `seconds` from the request to a live engine, the old one's end included.

    `start_s` is how long the engine itself took, which is more where it was started `beside` the one before; why it was
    not, though it was to be, is in `not_beside`. `room` is what it works on at once, `asleep` the keys of the engines
    that sleep on the slot, `dtype` what vLLM was told to compute in.
    """

    tier: str
    seconds: float
    start_s: float
    bytes: int
    room: Room
    beside: bool
    note: str
    not_beside: str = ""
    asleep: tuple[str, ...] = ()
    dtype: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the live engine says of itself: samples that it works on; and what all engines of the slot have counted."""

    running: int
    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched:
    """A model's files are in the page cache: so many bytes, read in so many seconds."""

    bytes: int
    seconds: float


class RestartedError(RuntimeError):
    """Ray has restarted the slot actor since its pool last spoke to it: it is to be started again."""

    def __init__(self, message: str = "the slot actor has been restarted") -> None:
        super().__init__(message)


@dataclass(slots=True)
class _Item:
    row: dict[str, Any]
    samples: list[int]
    attempt: int = 0
    completions: list[Completion] = field(default_factory=list)


class Slot:
    """Runs on the cluster as a Ray actor; an event loop that never blocks, because engines are other processes."""

    def __init__(self, config: SlotConfig) -> None:
        self._config = config
        self._experts = {e.name: e for e in config.experts}
        self._storage = Storage(config.run_uri)
        cuda = config.engine.kind == "vllm" and visible_gpus() > 0
        cores = () if cuda else cores_of(config.index, config.slots)
        self._cuda = cuda
        self._plans = EnginePlans(config.experts, config.engine, cores=cores, cuda=cuda, metrics=config.metrics)
        self._counts = Counts(config.id)
        self._host: EngineHost | None = None
        self._key = ""
        self._loading = asyncio.Lock()
        self._next = ""
        self._preparing: asyncio.Task[str] | None = None
        self._gate = Gate()
        self._working: set[asyncio.Task[Any]] = set()
        self._parts = 0

    async def start(self) -> SlotInfo:
        """Be ready for work; where the slot is. Work that a lost lease has left behind is given up."""
        for task in self._working:
            task.cancel()
        node = self._node()
        if self._host is None:
            self._host = EngineHost(self._launchers(), self._host_settings(), CanaryBook(default_folder()))
            self._host.get_ready()
        return SlotInfo(
            id=self._config.id,
            node=node,
            pid=os.getpid(),
            gpus=len(ray.get_gpu_ids()),
        )

    async def resolve(self, experts: list[str]) -> dict[str, str]:
        """Have the weights of these experts on this node; what is wrong with those that cannot be had, by name.

        The slot gets ready for the engines of the others.
        """
        problems = await asyncio.to_thread(self._plans.problems, experts)
        plans = []
        for spec in (self._experts[name] for name in experts if name not in problems):
            try:
                plans.append(await self._plan(spec))
            except LoadError as error:
                problems[spec.name] = str(error)
        if self._host is not None and self._config.engine.kind == "vllm":
            self._host.expect(plans)
        return problems

    async def facts(self, experts: list[str]) -> dict[str, EngineFacts]:
        """What scheduling wants to know of these experts' engines."""
        return await asyncio.to_thread(lambda: {name: self._plans.facts(name) for name in experts})

    async def load(self, expert: str) -> Loaded:
        """Have this expert's engine; LoadError where it cannot be started."""
        spec = self._experts[expert]
        started = time.monotonic()
        there = self._host is not None and self._host.key == spec.engine_key
        hindered = self._hindered() if self._next == expert and not there else ""
        report = await self._ensure(spec, swap=True)
        assert self._host is not None
        size = 0 if self._config.engine.kind == "fake" else weight_bytes(self._plans.path(expert))
        plan = await self._plan(spec)
        return Loaded(
            tier="lora" if there and spec.lora else report.tier, seconds=time.monotonic() - started,
            start_s=report.start_s, bytes=size, room=Room(report.max_num_seqs, report.kv_tokens), beside=report.beside,
            note=report.note, not_beside="" if report.beside else hindered, asleep=tuple(self._host.asleep),
            dtype=str(plan.frame.args.get("dtype", "")),
        )  # fmt: skip

    async def prepare(self, expert: str) -> Prefetched:
        """The slot will have this expert's engine next: read its files, start it beside the one that drains.

        Not before the engine that is being loaded is there, and not where another was named meanwhile.
        """
        self._next = expert
        async with self._loading:
            started = time.monotonic()
        spec, size = self._experts[expert], 0
        if self._config.engine.kind != "fake" and self._config.engine.prefetch:
            size = await asyncio.to_thread(lambda: read_ahead(self._plans.path(expert)))
        if self._config.engine.overlap and self._host is not None and self._next == expert:
            self._cancel_preparing()
            self._preparing = asyncio.create_task(self._start_beside(spec))
        return Prefetched(bytes=size, seconds=time.monotonic() - started)

    async def generate(self, chunk: Chunk, lease: str) -> AsyncIterator[Part | int]:
        """Generate what a chunk lacks; parts come as they are written, every few seconds and at the end.

        Between them comes how many of the chunk's requests are finished, so that more can be leased in time.
        """
        items = [_Item(row, samples) for row, samples in await asyncio.to_thread(work_of, chunk, self._storage)]
        spec = self._experts[chunk.expert]
        tasks = {asyncio.create_task(self._complete(spec, item)): item for item in items}
        self._working |= tasks.keys()
        open_rows, finished, since = _count_rows(items), [], time.monotonic()
        told = since
        try:
            pending, error = set(tasks), None
            while pending and error is None:
                done, pending = await asyncio.wait(pending, timeout=FLUSH_S, return_when=asyncio.FIRST_COMPLETED)
                if not pending or time.monotonic() - told > TELL_S:  # before the part is written
                    told = time.monotonic()
                    yield len(tasks) - len(pending)
                for task in done:
                    error = EngineDiedError("the lease was lost") if task.cancelled() else task.exception() or error
                    if not task.cancelled() and task.exception() is None:
                        finished.append(tasks[task])
                if finished and (not pending or error is not None or time.monotonic() - since > FLUSH_S):
                    yield await self._write(chunk, lease, finished, open_rows, time.monotonic() - since)
                    finished, since = [], time.monotonic()
            if error is not None:
                raise error
        finally:
            for task in tasks:
                task.cancel()
            self._working -= tasks.keys()

    async def answer(self, ask: Ask) -> Reply:
        """Answer one request that is not streamed. Cancelling the call aborts it."""
        work = asyncio.create_task(self._reply(ask, Growth()))
        self._working.add(work)
        try:
            return await work
        finally:
            work.cancel()
            self._working.discard(work)

    async def ask(self, ask: Ask) -> AsyncIterator[Grown | Reply]:
        """Answer one request that is streamed: what its samples grow by, and the reply at the end.

        What grows in `PIECE_S`, or while the caller is busy, is told in one. A caller that goes away has the request
        aborted.
        """
        growth = Growth()
        work = asyncio.create_task(self._reply(ask, growth))
        work.add_done_callback(lambda _: growth.changed.set())
        self._working.add(work)
        try:
            while not work.done():
                await growth.changed.wait()
                if texts := growth.take():
                    yield Grown(texts)
                    await asyncio.wait([work], timeout=PIECE_S)
            yield work.result()
        finally:
            work.cancel()
            self._working.discard(work)

    async def fail(self, chunk: Chunk, lease: str, failure: Failure) -> Part:
        """Record every row that a chunk lacks as failed."""
        work = await asyncio.to_thread(work_of, chunk, self._storage)
        items = [
            _Item(row, samples, failure.attempt, _failed(str(row["request_id"]), samples, failure))
            for row, samples in work
        ]
        return await self._write(chunk, lease, items, _count_rows(items), 0.0)

    async def progress(self) -> tuple[int, list[str]]:
        """Tokens that the live engine has generated, and the causes of the engine deaths since the last call."""
        if self._host is None:
            raise RestartedError
        deaths = self._host.deaths.copy()
        self._host.deaths.clear()  # in place: the engines that live hold it
        return self._host.tokens, deaths

    async def measure(self) -> Told:
        """What the live engine says of itself."""
        running = await self._measured()
        return Told(running=running, families=tuple(self._counts.families()))

    async def _measured(self) -> int:
        """Note what vLLM has counted; the samples that it works on."""
        told = await self._host.measure(MEASURE_TIMEOUT_S) if self._host is not None else None
        if told is None or self._host is None or self._host.report is None:
            self._counts.idle()
            return 0
        experts = ",".join(e.name for e in self._config.experts if e.engine_key == self._key)
        self._counts.note(experts, self._host.report.pid, told.families)
        return told.running

    async def stop(self) -> None:
        """End everything that the slot has started."""
        self._cancel_preparing()
        if self._host is not None:
            await self._host.close()
            self._host, self._key = None, ""

    def _node(self) -> str:
        """The node that the slot is on; ResourceError where that does not see the run."""
        node: str = ray.get_runtime_context().get_node_id()
        if not self._storage.exists("manifest.json"):
            raise ResourceError(
                f"node {node} does not see the run at {self._storage.uri}: output_dir must be shared storage"
            )
        return node

    def _launchers(self) -> list[Launcher]:
        folder = log_folder(self._storage)
        folder.mkdir(parents=True, exist_ok=True)
        log = str(folder / f"{self._config.id}.log")
        if self._config.engine.kind == "fake":
            return [SpawnLauncher("actors.fake_engine", {}, log)]
        environment = engine_environment(offline=True)
        spawn = SpawnLauncher("actors.engine", environment, log)
        if visible_gpus() > 1 if self._cuda else any(e.tensor_parallel_size > 1 for e in self._config.experts):
            return [spawn]  # an engine over several has processes of its own
        return [ForkLauncher(environment, log), spawn]

    def _host_settings(self) -> HostSettings:
        engine = self._config.engine
        return HostSettings(
            load_timeout_s=engine.load_timeout_s, stall_timeout_s=engine.stall_timeout_s,
            memory_timeout_s=engine.memory_timeout_s, reload=engine.reload, max_sleeping=engine.max_sleeping,
            free_memory=partial(free_memory, cuda=self._cuda),
        )  # fmt: skip

    async def _ensure(self, spec: ExpertSpec, *, swap: bool = False) -> LoadReport:
        """Have the expert's engine. Only the pool's own load swaps another one out; work replaces a dead one."""
        async with self._loading:
            if self._host is None:
                raise RestartedError
            report = self._host.report
            if self._host.key == spec.engine_key and report is not None:
                return report
            if self._key not in ("", spec.engine_key) and not swap:
                raise LoadError(f"the slot has been given to another engine ({self._key})")
            self._cancel_preparing()
            if self._config.metrics:
                await self._measured()  # what the engine that goes has counted goes with it
            report = await self._host.load(await self._plan(spec))
            self._key = spec.engine_key
            return report

    async def _plan(self, spec: ExpertSpec) -> EnginePlan:
        try:
            return await asyncio.to_thread(self._plans.plan, spec.name)
        except (ResourceError, OSError, ValueError, TypeError, KeyError) as error:
            raise LoadError(f"{type(error).__name__}: {error}") from error

    async def _start_beside(self, spec: ExpertSpec) -> str:
        """Start the next engine as soon as the live one has seats to spare."""
        assert self._host is not None
        report = self._host.report
        return await self._host.prepare(await self._plan(spec), below=report.max_num_seqs if report else 0)

    def _hindered(self) -> str:
        """Why the engine that was to start beside the live one has not."""
        done = self._preparing
        return done.result() if done is not None and done.done() and not (done.cancelled() or done.exception()) else ""

    def _cancel_preparing(self) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None

    async def _complete(self, spec: ExpertSpec, item: _Item) -> None:
        """Fill in an item's completions. A request that was there at an engine's death runs again, the last time alone.

        LoadError where the engine cannot be started: that is for the pool to judge, not one more failure of the
        request.
        """
        request = request_of(item.row, spec.name, item.samples)
        last = self._config.engine.max_attempts
        while True:
            item.attempt += 1
            try:
                item.completions = await self._attempt(request, item.attempt)
                return
            except EngineDiedError as error:
                if item.attempt >= last:
                    failure = Failure(boundary="engine", kind=ENGINE_DIED, message=str(error), retryable=True)
                    item.completions = _failed(request.id, item.samples, failure)
                    return
                await asyncio.sleep(delay_s(ENGINE_DIED, item.attempt))

    async def _attempt(
        self, request: Request, attempt: int, json_schema: str = "", on_delta: OnDelta | None = None
    ) -> list[Completion]:
        spec, last = self._experts[request.expert], self._config.engine.max_attempts
        async with self._gate.enter(alone=attempt >= last and last > 1):
            await self._ensure(spec)
            assert self._host is not None
            lora = spec.name if spec.lora else ""
            return await self._host.generate(request, lora, json_schema=json_schema, on_delta=on_delta)

    async def _reply(self, ask: Ask, growth: Growth) -> Reply:
        """A reply, be it a failure. What was there at an engine's death runs again unless some of it has been told."""
        started, request = time.monotonic(), ask.request
        on_delta = growth.add if ask.stream else None
        attempt, last = 0, self._config.engine.max_attempts
        while True:
            attempt += 1
            try:
                completions = await self._attempt(request, attempt, ask.json_schema, on_delta)
                break
            except EngineDiedError as error:
                if attempt < last and not growth.begun:
                    continue
                failure = Failure(boundary="engine", kind=ENGINE_DIED, message=str(error), retryable=True)
            except LoadError as error:
                failure = Failure(boundary="engine", kind="load_failed", message=str(error)[:500], retryable=True)
            completions = _failed(request.id, list(range(request.n)), failure)
            break
        return Reply(completions=tuple(completions), seconds=time.monotonic() - started)

    def _prompt_tokens(self, completions: Sequence[Completion]) -> int:
        """What a request's prompt has cost: its samples share it."""
        return completions[0].prompt_tokens

    async def _write(
        self, chunk: Chunk, lease: str, items: list[_Item], open_rows: dict[int, int], seconds: float
    ) -> Part:
        self._parts += 1
        attempt = f"{self._config.epoch:04d}{self._config.token}"
        name = f"part-{chunk.id}-{attempt}-{lease}-{self._parts:06d}.parquet"
        path = f"responses/{chunk.stage}/expert={chunk.expert}/{name}"
        rows = [response_row(i.row, c, i.attempt) for i in items for c in i.completions]
        size = await asyncio.to_thread(self._storage.write_table, path, table_of(rows, RESPONSES))
        for item in items:
            open_rows[item.row["row"]] -= 1
        return Part(
            path=path,
            stage=chunk.stage,
            expert=chunk.expert,
            chunk=chunk.id,
            slot=self._config.id,
            shards=tuple(sorted({r["shard"] for r in rows})),
            requests=len(items),
            samples=len(rows),
            failed=sum(r["failure"] is not None for r in rows),
            prompt_tokens=sum(self._prompt_tokens(i.completions) for i in items),
            completion_tokens=sum(r["completion_tokens"] for r in rows),
            seconds=seconds,
            done=tuple(sorted({i.row["row"] for i in items if not open_rows[i.row["row"]]})),
            bytes=size,
            copies=sum(r["failure"] is None and not r["completion_tokens"] for r in rows),
        )


def log_folder(run: Storage) -> Path:
    """Where the engines' output goes: into the run, or where that is not on a disk, a folder for this user and run."""
    if run.is_local:
        return Path(run.path("logs"))
    return Path(tempfile.gettempdir(), f"symoe-ray-{os.getuid()}", digest(run.uri)[:16])


def _failed(request_id: str, samples: list[int], failure: Failure) -> list[Completion]:
    return [Completion(request_id=request_id, index=i, failure=failure) for i in samples]


def _count_rows(items: list[_Item]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for item in items:
        counts[item.row["row"]] = counts.get(item.row["row"], 0) + 1
    return counts


SlotActor = ray.remote(Slot)
