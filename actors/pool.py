"""The engine pool of a run: works through its stages, chunk by chunk, and commits what comes of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.engine_host import EngineDiedError, LoadError
from actors.pool_state import SlotState, StageState, stage_of
from actors.slot_pool import LeaseLostError, PoolConfig, SlotPool
from symoe_ray.core import Failure, ResourceError
from symoe_ray.ledger import Chunk, Commits, Part
from symoe_ray.ports import Progress, SlotStatus, StageSummary
from symoe_ray.scheduling import GroupView, Lease, Prepare, ask_order, decide


class EnginePool(SlotPool):
    """One stage at a time: its chunks wait by engine key, are leased to slots, and come back as committed parts."""

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(config)
        self._commits = Commits(self._storage, config.epoch)
        self._stage: StageState | None = None
        self._leases = 0

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
        """End the stage and everything below."""
        self._stage = None
        await super().stop()

    def _dispatch(self) -> None:
        stage = self._stage
        if stage is None or stage.error is not None:
            return
        for view in ask_order([self._view(s, stage.groups) for s in self._slots.values()], self._group_views(stage)):
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
                self._view(slot, stage.groups), self._group_views(stage), self._costs.costs(),
                slots=sum(s.available for s in self._slots.values()), then=stage.then,
            )  # fmt: skip
            match decision:
                case Lease():
                    self._grant(stage, slot, decision)
                case Prepare(key=key):
                    slot.promised = key
                    self._spawn(self._prepare(slot, stage.groups[key].waiting[0].expert))
                case None:
                    return

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
            await self._have_engine(slot, chunk.expert, key)
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
        except LeaseLostError:
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

    def _fits(self, slot: SlotState, key: str) -> bool:
        assert self._stage is not None
        return self._stage.load_failures[slot.info.id, key] < self._config.engine.max_attempts

    def _label(self) -> str:
        return self._stage.name if self._stage else ""

    def _note_tokens(self, tokens: int) -> None:
        if self._stage is not None:
            self._stage.live_tokens += tokens

    def _hopeless(self, stage: StageState, key: str) -> bool:
        """Whether every slot that is left has failed to load an engine."""
        slots = [s for s in self._slots.values() if not s.gone]
        return bool(slots) and not any(self._fits(s, key) for s in slots)

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

    def _close_chunk(self, stage: StageState) -> None:
        stage.open_chunks -= 1
        if not stage.open_chunks:
            stage.finished.set()

    def _abandon(self, stage: StageState, error: Exception) -> None:
        if stage.error is None:
            stage.error = error
        stage.finished.set()

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
        return views | self._idle_views(views)

    def _emit_generate(self, slot: SlotState, chunk: Chunk, parts: list[Part], seconds: float) -> None:
        tokens = sum(p.completion_tokens for p in parts)
        self._emit(
            "generate", slot, expert=chunk.expert, seconds=round(seconds, 3), requests=sum(p.requests for p in parts),
            prompt_tokens=sum(p.prompt_tokens for p in parts), completion_tokens=tokens,
        )  # fmt: skip


PoolActor = ray.remote(EnginePool)
__all__ = ["EnginePool", "PoolActor", "PoolConfig"]
