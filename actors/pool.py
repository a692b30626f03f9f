"""The engine pool: one async actor that owns slots, queues, leases, commits and events. One event loop, so no locks.

It decides nothing itself: `symoe_ray.scheduling.decide` does, from a view of the state; the pool carries it out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.engine_host import EngineDiedError, LoadError
from actors.pool_costs import CostBook
from actors.pool_state import EventLog, SlotState, StageState, stage_of
from actors.slot import Loaded, Slot, SlotActor, SlotConfig, SlotInfo
from symoe_ray.core import ExpertSpec, Failure, ResourceError
from symoe_ray.ledger import Chunk, Commits, Part
from symoe_ray.ports import Progress, SlotStatus, StageSummary
from symoe_ray.scheduling import GroupView, Lease, Prepare, SlotView, ask_order, decide
from symoe_ray.settings import EngineSettings
from symoe_ray.storage import Storage

SLOT_START_TIMEOUT_S = 600.0
WATCH_S = 1.0
EVENT_OF_TIER = {"reload": "reload", "lora": "reload", "wake": "wake"}
CPU_CAPACITY = 32
GPU_CAPACITY = 256


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
        self._costs = CostBook(cuda=bool(config.gpus_per_slot))
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
        first = {
            s.info.node: s for s in self._slots.values()
        }  # on each node one slot fetches what the others then find
        others = [s for s in self._slots.values() if s not in first.values()]
        found: list[dict[str, str]] = []
        for slots in (list(first.values()), others):
            found += await asyncio.gather(*(s.actor.resolve.remote(experts) for s in slots))
        return {name: problem for problems in found for name, problem in problems.items()}

    async def generate(self, stage: str, chunks: Sequence[Chunk], then: Sequence[str] = ()) -> StageSummary:
        """Work through the chunks; returns when all their rows are committed, as completions or as failures.

        `then` names the experts that the next stage needs: one of them is left on its slot where that costs nothing.
        """
        if self._stage is not None:
            raise RuntimeError(f"the pool is busy with stage {self._stage.name}")
        self._stage = current = stage_of(stage, chunks, self._experts, then)
        await self._learn_facts({c.expert for c in chunks})
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

    async def _learn_facts(self, experts: set[str]) -> None:
        """Know the sizes of the engines that are wanted; where a slot cannot tell, scheduling guesses."""
        unknown = sorted(name for name in experts if not self._costs.knows(self._experts[name].engine_key))
        if unknown:
            slots = [s for s in self._slots.values() if s.available]
            told = await asyncio.gather(*(s.actor.facts.remote(unknown) for s in slots), return_exceptions=True)
            for facts in told:  # what is wrong with a model or a slot shows when it is used
                for name, fact in facts.items() if isinstance(facts, dict) else ():
                    self._costs.describe(self._experts[name].engine_key, fact)

    def _dispatch(self) -> None:
        stage = self._stage
        if stage is None or stage.error is not None:
            return
        for view in ask_order([self._slot_view(stage, s) for s in self._slots.values()], self._group_views(stage)):
            self._ask(stage, self._slots[view.id])
        if stage.open_chunks and all(s.gone for s in self._slots.values()):
            self._abandon(stage, ResourceError("no slot is left: every slot actor has died and none came back"))
        for key in [k for k, group in stage.groups.items() if group.rows and self._hopeless(stage, k)]:
            if key not in stage.failing and any(s.available for s in self._slots.values()):
                stage.failing.add(key)
                self._spawn(self._fail_group(stage, key))

    def _ask(self, stage: StageState, slot: SlotState) -> None:
        """Have decided, again and again, what a slot does next."""
        while True:
            decision = decide(
                self._slot_view(stage, slot), self._group_views(stage), self._costs.costs(),
                slots=sum(s.available for s in self._slots.values()), then=stage.then,
            )  # fmt: skip
            match decision:
                case Lease():
                    self._grant(stage, slot, decision)
                case Prepare(key=key):
                    slot.promised = key
                    self._spawn(self._prepare(stage, slot, stage.groups[key].waiting[0].expert))
                case None:
                    return

    async def _prepare(self, stage: StageState, slot: SlotState, expert: str) -> None:
        try:
            read = await slot.actor.prepare.remote(expert)
        except RayActorError:  # its leases tell
            return
        except RayTaskError as error:  # the load will fail, too, and say why
            self._emit("crash", slot, expert=expert, message=f"prefetch: {error.cause}"[:500])
        else:
            self._emit("prefetch", slot, expert=expert, seconds=round(read.seconds, 3), bytes=read.bytes)

    def _grant(self, stage: StageState, slot: SlotState, lease: Lease) -> None:
        group = stage.groups[lease.key]
        chunk, rest = group.take(lease.rows)
        stage.open_chunks += rest
        group.running_rows += chunk.rows
        if slot.key != lease.key:
            slot.key, slot.loaded, slot.promised = lease.key, False, ""
            slot.had.add(lease.key)
        self._leases += 1
        name, now = f"{self._leases:06d}", time.monotonic()
        if not slot.leases:
            slot.measured_at = now
        slot.leases[name], slot.leased_at = chunk.rows, now
        self._spawn(self._work(stage, slot, chunk, name))

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
                came = await reference
                if isinstance(came, Part):
                    parts.append(came)
                    left = self._commit(stage, left, came)
                    slot.written += came.completion_tokens
                else:
                    self._finish_rows(stage, slot, lease, chunk, chunk.rows - came)
                    self._dispatch()
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
            self._settle(stage, slot, lease, chunk, left)

    async def _have_engine(self, slot: SlotState, chunk: Chunk, key: str) -> None:
        async with slot.lock:
            if slot.key != key:  # the lease before this one could not load it
                raise _LeaseLost
            lora = self._experts[chunk.expert].lora
            if slot.loaded and (not lora or lora in slot.adapters):
                return
            swap = not slot.loaded
            slot.state, slot.expert = "load", chunk.expert
            loaded = await slot.actor.load.remote(chunk.expert)
            slot.capacity, slot.loaded = loaded.capacity, True
            if swap:
                self._note_end(slot, frozenset(loaded.asleep))
                slot.loaded_expert, slot.adapters = chunk.expert, set()
                if EVENT_OF_TIER.get(loaded.tier, "load") == "load":
                    self._costs.loaded(key, loaded.start_s)
                slot.measured_at = time.monotonic()
            slot.adapters.add(lora)
            self._note_load(slot, chunk.expert, key, loaded)

    def _note_end(self, slot: SlotState, asleep: frozenset[str]) -> None:
        """What became of the engine that was on the slot: an event."""
        if slot.loaded_expert:
            key = self._experts[slot.loaded_expert].engine_key
            self._emit("sleep" if key in asleep else "unload", slot, expert=slot.loaded_expert)
        slot.asleep, slot.loaded_expert = asleep, ""

    def _note_load(self, slot: SlotState, expert: str, key: str, loaded: Loaded) -> None:
        self._emit(
            EVENT_OF_TIER.get(loaded.tier, "load"), slot, expert=expert, key=key, seconds=round(loaded.seconds, 3),
            tier=loaded.tier, start_s=round(loaded.start_s, 3), beside=loaded.beside, bytes=loaded.bytes,
            **({"message": loaded.note} if loaded.note else {}),
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
            self._note_end(slot, frozenset())
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
            while (group := stage.groups[key]).waiting:
                slot = next((s for s in self._slots.values() if s.available), None)
                if slot is None:
                    break
                chunk, _ = group.take(group.waiting[0].rows)  # now: others may be put in front of it meanwhile
                self._leases += 1
                try:
                    part = await slot.actor.fail.remote(chunk, f"{self._leases:06d}", failure)
                except RayActorError:
                    group.put(chunk, first=True)
                    self._lose(slot)
                    continue
                self._commit(stage, chunk, part)
                self._close_chunk(stage)
        except Exception as error:  # the rows cannot even be written
            self._abandon(stage, RuntimeError(f"{key}: {error}"))
        finally:
            stage.failing.discard(key)
        self._dispatch()

    def _finish_rows(self, stage: StageState, slot: SlotState, lease: str, chunk: Chunk, left: int) -> None:
        """Note how many rows of a lease are unfinished."""
        key = self._experts[chunk.expert].engine_key
        stage.groups[key].running_rows += max(0, left) - slot.leases[lease]
        slot.leases[lease] = max(0, left)

    def _settle(self, stage: StageState, slot: SlotState, lease: str, chunk: Chunk, left: Chunk | None) -> None:
        self._measure(slot, self._experts[chunk.expert].engine_key)
        self._finish_rows(stage, slot, lease, chunk, 0)
        del slot.leases[lease]
        if not slot.leases and slot.state != "lost":
            slot.state = "idle"
        if left is not None and left.rows > 0:
            stage.groups[self._experts[chunk.expert].engine_key].put(left, first=True)
        else:
            self._close_chunk(stage)
        self._dispatch()

    def _measure(self, slot: SlotState, key: str) -> None:
        """Note what a slot has written since the last time, and with how many sequences."""
        now = time.monotonic()
        if slot.written and slot.loaded:
            self._costs.generated(key, slot.written, now - slot.measured_at, min(slot.rows, slot.capacity))
        slot.written, slot.measured_at = 0, now

    def _close_chunk(self, stage: StageState) -> None:
        stage.open_chunks -= 1
        if not stage.open_chunks:
            stage.finished.set()

    def _lose(self, slot: SlotState) -> None:
        slot.key, slot.promised, slot.loaded = "", "", False
        slot.loaded_expert, slot.asleep = "", frozenset()
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

    def _slot_view(self, stage: StageState, slot: SlotState) -> SlotView:
        usual = GPU_CAPACITY if self._config.gpus_per_slot else CPU_CAPACITY
        return SlotView(
            id=slot.info.id, resident=slot.key, promised=slot.promised, rows=slot.rows,
            capacity=slot.capacity or self._config.engine.max_num_seqs or usual, had=frozenset(slot.had),
            barred=frozenset(key for key in stage.groups if self._barred(stage, slot, key)), asleep=slot.asleep,
            tensor_parallel_size=max(1, self._config.gpus_per_slot), available=slot.available, ready=slot.loaded,
            since_lease_s=time.monotonic() - slot.leased_at,
        )  # fmt: skip

    def _group_views(self, stage: StageState) -> Mapping[str, GroupView]:
        slots = [s for s in self._slots.values() if s.available]
        hosts = [key for s in slots for key in {s.key, s.promised}]
        views = {
            key: GroupView(
                key=key, rows=group.rows, tokens=group.tokens, running_rows=group.running_rows,
                hosts=hosts.count(key), shape=self._costs.shape(key),
                starting_rows=sum(s.rows for s in slots if s.key == key and not s.loaded),
            )
            for key, group in stage.groups.items()
        }  # fmt: skip
        for key in {s.key for s in slots} - views.keys():  # left from the stage before: its shape may save a load
            views[key] = GroupView(key=key, rows=0, tokens=0, hosts=hosts.count(key), shape=self._costs.shape(key))
        return views

    def _emit_generate(self, slot: SlotState, chunk: Chunk, parts: list[Part], seconds: float) -> None:
        tokens = sum(p.completion_tokens for p in parts)
        self._emit(
            "generate", slot, expert=chunk.expert, seconds=round(seconds, 3), requests=sum(p.requests for p in parts),
            prompt_tokens=sum(p.prompt_tokens for p in parts), completion_tokens=tokens,
        )  # fmt: skip

    def _emit(self, event: str, slot: SlotState, **values: object) -> None:
        self._events.add(self._stage.name if self._stage else "", slot.info.id, event, **values)


PoolActor = ray.remote(EnginePool)
__all__ = ["EnginePool", "PoolActor", "PoolConfig", "Slot"]
