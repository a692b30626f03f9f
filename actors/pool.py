"""The engine pool of a run: works through its stages, chunk by chunk, and commits what comes of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError

from actors.commit_queue import CommitQueue
from actors.engine_host import EngineDiedError, LoadError
from actors.pool_state import SlotState, StageState, stage_of
from actors.slot import RestartedError
from actors.slot_pool import LeaseLostError, Lengths, PoolConfig, SlotPool
from symoe_ray.core import Failure, ResourceError
from symoe_ray.ledger import Chunk, Commits, Part, split
from symoe_ray.length_estimates import longest_tokens
from symoe_ray.ports import Progress, SlotStatus, StageSummary
from symoe_ray.retrying import delay_s
from symoe_ray.scheduling import GroupView, Lease, Prepare, ask_order, decide
from symoe_ray.water_filling import hosts_wanted

SLOT_LOST = (RayActorError, NodeDiedError, ObjectLostError)


class EnginePool(SlotPool):
    """One stage at a time, or several at once: its chunks wait by engine key, are leased to slots, and come back as
    committed parts.
    """

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(config)
        self._commits = CommitQueue(Commits(self._storage, config.epoch, config.token))
        self._stage: StageState | None = None
        self._leases = 0

    async def generate(self, stage: str, chunks: Sequence[Chunk], then: Sequence[str] = ()) -> StageSummary:
        """Work through the chunks; returns when all their rows are committed, as completions or as failures.

        Each is committed to the stage that it names: an engine does the work of all stages in one load. `stage` is what
        they are called together. `then` names the experts that the next stage needs: one of them is left on its slot
        where that costs nothing.
        """
        if self._stage is not None:
            raise RuntimeError(f"the pool is busy with stage {self._stage.name}")
        for slot in self._slots.values():
            slot.had, slot.promised = {slot.key} if slot.key else set(), ""
        self._stage = current = stage_of(stage, chunks, self._experts, then)
        await self._learn_facts({c.expert for c in chunks})
        for key, group in current.groups.items():
            self._costs.expect(key, group.prompt_tokens, group.sequence_tokens)
        self._start_alike(current)
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
        """End the stage and everything below; what slots have written counts."""
        self._stage = None
        await self._commits.flush()
        await super().stop()

    def _start_alike(self, stage: StageState) -> None:
        """Have what is guessed to be longest start first on all slots that an engine should have, not on one."""
        views, slots = self._group_views(stage), self._peers()[""]
        local = [view for key, view in views.items() if key not in self._servers]
        wanted = hosts_wanted(local, self._costs.costs(), slots=slots, capacity=self._capacity(""))
        for key, hosts in wanted.items():
            if hosts > 1:
                stage.open_chunks += stage.groups[key].start_alike(hosts, views[key].capacity)

    def _decide_all(self) -> None:
        stage = self._stage
        if stage is None or stage.error is not None:
            return
        views, peers = self._group_views(stage), self._peers()
        for view in ask_order([self._view(s, stage.groups) for s in self._slots.values()], views):
            views = self._ask(stage, self._slots[view.id], views, peers)
        if any(self._orphaned(key) for key in self._waited_for(stage)):
            self._abandon(stage, ResourceError("no slot is left: every slot actor has died and none came back"))
        self._try_suspects(stage)
        self._doom_hopeless(stage)
        if stage.doomed and not stage.failing and any(s.available for s in self._slots.values()):
            stage.failing = True
            self._spawn(self._fail_doomed(stage))

    def _ask(
        self, stage: StageState, slot: SlotState, views: Mapping[str, GroupView], peers: Mapping[str, int]
    ) -> Mapping[str, GroupView]:
        """Have decided, again and again, what a slot does next; the groups as they are then."""
        while not slot.alone:
            seen, costs = self._view(slot, stage.groups), self._costs.costs()
            decision = decide(seen, self._choice(slot, views), costs, slots=peers[slot.serves], then=stage.then)
            match decision:
                case Lease():
                    self._grant(stage, slot, decision)
                case Prepare(key=key):
                    slot.promised = key
                    self._spawn(self._prepare(slot, stage.groups[key].waiting[0].expert))
                case None:
                    break
            views = self._group_views(stage)
        return views

    def _cannot_decide(self, error: Exception) -> None:
        if self._stage is not None:
            self._abandon(self._stage, _unexpected("scheduling", error))

    def _grant(self, stage: StageState, slot: SlotState, lease: Lease) -> None:
        chunk, rest = stage.groups[lease.key].take(lease.rows)
        stage.open_chunks += rest
        self._lend(stage, slot, chunk)

    def _lend(self, stage: StageState, slot: SlotState, chunk: Chunk) -> None:
        key = self._experts[chunk.expert].engine_key
        sequences = chunk.sequences or chunk.rows
        stage.groups[key].running += sequences
        if slot.key != key:
            slot.key, slot.loaded, slot.promised = key, False, ""
            slot.had.add(key)
        self._leases += 1
        name, now = f"{self._leases:06d}", time.monotonic()
        if not slot.leases:
            slot.measure_from_now()
        slot.count(self._capacity(key))
        slot.leases[name], slot.leased_at = sequences, now
        self._spawn(self._work(stage, slot, chunk, name))

    async def _work(self, stage: StageState, slot: SlotState, chunk: Chunk, lease: str) -> None:
        """One chunk on one slot, from the load of its engine to the commit of its last part."""
        parts, commits = list[Part](), list[asyncio.Task[Part]]()
        is_whole, deaths = False, chunk.deaths
        key, where = self._experts[chunk.expert].engine_key, f"{slot.info.id}, {chunk.expert}"
        try:
            await self._have_engine(slot, chunk.expert, key, stage.label_of(chunk))
            started = time.monotonic()
            slot.state, slot.expert = "generate", chunk.expert
            stream = slot.actor.generate.options(num_returns="streaming").remote(chunk, lease)
            async for reference in stream:
                came = await reference
                if isinstance(came, Part):
                    parts.append(came)
                    each = chunk.tokens / (chunk.sequences or chunk.rows)
                    commits.append(asyncio.create_task(self._commit(stage, came, where, expected=each)))
                    slot.written += came.completion_tokens
                else:
                    self._finish_rows(stage, slot, lease, chunk, chunk.rows - came)
                    self._dispatch()
            self._emit_generate(slot, chunk, stage.label_of(chunk), parts, time.monotonic() - started)
            is_whole = True
        except LeaseLostError:
            pass
        except SLOT_LOST as error:
            self._emit("crash", slot, expert=chunk.expert, message=f"slot actor: {error}".splitlines()[0])
            self._lose(slot)
            deaths += 1
        except Exception as error:  # whatever else it is, it must not end in the chunk being granted for ever
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, RestartedError):
                self._emit("crash", slot, expert=chunk.expert, message=str(cause))
                self._lose(slot)
            elif isinstance(cause, LoadError):
                self._load_failed(stage, slot, chunk.expert, key, cause)
                if self._stage is not None and self._fits(slot, key):
                    await asyncio.sleep(delay_s("load_failed", stage.load_failures[slot.info.id, key]))
            elif not isinstance(cause, EngineDiedError):  # which says that the slot gave the lease up, started anew
                self._abandon(stage, _unexpected(where, error))
        finally:
            self._free(stage, slot, lease, chunk)
            if is_whole:
                self._dispatch()
            else:
                self._commits.hurry()  # what is left waits for it
            done = await asyncio.gather(*commits, return_exceptions=True)
            left = _left(chunk, [part for part in done if isinstance(part, Part)])
            self._settle(stage, replace(left, deaths=deaths, rows=0 if is_whole else left.rows))

    async def _commit(
        self, stage: StageState, part: Part, where: str, *, expected: float = 0.0, hurry: bool = False
    ) -> Part:
        """Commit a part, at once in a hurry or where nothing else is left to do; the part, when it counts. Of each of
        its sequences so many tokens were expected.

        A part that cannot be committed ends the stage.
        """
        is_last = not any(group.rows or group.running for group in stage.groups.values())
        try:
            await self._commits.commit(part, hurry=hurry or is_last)
        except Exception as error:
            self._abandon(stage, _unexpected(where, error))
            raise
        stage.rows += len(part.done)
        stage.failed += part.failed
        stage.prompt_tokens += part.prompt_tokens
        stage.completion_tokens += part.completion_tokens
        if good := part.generated:
            group = stage.groups[self._experts[part.expert].engine_key]
            group.finished_expected += good * expected
            group.finished_tokens += part.completion_tokens
            group.finished_requests += part.requests
            group.finished_prompt_tokens += part.prompt_tokens
        return part

    def _load_failed(self, stage: StageState, slot: SlotState, expert: str, key: str, error: LoadError) -> None:
        """Note it: after `max_attempts` this slot is not asked for this engine any more."""
        if slot.key == key:
            slot.key, slot.loaded = "", False
            slot.had.discard(key)
            self._note_end(slot, frozenset())
        stage.load_failures[slot.info.id, key] += 1
        stage.load_errors[key] = str(error)[:500]
        self._emit("crash", slot, expert=expert, message=f"load: {error}"[:500])

    def _fits(self, slot: SlotState, key: str) -> bool:
        assert self._stage is not None
        most = self._config.engine.max_attempts
        return self._serves(slot, key) and self._stage.load_failures[slot.info.id, key] < most

    def _lengths(self, key: str) -> Lengths:
        group = self._stage.groups.get(key) if self._stage else None
        return Lengths(group.prompt_tokens, group.next_tokens, group.each) if group else Lengths()

    def _label(self) -> str:
        return self._stage.name if self._stage else ""

    def _note_tokens(self, tokens: int) -> None:
        if self._stage is not None:
            self._stage.live_tokens += tokens

    def _hopeless(self, stage: StageState, key: str) -> bool:
        """Whether every slot that is left has failed to load an engine."""
        slots = [s for s in self._slots.values() if not s.gone and self._serves(s, key)]
        return bool(slots) and not any(self._fits(s, key) for s in slots)

    def _waited_for(self, stage: StageState) -> set[str]:
        """The engine keys that some chunk waits for."""
        apart = [*stage.suspects, *(chunk for chunk, _ in stage.doomed)]
        waiting = {key for key, group in stage.groups.items() if group.rows}
        return waiting | {self._experts[chunk.expert].engine_key for chunk in apart}

    def _try_suspects(self, stage: StageState) -> None:
        """Give suspect chunks to slots that have nothing else, and get nothing else meanwhile."""
        for chunk in list(stage.suspects):
            key = self._experts[chunk.expert].engine_key
            idle = [s for s in self._slots.values() if s.available and not s.leases and self._fits(s, key)]
            if idle:
                slot = min(idle, key=lambda s: s.key != key)
                stage.suspects.remove(chunk)
                slot.alone = True
                self._lend(stage, slot, chunk)

    def _doom_hopeless(self, stage: StageState) -> None:
        """Give up what waits for an engine that no slot can load."""
        for key, group in stage.groups.items():
            waiting = [c for c in stage.suspects if self._experts[c.expert].engine_key == key]
            if (group.rows or waiting) and self._hopeless(stage, key):
                attempts, message = self._config.engine.max_attempts, stage.load_errors.get(key, "no slot is left")
                failure = Failure(
                    boundary="engine", kind="load_failed", message=message, retryable=True, attempt=attempts
                )
                for chunk in waiting:
                    stage.suspects.remove(chunk)
                while group.waiting:
                    waiting.append(group.take_chunk())
                stage.doomed += [(chunk, failure) for chunk in waiting]

    async def _fail_doomed(self, stage: StageState) -> None:
        """Record chunks that are given up as failed rows."""
        try:
            while stage.doomed:
                slot = next((s for s in self._slots.values() if s.available), None)
                if slot is None:
                    break
                chunk, failure = stage.doomed[0]
                self._leases += 1
                try:
                    part = await slot.actor.fail.remote(chunk, f"{self._leases:06d}", failure)
                except SLOT_LOST:
                    self._lose(slot)
                    continue
                stage.doomed.popleft()
                await self._commit(stage, part, chunk.expert, hurry=True)
                self._close_chunk(stage)
        except Exception as error:  # the rows cannot even be written
            self._abandon(stage, _unexpected(chunk.expert, error))
        finally:
            stage.failing = False
        self._dispatch()

    def _put_back(self, stage: StageState, chunk: Chunk) -> None:
        """Let what a lease has left undone wait again, before the others.

        A chunk under which slot actors die becomes suspect: its last attempt is on a slot of its own. If that dies too,
        each half has a last attempt, down to the row that kills its slot, which is given up.
        """
        last = self._config.engine.max_attempts
        if chunk.deaths < max(1, last - 1):
            stage.groups[self._experts[chunk.expert].engine_key].put(chunk, first=True)
        elif chunk.deaths < last:
            stage.suspects.append(chunk)
        elif chunk.rows == 1:
            message = "every slot actor that worked on it has died"
            failure = Failure(boundary="slot", kind="slot_died", message=message, retryable=True, attempt=last)
            stage.doomed.append((chunk, failure))
        else:
            halves = split(replace(chunk, deaths=last - 1), chunk.rows // 2)
            stage.suspects += [half for half in halves if half is not None]
            stage.open_chunks += 1

    def _finish_rows(self, stage: StageState, slot: SlotState, lease: str, chunk: Chunk, left: int) -> None:
        """Note how many rows of a lease are unfinished."""
        key = self._experts[chunk.expert].engine_key
        slot.count(self._capacity(key))
        sequences = max(0, left) * (chunk.sequences or chunk.rows) // chunk.rows
        stage.groups[key].running += sequences - slot.leases[lease]
        slot.leases[lease] = sequences

    def _free(self, stage: StageState, slot: SlotState, lease: str, chunk: Chunk) -> None:
        """A lease has ended: its slot has room for others."""
        self._measure(slot, self._experts[chunk.expert].engine_key)
        self._finish_rows(stage, slot, lease, chunk, 0)
        del slot.leases[lease]
        slot.alone = False
        if not slot.leases and slot.state != "lost":
            slot.state = "idle"

    def _settle(self, stage: StageState, left: Chunk) -> None:
        """A lease's parts are committed: the chunk is done, or waits again with what is left of it."""
        if left.rows > 0:
            self._put_back(stage, left)
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
        hosts, starting, alike = Counter[str](), Counter[str](), dict[tuple[object, ...], list[SlotState]]()
        for slot in self._slots.values():
            if slot.available:
                hosts.update({slot.key, slot.promised})
                alike.setdefault((slot.place.gpus, slot.place.kind, slot.serves), []).append(slot)
                if not slot.loaded:
                    starting[slot.key] += slot.sequences
        views = {
            key: GroupView(
                key=key, rows=group.sequences, tokens=round(group.waiting_tokens),
                longest_tokens=longest_tokens(group.sequence_tokens, group.total, group.most),
                running_rows=group.running, starting_rows=starting[key], hosts=hosts[key],
                shape=self._costs.shape(key), capacity=self._capacity(key),
                tensor_parallel_size=self._sizes[key][0] if self._on_gpus else 1,
                most_hosts=sum(len(slots) for slots in alike.values() if self._serves(slots[0], key)),
            )
            for key, group in stage.groups.items()
        }  # fmt: skip
        return views | self._idle_views(views)

    def _emit_generate(self, slot: SlotState, chunk: Chunk, stage: str, parts: list[Part], seconds: float) -> None:
        tokens = sum(p.completion_tokens for p in parts)
        self._emit(
            "generate", slot, stage=stage, expert=chunk.expert, seconds=round(seconds, 3),
            requests=sum(p.requests for p in parts), prompt_tokens=sum(p.prompt_tokens for p in parts),
            completion_tokens=tokens,
        )  # fmt: skip


def _left(chunk: Chunk, parts: Sequence[Part]) -> Chunk:
    """What a chunk lacks when these parts of it count."""
    came = {row for part in parts for row in part.done}
    partial = tuple(p for p in chunk.partial if p[0] not in came)
    rows = chunk.rows - len(came)
    tokens, sequences = (n * rows // chunk.rows for n in (chunk.tokens, chunk.sequences))
    return replace(
        chunk, done=tuple(sorted({*chunk.done, *came})), partial=partial, rows=rows, tokens=tokens,
        sequences=sequences,
    )  # fmt: skip


def _unexpected(where: str, error: Exception) -> Exception:
    """What ends a stage: what the storage lacks or does not let us do is the user's to mend."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return ResourceError(f"{where}: {cause}") if isinstance(cause, OSError) else RuntimeError(f"{where}: {error}")


PoolActor = ray.remote(EnginePool)
__all__ = ["EnginePool", "PoolActor", "PoolConfig"]
