"""The engine pool: one async actor that owns slots, queues, leases, commits and events. One event loop, so no locks.

It decides nothing itself: `symoe_ray.scheduling.next_lease` does, from a view of the state; the pool carries it out.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.engine_host import EngineDiedError, LoadError
from actors.pool_state import EventLog, SlotState, StageState, stage_of
from actors.slot import Slot, SlotActor, SlotConfig, SlotInfo
from symoe_ray.core import ExpertSpec, Failure, ResourceError
from symoe_ray.ledger import Chunk, Commits, Part
from symoe_ray.ports import Progress, SlotStatus, StageSummary
from symoe_ray.scheduling import Costs, GroupView, Lease, SlotView, next_lease
from symoe_ray.settings import EngineSettings
from symoe_ray.storage import Storage

SLOT_START_TIMEOUT_S = 600.0
WATCH_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """What a pool is made of. `gpus_per_slot` 0 makes CPU slots. `epoch` is this attempt's number at the run."""

    run_uri: str
    epoch: int
    started: float
    experts: tuple[ExpertSpec, ...]
    engine: EngineSettings
    slots: int
    gpus_per_slot: int = 0


class _LeaseLost(Exception):  # noqa: N818  (no error: the chunk is granted again)
    """The slot no longer has, and is not about to load, the engine that a lease was given for."""


class EnginePool:
    """Runs on the cluster as a Ray actor and owns the slot actors: Ray ends them with it."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._experts = {e.name: e for e in config.experts}
        self._storage = Storage(config.run_uri)
        self._commits = Commits(self._storage, config.epoch)
        self._slots: dict[str, SlotState] = {}
        self._stage: StageState | None = None
        self._leases = 0
        self._load_s: dict[str, list[float]] = defaultdict(list)
        self._rates: dict[str, tuple[float, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = EventLog(self._storage, config.epoch, config.started)

    async def start(self) -> list[SlotInfo]:
        """Start the slots; returns where they are."""
        states = await asyncio.gather(*(self._start_slot(index) for index in range(self._config.slots)))
        self._slots = {s.info.id: s for s in states}
        self._spawn(self._watch())
        return [s.info for s in states]

    async def resolve(self, experts: list[str]) -> dict[str, str]:
        """Have the weights of these experts on every node that has a slot; problems by expert."""
        by_node = {s.info.node: s for s in self._slots.values()}
        found: list[dict[str, str]] = await asyncio.gather(*(s.actor.resolve.remote(experts) for s in by_node.values()))
        return {name: problem for problems in found for name, problem in problems.items()}

    async def generate(self, stage: str, chunks: Sequence[Chunk]) -> StageSummary:
        """Work through the chunks; returns when all their rows are committed, as completions or as failures."""
        if self._stage is not None:
            raise RuntimeError(f"the pool is busy with stage {self._stage.name}")
        self._stage = current = stage_of(stage, chunks, self._experts)
        for slot in self._slots.values():
            slot.had = {slot.key} if slot.key else set()
        try:
            self._dispatch()
            if current.open_chunks:
                await current.finished.wait()
        finally:
            self._stage = None
            self._events.flush()
        if current.error is not None:
            raise current.error
        return StageSummary(
            rows=current.rows, failed=current.failed, prompt_tokens=current.prompt_tokens,
            completion_tokens=current.completion_tokens, seconds=time.monotonic() - current.started,
        )  # fmt: skip

    async def progress(self) -> Progress | None:
        """How far the current stage is; None between stages."""
        stage = self._stage
        if stage is None:
            return None
        seconds = time.monotonic() - stage.started
        tokens = max(stage.completion_tokens, stage.live_tokens)
        left = seconds * (stage.total_rows - stage.rows) / stage.rows if stage.rows else None
        return Progress(
            stage=stage.name, rows=stage.rows, total_rows=stage.total_rows, failed=stage.failed, tokens=tokens,
            tokens_per_s=tokens / seconds if seconds else 0.0, seconds=seconds, seconds_left=left,
            slots=tuple(SlotStatus(slot=s.info.id, state=s.state, expert=s.expert) for s in self._slots.values()),
        )  # fmt: skip

    async def stop(self) -> None:
        """End all engines and slots."""
        self._stage = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(s.actor.stop.remote() for s in self._slots.values()), return_exceptions=True)
        for slot in self._slots.values():
            if slot.loaded_expert:
                self._emit("unload", slot, expert=slot.loaded_expert)
            ray.kill(slot.actor)
        self._events.flush()

    async def _start_slot(self, index: int) -> SlotState:
        config = SlotConfig(
            id=f"slot-{index}", index=index, slots=self._config.slots, run_uri=self._config.run_uri,
            epoch=self._config.epoch, experts=self._config.experts, engine=self._config.engine,
        )  # fmt: skip
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0, "max_concurrency": 1000}
        if self._config.gpus_per_slot:
            options["num_gpus"] = self._config.gpus_per_slot
        else:
            options["scheduling_strategy"] = "SPREAD"
        actor = SlotActor.options(**options).remote(config)
        try:
            info = await asyncio.wait_for(actor.start.remote(), SLOT_START_TIMEOUT_S)
        except TimeoutError:
            raise ResourceError(
                f"slot {index + 1} of {self._config.slots} did not start within {SLOT_START_TIMEOUT_S:.0f} s: "
                f"does the cluster have {self._config.gpus_per_slot * self._config.slots} free GPUs?"
            ) from None
        return SlotState(info=info, actor=actor)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _dispatch(self) -> None:
        stage = self._stage
        if stage is None or stage.error is not None:
            return
        while lease := next_lease(self._slot_views(stage), self._group_views(stage), self._costs()):
            self._grant(stage, lease)
        if stage.open_chunks and all(s.gone for s in self._slots.values()):
            self._abandon(stage, ResourceError("no slot is left: every slot actor has died and none came back"))
        for key in [k for k, chunks in stage.waiting.items() if chunks and self._hopeless(stage, k)]:
            if key not in stage.failing and any(s.available for s in self._slots.values()):
                stage.failing.add(key)
                self._spawn(self._fail_group(stage, key))

    def _grant(self, stage: StageState, lease: Lease) -> None:
        slot, chunk = self._slots[lease.slot], stage.waiting[lease.key].popleft()
        if slot.key != lease.key:
            slot.key, slot.loaded = lease.key, False
            slot.had.add(lease.key)
        slot.leases += 1
        self._leases += 1
        self._spawn(self._work(stage, slot, chunk, f"{self._leases:06d}"))

    async def _work(self, stage: StageState, slot: SlotState, chunk: Chunk, lease: str) -> None:
        """One chunk on one slot, from the load of its engine to the commit of its last part."""
        left: Chunk | None = chunk
        parts: list[Part] = []
        key = self._experts[chunk.expert].engine_key
        try:
            await self._have_engine(slot, chunk, key)
            started = time.monotonic()
            slot.state, slot.expert = "generate", chunk.expert
            stream = slot.actor.generate.options(num_returns="streaming").remote(chunk, lease)
            async for reference in stream:
                parts.append(await reference)
                left = self._commit(stage, left, parts[-1])
            self._emit_generate(slot, chunk, parts, time.monotonic() - started)
            left = None
        except _LeaseLost:
            pass
        except RayActorError as error:
            self._emit("crash", slot, expert=chunk.expert, message=f"slot actor: {error}".splitlines()[0])
            self._lose(slot)
        except Exception as error:  # whatever else it is, it must not end in the chunk being granted for ever
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, LoadError):
                self._load_failed(stage, slot, chunk.expert, key, cause)
            elif not isinstance(cause, EngineDiedError):  # which says that the slot gave the lease up, started anew
                self._abandon(stage, RuntimeError(f"{slot.info.id}, {chunk.expert}: {error}"))
        finally:
            self._settle(stage, slot, chunk, left)

    async def _have_engine(self, slot: SlotState, chunk: Chunk, key: str) -> None:
        async with slot.lock:
            if slot.key != key:  # the lease before this one could not load it
                raise _LeaseLost
            if slot.loaded:
                return
            if slot.loaded_expert:
                self._emit("unload", slot, expert=slot.loaded_expert)
                slot.loaded_expert = ""
            slot.state, slot.expert = "load", chunk.expert
            loaded = await slot.actor.load.remote(chunk.expert)
            slot.loaded, slot.loaded_expert = True, chunk.expert
            self._load_s[key].append(loaded.seconds)
            self._emit(
                "load", slot, expert=chunk.expert, key=key, seconds=round(loaded.seconds, 3), tier=loaded.tier,
                bytes=loaded.bytes, **({"message": loaded.note} if loaded.note else {}),
            )  # fmt: skip

    def _commit(self, stage: StageState, chunk: Chunk | None, part: Part) -> Chunk | None:
        assert chunk is not None
        self._commits.append([part])
        stage.rows += len(part.done)
        stage.failed += part.failed
        stage.prompt_tokens += part.prompt_tokens
        stage.completion_tokens += part.completion_tokens
        rows = set(chunk.done) | set(part.done)
        partial = tuple(p for p in chunk.partial if p[0] not in part.done)
        return replace(chunk, done=tuple(sorted(rows)), partial=partial, rows=chunk.rows - len(part.done))

    def _load_failed(self, stage: StageState, slot: SlotState, expert: str, key: str, error: LoadError) -> None:
        """Note it: after `max_attempts` this slot is not asked for this engine any more."""
        if slot.key == key:
            slot.key, slot.loaded = "", False
        stage.load_failures[slot.info.id, key] += 1
        stage.load_errors[key] = str(error)[:500]
        self._emit("crash", slot, expert=expert, message=f"load: {error}"[:500])

    def _barred(self, stage: StageState, slot: SlotState, key: str) -> bool:
        return stage.load_failures[slot.info.id, key] >= self._config.engine.max_attempts

    def _hopeless(self, stage: StageState, key: str) -> bool:
        """Whether every slot that is left has failed to load an engine."""
        slots = [s for s in self._slots.values() if not s.gone]
        return bool(slots) and all(self._barred(stage, s, key) for s in slots)

    async def _fail_group(self, stage: StageState, key: str) -> None:
        """Record what waits for an engine that no slot can load as failed rows."""
        failure = Failure(boundary="engine", kind="load_failed", message=stage.load_errors[key], retryable=True)
        try:
            while chunks := stage.waiting[key]:
                slot = next((s for s in self._slots.values() if s.available), None)
                if slot is None:
                    break
                chunk = chunks.popleft()  # now: others may be put back in front of it while it is recorded
                self._leases += 1
                try:
                    part = await slot.actor.fail.remote(chunk, f"{self._leases:06d}", failure)
                except RayActorError:
                    chunks.appendleft(chunk)
                    self._lose(slot)
                    continue
                self._commit(stage, chunk, part)
                self._close_chunk(stage, key, chunk)
        except Exception as error:  # the rows cannot even be written
            self._abandon(stage, RuntimeError(f"{key}: {error}"))
        finally:
            stage.failing.discard(key)
        self._dispatch()

    def _settle(self, stage: StageState, slot: SlotState, chunk: Chunk, left: Chunk | None) -> None:
        slot.leases -= 1
        if not slot.leases and slot.state != "lost":
            slot.state = "idle"
        key = self._experts[chunk.expert].engine_key
        if left is not None and left.rows > 0:
            stage.waiting[key].appendleft(left)
        else:
            self._close_chunk(stage, key, chunk)
        self._dispatch()

    def _close_chunk(self, stage: StageState, key: str, chunk: Chunk) -> None:
        stage.open_chunks -= 1
        stage.open_tokens[key] -= chunk.tokens
        if not stage.open_chunks:
            stage.finished.set()

    def _lose(self, slot: SlotState) -> None:
        slot.key, slot.loaded = "", False
        if slot.available:
            slot.available, slot.state = False, "lost"
            self._spawn(self._revive(slot))

    async def _revive(self, slot: SlotState) -> None:
        """Wait for Ray to restart a slot actor (on another node, where its own is gone)."""
        try:
            started = slot.actor.start.options(max_task_retries=-1).remote()
            slot.info = await asyncio.wait_for(started, SLOT_START_TIMEOUT_S)
        except (RayActorError, RayTaskError, TimeoutError) as error:
            slot.gone = True
            self._emit("crash", slot, expert="", message=f"slot actor is lost: {error}".splitlines()[0])
        else:
            slot.available, slot.state = True, "idle"
        self._dispatch()

    def _abandon(self, stage: StageState, error: Exception) -> None:
        if stage.error is None:
            stage.error = error
        stage.finished.set()

    async def _watch(self) -> None:
        """Once a second: what the slots have generated, and which engines have died."""
        while True:
            await asyncio.sleep(WATCH_S)
            for slot in list(self._slots.values()):
                if not slot.available:
                    continue
                try:
                    tokens, deaths = await slot.actor.progress.remote()
                except (RayActorError, RayTaskError):
                    continue
                if self._stage is not None:  # an engine counts from its start, so a smaller number is a new engine's
                    self._stage.live_tokens += tokens - slot.tokens if tokens >= slot.tokens else tokens
                slot.tokens = tokens
                for cause in deaths:
                    self._emit("crash", slot, expert=slot.expert, message=cause[:500])
            self._events.flush()

    def _slot_views(self, stage: StageState) -> list[SlotView]:
        size = max(1, self._config.gpus_per_slot)
        return [
            SlotView(
                id=s.info.id, resident=s.key, leases=s.leases, had=frozenset(s.had), available=s.available,
                barred=frozenset(key for key in stage.waiting if self._barred(stage, s, key)),
                tensor_parallel_size=size,
            )
            for s in self._slots.values()
        ]  # fmt: skip

    def _group_views(self, stage: StageState) -> list[GroupView]:
        return [
            GroupView(key=key, waiting=len(chunks), tokens=stage.open_tokens[key])
            for key, chunks in stage.waiting.items()
        ]

    def _costs(self) -> Costs:
        return Costs(
            load_s={key: sorted(values)[len(values) // 2] for key, values in self._load_s.items()},
            tokens_per_s={key: tokens / seconds for key, (seconds, tokens) in self._rates.items() if seconds},
        )

    def _emit_generate(self, slot: SlotState, chunk: Chunk, parts: list[Part], seconds: float) -> None:
        tokens = sum(p.completion_tokens for p in parts)
        before_s, before_tokens = self._rates.get(slot.key, (0.0, 0))
        self._rates[slot.key] = (before_s + seconds, before_tokens + tokens)
        self._emit(
            "generate", slot, expert=chunk.expert, seconds=round(seconds, 3), requests=sum(p.requests for p in parts),
            prompt_tokens=sum(p.prompt_tokens for p in parts), completion_tokens=tokens,
        )  # fmt: skip

    def _emit(self, event: str, slot: SlotState, **values: object) -> None:
        self._events.add(self._stage.name if self._stage else "", slot.info.id, event, **values)


PoolActor = ray.remote(EnginePool)
__all__ = ["EnginePool", "PoolActor", "PoolConfig", "Slot"]
