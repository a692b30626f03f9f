"""The engine pool over slot actors without Ray: what dies, fails to load or goes wrong ends in a decision."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from actors import slot_pool as pool_module
from actors.engine_host import EngineDiedError, LoadError
from actors.engine_plans import EngineFacts
from actors.placing import Reservation
from actors.pool import EnginePool, PoolConfig
from actors.pool_state import EventLog, SlotState, stage_of
from actors.slot import Loaded, Prefetched, RestartedError, SlotConfig, SlotInfo
from symoe_ray.core import ExpertSpec, Failure, ResourceError
from symoe_ray.engine_room import PROMPT_TOKENS, Room
from symoe_ray.ledger import Chunk, Commits, Part
from symoe_ray.ports import StageSummary
from symoe_ray.settings import EngineSettings
from symoe_ray.slot_places import Node, Place, SlotRule, anywhere, demand_of
from symoe_ray.storage import Storage

TIMEOUT_S = 20.0
EXPERTS = {name: ExpertSpec(name=name, model=f"org/{name}") for name in "AB"}
STAGE = "answer"
ROWS = 10
CAPACITY = 2 * ROWS


def chunk_of(expert: str, number: int, **changes: Any) -> Chunk:
    """Ten rows of an expert's only request file: work enough that a second slot is worth its load."""
    given: dict[str, Any] = {
        "id": f"{expert}{number}", "stage": STAGE, "expert": expert, "path": f"requests/{expert}",
        "start": number * ROWS, "stop": (number + 1) * ROWS, "rows": ROWS, "tokens": 100_000,
    }  # fmt: skip
    return Chunk(**(given | changes))


def chunks_of(**counts: int) -> list[Chunk]:
    return [chunk_of(expert, i) for expert, count in counts.items() for i in range(count)]


def lacking(chunk: Chunk) -> tuple[int, ...]:
    return tuple(row for row in range(chunk.start, chunk.stop) if row not in chunk.done)


def part_of(chunk: Chunk, rows: tuple[int, ...], *, failed: int = 0) -> Part:
    """A part with these rows of a chunk: two prompt tokens and one of output each."""
    return Part(
        path=f"responses/{chunk.id}", stage=chunk.stage, expert=chunk.expert, chunk=chunk.id, slot="", shards=(0,),
        requests=len(rows), samples=len(rows), failed=failed, prompt_tokens=2 * len(rows), completion_tokens=len(rows),
        seconds=0.0, done=rows,
    )  # fmt: skip


def as_ray_raises(error: Exception) -> Exception:
    """An actor's own death is Ray's to tell; an exception inside it comes wrapped."""
    if isinstance(error, RayActorError | ObjectLostError):
        return error
    task_error = RayTaskError("slot", f"{type(error).__name__}: {error}", error, proctitle="slot", pid=1, ip="here")
    raised: Exception = task_error.as_instanceof_cause()
    return raised


class Method:
    """A method of an actor handle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def options(self, **_: object) -> Method:
        return self

    def remote(self, *arguments: Any) -> Any:
        return self._function(*arguments)


async def answer(work: Awaitable[Any]) -> Any:
    """What a reference resolves to."""
    try:
        return await work
    except Exception as error:
        raise as_ray_raises(error) from None


async def value(part: Part) -> Part:
    return part


async def nothing(*_: object) -> None:
    await asyncio.sleep(0)


async def whole(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
    await asyncio.sleep(0)
    yield part_of(chunk, lacking(chunk))


@dataclass
class Script:
    """What slots do beside answering: each may raise, or wait."""

    start: Callable[[StubSlot], Awaitable[None]] = nothing
    load: Callable[[StubSlot, str], Awaitable[None]] = nothing
    prepare: Callable[[StubSlot, str], Awaitable[None]] = nothing
    tier: str = "spawn"
    room: Room = field(default_factory=lambda: Room(CAPACITY))
    asleep: tuple[str, ...] = ()
    generate: Callable[[StubSlot, Chunk], AsyncIterator[Part]] = whole
    fail: Callable[[StubSlot, Chunk], Awaitable[None]] = nothing


@dataclass
class Log:
    """What the slots were asked for, in order, as (slot, expert) or (slot, chunk)."""

    starts: list[str] = field(default_factory=list)
    loads: list[tuple[str, str]] = field(default_factory=list)
    grants: list[tuple[str, Chunk]] = field(default_factory=list)
    failed: list[tuple[str, Chunk, Failure]] = field(default_factory=list)

    def granted(self) -> Counter[tuple[str, int]]:
        """How often each (expert, row) was granted."""
        return Counter((chunk.expert, row) for _, chunk in self.grants for row in lacking(chunk))

    def grants_of(self, chunk_id: str) -> list[Chunk]:
        return [chunk for _, chunk in self.grants if chunk.id == chunk_id]


class StubSlot:
    """The handle of a slot actor: it plays a script, and insists on having the engine that it is to use."""

    def __init__(self, config: SlotConfig, script: Script, log: Log) -> None:
        self.id, self._script, self._log, self._resident = config.id, script, log, ""
        self._lora = any(expert.lora for expert in config.experts)
        self.start = Method(lambda: answer(self._start()))
        self.load = Method(lambda expert: answer(self._load(expert)))
        self.generate = Method(self._generate)
        self.fail = Method(lambda *given: answer(self._fail(*given)))
        self.progress = Method(self._progress)
        self.facts = Method(lambda experts: answer(self._facts(experts)))
        self.prepare = Method(lambda expert: answer(self._prepare(expert)))
        self.resolve = Method(lambda _: answer(self._resolve()))

    async def _start(self) -> SlotInfo:
        self._log.starts.append(self.id)
        await self._script.start(self)
        self._resident = ""
        return SlotInfo(id=self.id, node="node", pid=1, gpus=0)

    async def _load(self, expert: str) -> Loaded:
        self._log.loads.append((self.id, expert))
        await self._script.load(self, expert)
        self._resident = expert
        return Loaded(
            tier=self._script.tier, seconds=0.01, start_s=0.01, bytes=0, room=self._script.room, beside=False, note="",
            asleep=self._script.asleep,
        )  # fmt: skip

    async def _generate(self, chunk: Chunk, _: str) -> AsyncIterator[Awaitable[Part]]:
        self._log.grants.append((self.id, chunk))
        try:
            assert self._resident == chunk.expert or self._lora
            async for part in self._script.generate(self, chunk):
                yield value(part)
        except Exception as error:
            raised = as_ray_raises(error)
        else:
            return
        future: asyncio.Future[Part] = asyncio.get_running_loop().create_future()
        future.set_exception(raised)
        yield future

    async def _fail(self, chunk: Chunk, _: str, failure: Failure) -> Part:
        self._log.failed.append((self.id, chunk, failure))
        await self._script.fail(self, chunk)
        rows = lacking(chunk)
        return part_of(chunk, rows, failed=len(rows))

    async def _facts(self, experts: list[str]) -> dict[str, EngineFacts]:
        return dict.fromkeys(experts, EngineFacts(weight_bytes=0, kv_bytes_per_token=0, shape=""))

    async def _resolve(self) -> dict[str, str]:
        return {}

    async def _prepare(self, expert: str) -> Prefetched:
        await self._script.prepare(self, expert)
        return Prefetched(bytes=1, seconds=0.0)

    async def _progress(self) -> tuple[int, list[str]]:
        return 0, []


@dataclass
class Rig:
    """A pool over stub slots, and what came of its stages."""

    config: PoolConfig
    log: Log = field(default_factory=Log)

    def play(self, chunks: list[Chunk], *more: list[Chunk]) -> StageSummary:
        """Start the pool and work through a stage, and through more of them; the last one's summary."""
        return asyncio.run(asyncio.wait_for(self._play(chunks, *more), TIMEOUT_S))

    async def _play(self, *stages: list[Chunk]) -> StageSummary:
        pool = EnginePool(self.config)
        await pool.start()
        summaries = [await pool.generate(STAGE, chunks) for chunks in stages]
        return summaries[-1]

    def committed(self) -> Counter[tuple[str, int]]:
        """How often each (expert, row) is committed."""
        parts = Commits(Storage(self.config.run_uri), epoch=1).parts(STAGE)
        return Counter((part.expert, row) for part in parts for row in part.done)

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = Storage(self.config.run_uri).read_text("events.jsonl").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]


def once(**counts: int) -> Counter[tuple[str, int]]:
    """Every row of that many chunks of each expert, committed once."""
    return Counter((expert, row) for expert, count in counts.items() for row in range(count * ROWS))


MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRig:
    def make(
        *, slots: int = 1, max_attempts: int = 2, places: tuple[Place, ...] = (), rule: SlotRule | None = None,
        node_wait_s: float = 0.0,
        experts: tuple[ExpertSpec, ...] = tuple(EXPERTS.values()), **script: Any,
    ) -> Rig:  # fmt: skip
        made = Rig(
            PoolConfig(
                run_uri=str(tmp_path / "run"), epoch=1, started=0.0, experts=experts, places=places or anywhere(slots),
                engine=EngineSettings(kind="fake", max_attempts=max_attempts, max_num_seqs=CAPACITY),
                rule=rule, node_wait_s=node_wait_s,
            )
        )  # fmt: skip
        actor = Method(lambda config: StubSlot(config, Script(**script), made.log))
        monkeypatch.setattr(pool_module, "SlotActor", actor)
        return made

    return make


class TestWork:
    @pytest.mark.parametrize("slots", [1, 2, 3])
    def test_every_row_is_committed_once(self, slots: int, rig: MakeRig) -> None:
        pool = rig(slots=slots)
        summary = pool.play(chunks_of(A=5, B=3))
        assert (summary.rows, summary.failed) == (80, 0)
        assert (summary.prompt_tokens, summary.completion_tokens) == (160, 80)
        assert pool.committed() == once(A=5, B=3)
        assert pool.log.granted() == once(A=5, B=3)
        assert sum(event["requests"] for event in pool.events("generate")) == 80

    def test_one_slot_loads_each_engine_once_and_keeps_it_for_the_next_stage(self, rig: MakeRig) -> None:
        pool = rig()
        pool.play(chunks_of(A=2, B=4), chunks_of(A=1), chunks_of(A=1, B=1))
        assert pool.log.loads == [("slot-0", expert) for expert in "BAB"]
        keys = [EXPERTS[expert].engine_key for expert in "BAB"]
        assert [event["key"] for event in pool.events("load")] == keys

    def test_two_stages_at_once_take_one_load_of_each_engine_and_are_committed_apart(self, rig: MakeRig) -> None:
        pool = rig()
        other = [replace(chunk, id=f"other-{chunk.id}", stage="profile") for chunk in chunks_of(A=2, B=1)]

        async def play() -> StageSummary:
            actor = EnginePool(pool.config)
            await actor.start()
            return await actor.generate("profile+answer", [*chunks_of(A=1, B=3), *other])

        assert asyncio.run(asyncio.wait_for(play(), TIMEOUT_S)).rows == 7 * ROWS
        assert sorted(expert for _, expert in pool.log.loads) == ["A", "B"]
        assert pool.committed() == once(A=1, B=3)
        commits = Commits(Storage(pool.config.run_uri))
        assert Counter((p.expert, row) for p in commits.parts("profile") for row in p.done) == once(A=2, B=1)
        assert {event["stage"] for event in pool.events("load")} <= {"profile", STAGE}
        rows = Counter[str]()
        for event in pool.events("generate"):
            rows[event["stage"]] += event["requests"]
        assert rows == {"profile": 3 * ROWS, STAGE: 4 * ROWS}

    def test_what_is_generated_under_another_name_is_called_by_that(self, rig: MakeRig) -> None:
        pool = rig()

        async def play() -> None:
            actor = EnginePool(pool.config)
            await actor.start()
            await actor.generate("replay", chunks_of(A=1))

        asyncio.run(asyncio.wait_for(play(), TIMEOUT_S))
        assert pool.committed() == once(A=1)
        assert {(e["event"], e["stage"]) for kind in ("load", "generate") for e in pool.events(kind)} == {
            ("load", "replay"), ("generate", "replay"),
        }  # fmt: skip

    def test_the_longest_answers_come_first(self, rig: MakeRig) -> None:
        pool = rig()
        short = [chunk_of("A", i, tokens=9 * ROWS, sequences=9 * ROWS) for i in range(2)]
        pool.play([*short, chunk_of("A", 2, tokens=5 * ROWS)])
        assert next(chunk.start for _, chunk in pool.log.grants) == 2 * ROWS

    def test_the_expert_that_the_next_stage_needs_is_left_for_last(self, rig: MakeRig) -> None:
        pool = rig()

        async def play() -> None:
            actor = EnginePool(pool.config)
            await actor.start()
            await actor.generate(STAGE, chunks_of(A=1, B=3), then=["B"])
            await actor.generate("aggregate", chunks_of(B=1))

        asyncio.run(asyncio.wait_for(play(), TIMEOUT_S))
        assert pool.log.loads == [("slot-0", "A"), ("slot-0", "B")]

    def test_the_next_engine_is_prepared_while_the_last_rows_are_written(self, rig: MakeRig) -> None:
        prepared = asyncio.Event()

        async def prepare(_: StubSlot, expert: str) -> None:
            assert expert == "A"
            prepared.set()

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if chunk.expert == "B":
                await prepared.wait()
            yield part_of(chunk, lacking(chunk))

        pool = rig(generate=generate, prepare=prepare)
        pool.play(chunks_of(A=1, B=2))
        assert pool.log.loads == [("slot-0", "B"), ("slot-0", "A")]
        (event,) = pool.events("prefetch")
        assert (event["expert"], event["bytes"]) == ("A", 1)

    def test_what_cannot_be_prefetched_is_said_and_loaded_nevertheless(self, rig: MakeRig) -> None:
        async def prepare(_: StubSlot, expert: str) -> None:
            raise OSError("no such file")

        pool = rig(prepare=prepare)
        assert pool.play(chunks_of(A=1, B=2)).failed == 0
        assert [event["message"] for event in pool.events("crash")] == ["prefetch: no such file"]

    @pytest.mark.parametrize(("tier", "event"), [("reload", "reload"), ("wake", "wake"), ("fork", "load")])
    def test_the_event_of_a_swap_says_how_it_was_done(self, tier: str, event: str, rig: MakeRig) -> None:
        pool = rig(tier=tier, asleep=(EXPERTS["B"].engine_key,) if tier == "wake" else ())
        pool.play(chunks_of(A=1, B=2))
        assert [(e["expert"], e["tier"]) for e in pool.events(event)] == [("B", tier), ("A", tier)]
        ended = "sleep" if tier == "wake" else "unload"
        assert [e["expert"] for e in pool.events(ended)] == ["B"]

    def test_experts_that_share_an_engine_through_adapters_are_swapped_in_it(self, rig: MakeRig) -> None:
        base = ExpertSpec(name="A", model="org/base")
        pool = rig(experts=(base, replace(base, name="B", lora="org/adapter")))
        pool.play(chunks_of(A=1, B=2))
        assert sorted(expert for _, expert in pool.log.loads) == ["A", "B"]
        assert len({e["key"] for kind in ("load", "reload") for e in pool.events(kind)}) == 1
        assert pool.events("unload") == []

    def test_what_engines_wrote_corrects_what_they_were_expected_to_write(self) -> None:
        """Ten thousand tokens a row were expected, and 400 are written; those that run count as expected."""
        stage = stage_of(STAGE, chunks_of(A=10), EXPERTS)
        group = stage.groups[EXPERTS["A"].engine_key]
        assert (group.expected, group.sequence_tokens, group.total) == (10_000.0, 10_000.0, 100)
        group.finished_expected, group.finished_tokens = 92 * 10_000, 92 * 400
        assert group.sequence_tokens == pytest.approx(0.92 * 400 + 0.08 * 10_000)
        group.running = 900
        assert group.sequence_tokens == pytest.approx((92 * 400 + 908 * 10_000) / 1000)
        assert group.prompt_tokens == PROMPT_TOKENS
        group.finished_requests, group.finished_prompt_tokens = 92, 92 * 5000
        assert group.prompt_tokens == pytest.approx(0.92 * 5000 + 0.08 * PROMPT_TOKENS)

    def test_what_is_guessed_longest_starts_first_and_on_all_slots_alike(self, rig: MakeRig) -> None:
        """Ten times as much as starts at once on both slots; lengths fall from chunk to chunk."""
        count = 10 * 2 * CAPACITY // ROWS
        chunks = [chunk_of("A", i, tokens=(2 * count - i) * 1000) for i in reversed(range(count))]
        pool = rig(slots=2)
        pool.play(chunks)
        first = {
            slot: [c for s, c in pool.log.grants if s == slot][: CAPACITY // ROWS] for slot in ("slot-0", "slot-1")
        }
        starts = sorted(c.start for own in first.values() for c in own)
        assert starts == [i * ROWS for i in range(2 * CAPACITY // ROWS)]
        means = [sum(c.tokens for c in own) / len(own) for own in first.values()]
        assert abs(means[0] - means[1]) <= 1000

    def test_what_waits_is_estimated_by_its_own_stage(self) -> None:
        """Long answers come first; that they are written as expected says nothing about the short ones that wait."""
        short = [chunk_of("A", i, stage="annotate", tokens=20 * ROWS) for i in range(10)]
        stage = stage_of("annotate+profile", [*short, *chunks_of(A=10)], EXPERTS)
        group = stage.groups[EXPERTS["A"].engine_key]
        assert (group.sequence_tokens, group.waiting_tokens) == (5010.0, 200 * 5010)
        while group.waiting[0].stage == STAGE:
            group.take_chunk()
        group.finished_expected = group.finished_tokens = 100 * 10_000
        assert (group.sequence_tokens, group.waiting_tokens) == (5010.0, 100 * 20)
        group.finished_tokens *= 2
        assert 1.9 * 100 * 20 < group.waiting_tokens < 2 * 100 * 20

    def test_where_all_start_at_once_each_slot_has_some_of_each_length(self, rig: MakeRig) -> None:
        """Two chunks, one of long and one of short answers, that fit into the first batches of two slots."""
        pool = rig(slots=2, room=Room(10 * ROWS))
        pool.play([chunk_of("A", 0, tokens=ROWS * 20_000), chunk_of("A", 1, tokens=ROWS * 15_000)])
        assert pool.committed() == once(A=2)
        held = {slot: Counter(c.start < ROWS for s, c in pool.log.grants if s == slot) for slot, _ in pool.log.grants}
        assert len(held) == 2
        assert all(set(own) == {True, False} for own in held.values()), held

    def test_an_engine_is_to_run_as_many_as_its_cache_holds_of_those_that_come_next(self) -> None:
        """The longest come first: these count, until what is left is shorter than the mean."""
        chunks = [chunk_of("A", i, tokens=ROWS * (1000 if i < 20 else 100)) for i in range(40)]
        group = stage_of(STAGE, chunks, EXPERTS).groups[EXPERTS["A"].engine_key]
        assert (group.sequence_tokens, group.next_tokens) == (550.0, 1000.0)
        for _ in range(20):
            group.take_chunk()
        assert group.next_tokens == 550.0

    def test_of_rows_with_several_samples_each_sample_counts(self) -> None:
        changes = {"sequences": 50, "most": 64, "tokens": 50 * 40, "prompt": 700.0}
        stage = stage_of(STAGE, [chunk_of("A", i, **changes) for i in range(10)], EXPERTS)
        group = stage.groups[EXPERTS["A"].engine_key]
        assert (group.sequence_tokens, group.total, group.rows, group.most) == (40.0, 500, 100, 64)
        assert group.prompt_tokens == 700.0
        group.finished_expected, group.finished_tokens = 92 * 40, 92 * 20
        assert group.sequence_tokens == pytest.approx(0.92 * 20 + 0.08 * 40)
        taken, rest = group.take(12)
        assert (taken.rows, taken.sequences, rest, group.each) == (3, 15, True, 5.0)
        assert (group.rows, group.sequences) == (97, 485)
        assert group.take_chunk().rows == 7, "and a row is never cut"
        assert (group.rows, group.sequences) == (90, 450)

    def test_of_greedy_samples_one_is_generated(self) -> None:
        changes = {"sequences": 10, "tokens": 10 * 40}
        stage = stage_of(STAGE, [chunk_of("A", i, **changes) for i in range(10)], EXPERTS)
        group = stage.groups[EXPERTS["A"].engine_key]
        assert (group.sequence_tokens, group.sequences, group.each) == (40.0, 100, 1.0)

    @pytest.mark.parametrize(
        ("room", "samples", "most"),
        [(Room(100), 1, 150), (Room(100, kv_tokens=1_000_000), 1, 150), (Room(100, kv_tokens=10_000), 1, 30),
         (Room(100), 5, 55), (Room(32), 5, 18)],
    )  # fmt: skip
    def test_a_slot_is_given_what_its_engine_runs_at_once_and_half_as_much_to_wait(
        self, room: Room, samples: int, most: int, rig: MakeRig
    ) -> None:
        """After prompts of 140 tokens those that run have written 358 of 500: twenty fit into a cache of 10,000.

        The last of five samples takes 1.82 times as long as one on average, so a hundred at once are those of 36 rows.
        """
        at_once, held = Counter[str](), Counter[str]()

        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            held[slot.id] += chunk.rows
            at_once[slot.id] = max(at_once[slot.id], held[slot.id])
            await asyncio.sleep(0.01)
            held[slot.id] -= chunk.rows
            yield replace(
                part_of(chunk, lacking(chunk)), samples=chunk.sequences, prompt_tokens=140 * chunk.rows,
                completion_tokens=chunk.tokens,
            )  # fmt: skip

        changes = {"tokens": 500 * ROWS * samples, "sequences": ROWS * samples}
        pool = rig(slots=2, room=room, generate=generate)
        chunks = [chunk_of("A", i, prompt=140.0, **changes) for i in range(100)]
        assert pool.play(chunks).rows == 1000
        assert 0.5 * most < max(at_once.values()) <= most

    @pytest.mark.parametrize("slots", [1, 2])
    def test_an_error_in_a_decision_ends_the_stage(
        self, slots: int, rig: MakeRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("what the policy raised")

        monkeypatch.setattr("actors.pool.decide", broken)
        with pytest.raises(RuntimeError, match="scheduling: what the policy raised"):
            rig(slots=slots).play(chunks_of(A=1))

    def test_decisions_rest_a_while_but_never_long(self, rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that was stopped in a decision must not rest four times as long."""
        pool = EnginePool(rig().config)

        async def play() -> list[float]:
            loop, rests = asyncio.get_running_loop(), []
            for took_s in (0.0, 0.01, 100.0):
                now = loop.time()
                pool._decided_until = 0.0
                times = iter([now - took_s, now])
                monkeypatch.setattr(loop, "time", partial(next, times))
                pool._decide_now()
                monkeypatch.undo()
                rests.append(pool._decided_until - now)
            return rests

        assert asyncio.run(play()) == pytest.approx([0.0, 0.04, 0.25])

    def test_speed_is_measured_with_the_batch_there_was_and_not_with_what_its_last_sequence_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        slot = SlotState(info=SlotInfo(id="slot-0", node="n", pid=1, gpus=0), actor=None)
        slot.measure_from_now()
        for sequences, seconds in (
            (10, 4.0),
            (100, 1.0),
            (1, 1.0),
            (0, 2.0),
        ):  # more than the engine runs at once: it queues
            slot.count(CAPACITY)
            slot.leases["lease"] = sequences
            now += seconds
        slot.count(CAPACITY)
        assert slot.sequence_seconds == 10 * 4.0 + CAPACITY * 1.0 + 1.0
        assert slot.counted_at - slot.measured_at == 8.0

    def test_nothing_to_do_is_done_at_once(self, rig: MakeRig) -> None:
        pool = rig()
        assert pool.play([]).rows == 0
        assert pool.log.loads == []

    def test_a_second_stage_at_the_same_time_is_refused(self, rig: MakeRig) -> None:
        pool = rig()

        async def twice() -> list[StageSummary | BaseException]:
            actor = EnginePool(pool.config)
            await actor.start()
            stages = (actor.generate(STAGE, chunks_of(A=1)), actor.generate("profile", chunks_of(A=1)))
            return await asyncio.gather(*stages, return_exceptions=True)

        first, second = asyncio.run(asyncio.wait_for(twice(), TIMEOUT_S))
        assert isinstance(first, StageSummary)
        assert isinstance(second, RuntimeError)
        assert str(second) == f"the pool is busy with stage {STAGE}"

    def test_progress_is_that_of_the_stage_and_none_between_stages(self, rig: MakeRig) -> None:
        halfway: list[Any] = []

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            yield part_of(chunk, lacking(chunk)[:4])
            while not (now := await actor.progress()) or not now.rows:
                await asyncio.sleep(0.01)
            halfway.append(now)
            yield part_of(chunk, lacking(chunk)[4:])

        pool = rig(generate=generate)
        actor = EnginePool(pool.config)

        async def play() -> tuple[object, object]:
            before = await actor.progress()
            await actor.start()
            await actor.generate(STAGE, chunks_of(A=1))
            return before, await actor.progress()

        assert asyncio.run(asyncio.wait_for(play(), TIMEOUT_S)) == (None, None)
        (progress,) = halfway
        assert (progress.stage, progress.rows, progress.total_rows, progress.tokens) == (STAGE, 4, 10, 4)
        assert [(s.slot, s.state, s.expert) for s in progress.slots] == [("slot-0", "generate", "A")]


class TestDeaths:
    @pytest.mark.parametrize("slots", [1, 2])
    @pytest.mark.parametrize("where", ["generate", "load"])
    def test_the_work_of_a_slot_that_dies_and_comes_back_is_granted_again(
        self, where: str, slots: int, rig: MakeRig
    ) -> None:
        died: list[str] = []

        def die_once(slot: StubSlot) -> None:
            if not died:
                died.append(slot.id)
                raise RayActorError

        async def load(slot: StubSlot, _: str) -> None:
            die_once(slot)

        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            die_once(slot)
            yield part_of(chunk, lacking(chunk))

        pool = rig(slots=slots, **({"load": load} if where == "load" else {"generate": generate}))
        summary = pool.play(chunks_of(A=4))
        assert (summary.rows, summary.failed) == (40, 0)
        assert pool.committed() == once(A=4)
        assert pool.log.failed == []
        (slot,) = died
        assert pool.log.starts.count(slot) == 2
        assert len(pool.log.starts) == slots + 1
        again = [row for row, times in pool.log.granted().items() if times > 1]
        assert len(again) == (pool.log.grants[0][1].rows if where == "generate" else 0)
        (crash,) = pool.events("crash")
        assert (crash["slot"], crash["expert"]) == (slot, "A")
        assert crash["message"].startswith("slot actor: ")

    def test_a_slot_that_came_back_has_no_engine_and_loads_it_again(self, rig: MakeRig) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 1:
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        pool = rig(generate=generate)
        pool.play(chunks_of(A=3))
        assert pool.log.loads == [("slot-0", "A"), ("slot-0", "A")]

    def test_a_slot_that_came_back_helps_with_what_another_has_too(self, rig: MakeRig) -> None:
        """It had the engine before it died; that must not keep it from having it again."""
        died = list[str]()

        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if not died:
                died.append(slot.id)
                raise RayActorError
            await asyncio.sleep(0.02)
            yield part_of(chunk, lacking(chunk))

        pool = rig(slots=2, max_attempts=4, generate=generate)  # a last attempt would be alone on any slot
        assert pool.play(chunks_of(A=40)).failed == 0
        assert pool.log.loads.count((died[0], "A")) == 2

    def test_a_promise_ends_with_its_stage(self, rig: MakeRig) -> None:
        pool = EnginePool(rig().config)

        async def play() -> str:
            await pool.start()
            (slot,) = pool._slots.values()
            slot.promised = "of the stage before"
            await pool.generate(STAGE, [])
            return slot.promised

        assert asyncio.run(asyncio.wait_for(play(), TIMEOUT_S)) == ""

    def test_two_leases_that_end_with_one_death_wake_the_slot_once(self, rig: MakeRig) -> None:
        dead = asyncio.Event()

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 2:
                dead.set()
            if not dead.is_set() or len(pool.log.grants) == 2:
                await dead.wait()
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        pool = rig(generate=generate)
        assert pool.play(chunks_of(A=4)).failed == 0
        assert pool.committed() == once(A=4)
        lost = sum(chunk.rows for _, chunk in pool.log.grants[:2])
        assert sum(pool.log.granted().values()) == 4 * ROWS + lost
        assert pool.log.starts == ["slot-0", "slot-0"]

    def test_parts_from_before_a_death_are_committed_once_and_only_the_rest_is_granted_again(
        self, rig: MakeRig
    ) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 1:
                yield part_of(chunk, (10, 12))
                yield part_of(chunk, (11,))
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        pool = rig(generate=generate)
        started = chunk_of("A", 1, done=(19,), partial=((12, 1, 2), (15, 0, 1), (15, 3, 1)), rows=9)
        summary = pool.play([started])
        assert (summary.rows, summary.completion_tokens) == (9, 9)
        first, again = pool.log.grants_of("A1")
        assert first == started
        assert (again.done, again.rows) == ((10, 11, 12, 19), 6)
        assert again.partial == ((15, 0, 1), (15, 3, 1))
        assert pool.committed() == Counter(("A", row) for row in range(10, 19))

    def test_a_death_after_the_last_row_leaves_nothing_to_do(self, rig: MakeRig) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            yield part_of(chunk, lacking(chunk))
            raise RayActorError

        pool = rig(generate=generate)
        assert pool.play(chunks_of(A=1)).rows == 10
        assert len(pool.log.grants) == 1

    @pytest.mark.parametrize("slots", [1, 2])
    def test_when_no_slot_comes_back_the_stage_ends_with_a_resource_error(self, slots: int, rig: MakeRig) -> None:
        async def start(slot: StubSlot) -> None:
            if pool.log.starts.count(slot.id) > 1:
                raise RayActorError

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if chunk.id != "A0":
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        pool = rig(slots=slots, start=start, generate=generate)
        with pytest.raises(ResourceError, match="no slot is left"):
            pool.play(chunks_of(A=6))
        assert pool.committed() == once(A=1)

    def test_the_others_do_the_work_of_a_slot_that_does_not_come_back(self, rig: MakeRig) -> None:
        async def start(slot: StubSlot) -> None:
            if pool.log.starts.count(slot.id) > 1:
                raise RayActorError

        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if slot.id == "slot-0":
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        pool = rig(slots=2, start=start, generate=generate)
        assert pool.play(chunks_of(A=3, B=3)).failed == 0
        assert pool.committed() == once(A=3, B=3)

    def test_a_lease_that_the_slot_gave_up_is_granted_again(self, rig: MakeRig) -> None:
        """The connection of one lease broke, but the actor lives: the start that follows ends the other one's work."""
        both, started = asyncio.Event(), asyncio.Event()

        async def start(_: StubSlot) -> None:
            if len(pool.log.starts) > 1:
                started.set()

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 1:
                await both.wait()
                raise ActorUnavailableError("its connection broke", None)
            if len(pool.log.grants) == 2:
                yield part_of(chunk, lacking(chunk)[:3])
                both.set()
                await started.wait()
                raise EngineDiedError("the lease was lost")
            yield part_of(chunk, lacking(chunk))

        pool = rig(start=start, generate=generate)
        assert pool.play(chunks_of(A=3)).failed == 0
        assert pool.committed() == once(A=3)
        first, second = (chunk.rows for _, chunk in pool.log.grants[:2])
        assert sum(pool.log.granted().values()) == 3 * ROWS + first + second - 3
        assert pool.log.starts == ["slot-0", "slot-0"]


class TestLoads:
    @pytest.mark.parametrize("bad", ["slot-0", "slot-1"])
    def test_a_slot_that_cannot_load_leaves_the_work_to_one_that_can(self, bad: str, rig: MakeRig) -> None:
        async def load(slot: StubSlot, _: str) -> None:
            if slot.id == bad:
                raise LoadError("no memory")

        pool = rig(slots=2, load=load)
        summary = pool.play(chunks_of(A=20, B=4))
        assert (summary.rows, summary.failed) == (240, 0)
        assert pool.log.failed == []
        assert pool.committed() == once(A=20, B=4)
        assert bad not in {slot for slot, _ in pool.log.grants}
        tried = Counter(expert for slot, expert in pool.log.loads if slot == bad)
        assert tried
        assert max(tried.values()) <= 2
        assert {event["message"] for event in pool.events("crash")} == {"load: no memory"}

    @pytest.mark.parametrize("slots", [1, 2])
    @pytest.mark.parametrize(("max_attempts", "samples"), [(1, 1), (3, 1), (1, 5)])
    def test_rows_of_an_engine_that_no_slot_can_load_fail_and_the_others_do_not(
        self, slots: int, max_attempts: int, samples: int, rig: MakeRig
    ) -> None:
        async def load(_: StubSlot, expert: str) -> None:
            if expert == "B":
                raise LoadError("no memory")

        pool = rig(slots=slots, max_attempts=max_attempts, load=load)
        summary = pool.play([replace(chunk, sequences=ROWS * samples) for chunk in chunks_of(A=5, B=7)])
        assert (summary.rows, summary.failed) == (120, 70)
        assert pool.committed() == once(A=5, B=7)
        assert {chunk.expert for _, chunk in pool.log.grants} == {"A"}
        assert sum(chunk.rows for _, chunk, _ in pool.log.failed) == 70
        assert {failure for _, _, failure in pool.log.failed} == {
            Failure(boundary="engine", kind="load_failed", message="no memory", retryable=True, attempt=max_attempts)
        }
        tried = Counter(slot for slot, expert in pool.log.loads if expert == "B")
        assert tried == {f"slot-{i}": max_attempts for i in range(slots)}

    def test_what_was_committed_before_the_engine_could_not_be_loaded_again_stays(self, rig: MakeRig) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            yield part_of(chunk, lacking(chunk)[:4])
            raise LoadError("no memory")

        pool = rig(max_attempts=1, generate=generate)
        summary = pool.play(chunks_of(A=1))
        assert (summary.rows, summary.failed) == (10, 6)
        assert pool.committed() == once(A=1)

    def test_a_load_that_fails_once_is_tried_again_and_never_for_no_engine(self, rig: MakeRig) -> None:
        """Two leases wait for it: the second one must not go on with the slot that the first has given up."""

        async def load(_: StubSlot, __: str) -> None:
            await asyncio.sleep(0)
            if len(pool.log.loads) == 1:
                raise LoadError("no memory")

        pool = rig(load=load)
        summary = pool.play(chunks_of(A=6))
        assert (summary.rows, summary.failed) == (60, 0)
        assert pool.log.loads == [("slot-0", "A"), ("slot-0", "A")]
        assert [(e["expert"], e["key"]) for e in pool.events("load")] == [("A", EXPERTS["A"].engine_key)]
        assert [(e["expert"], e["message"]) for e in pool.events("crash")] == [("A", "load: no memory")]

    def test_the_next_stage_may_try_again(self, rig: MakeRig) -> None:
        async def load(_: StubSlot, __: str) -> None:
            if len(pool.log.loads) == 1:
                raise LoadError("no memory")

        pool = rig(max_attempts=1, load=load)
        assert pool.play(chunks_of(A=1), [chunk_of("A", 1)]).failed == 0
        assert len(pool.log.failed) == 1

    def test_a_chunk_that_comes_back_while_others_are_recorded_as_failed_is_recorded_too(self, rig: MakeRig) -> None:
        """Two leases lose their engine, and it cannot be loaded again; the second one hears of it later."""
        both, recording, came_back = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 1:
                await both.wait()
            else:
                both.set()
                await recording.wait()
                came_back.set()
            raise LoadError("no memory")
            yield part_of(chunk, ())

        async def fail(_: StubSlot, chunk: Chunk) -> None:
            recording.set()
            await came_back.wait()
            for _ in range(10):
                await asyncio.sleep(0)

        pool = rig(max_attempts=1, generate=generate, fail=fail)
        summary = pool.play(chunks_of(A=2))
        assert (summary.rows, summary.failed) == (20, 20)
        assert [chunk.id for _, chunk, _ in pool.log.failed] == ["A0", "A1"]
        assert pool.committed() == once(A=2)

    def test_a_slot_that_dies_while_it_records_failures_does_so_when_it_is_back(self, rig: MakeRig) -> None:
        spinning: list[set[Any]] = []

        async def start(_: StubSlot) -> None:
            if len(pool.log.starts) > 1:  # nobody may be busy waiting meanwhile
                for _ in range(10):
                    await asyncio.sleep(0)
                before = asyncio.all_tasks()
                for _ in range(10):
                    await asyncio.sleep(0)
                    spinning.append(asyncio.all_tasks() - before)

        async def load(_: StubSlot, __: str) -> None:
            raise LoadError("no memory")

        async def fail(_: StubSlot, __: Chunk) -> None:
            if len(pool.log.failed) == 1:
                raise RayActorError

        pool = rig(max_attempts=1, start=start, load=load, fail=fail)
        summary = pool.play(chunks_of(A=2))
        assert (summary.rows, summary.failed) == (20, 20)
        assert spinning == [set()] * 10
        assert pool.committed() == once(A=2)
        first, again, other = (chunk.id for _, chunk, _ in pool.log.failed)
        assert first == again != other
        assert pool.log.starts == ["slot-0", "slot-0"]


class TestDeadlyChunks:
    """A chunk that kills its slot actor is granted a bounded number of times, and only the row that does it fails."""

    @pytest.mark.parametrize("max_attempts", [1, 2, 3])
    @pytest.mark.parametrize("slots", [1, 2])
    def test_a_row_that_kills_its_slot_is_found_and_recorded(self, slots: int, max_attempts: int, rig: MakeRig) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            await asyncio.sleep(0)
            if 13 in lacking(chunk):
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        pool = rig(slots=slots, max_attempts=max_attempts, generate=generate)
        summary = pool.play(chunks_of(A=3))
        assert (summary.rows, summary.failed) == (30, 1)
        assert pool.committed() == once(A=3)
        ((_, chunk, failure),) = pool.log.failed
        assert lacking(chunk) == (13,)
        assert (failure.boundary, failure.kind, failure.attempt) == ("slot", "slot_died", max_attempts)
        assert len(pool.log.starts) <= slots + 2 * max_attempts + 5  # 10 rows are halved four times

    def test_a_suspect_chunk_is_alone_on_its_slot(self, rig: MakeRig) -> None:
        """Beside it others would become suspect, and in the end be failed for what they have not done."""
        running: Counter[str] = Counter()
        beside: list[tuple[int, ...]] = []

        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            running[slot.id] += 1
            try:
                for _ in range(20):
                    await asyncio.sleep(0)
                    if chunk.deaths and running[slot.id] > 1:
                        beside.append(lacking(chunk))
                if chunk.id == "A0" and len(pool.log.grants_of("A0")) <= 2:
                    raise RayActorError
            finally:
                running[slot.id] -= 1
            yield part_of(chunk, lacking(chunk))

        pool = rig(max_attempts=2, generate=generate)
        assert pool.play(chunks_of(A=6)).failed == 0
        assert beside == []
        assert pool.committed() == once(A=6)

    def test_a_suspect_chunk_whose_engine_cannot_be_loaded_any_more_fails(self, rig: MakeRig) -> None:
        async def load(_: StubSlot, __: str) -> None:
            if pool.log.grants:
                raise LoadError("no memory")

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            raise RayActorError
            yield part_of(chunk, ())

        pool = rig(max_attempts=2, load=load, generate=generate)
        summary = pool.play(chunks_of(A=1))
        assert (summary.rows, summary.failed) == (10, 10)
        assert {failure.kind for _, _, failure in pool.log.failed} == {"load_failed"}

    def test_a_suspect_chunk_that_no_slot_is_left_for_ends_the_stage(self, rig: MakeRig) -> None:
        async def start(_: StubSlot) -> None:
            if pool.log.grants:
                raise RayActorError

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            raise RayActorError
            yield part_of(chunk, ())

        pool = rig(max_attempts=2, start=start, generate=generate)
        with pytest.raises(ResourceError, match="no slot is left"):
            pool.play(chunks_of(A=1))

    def test_an_object_that_is_lost_is_generated_again(self, rig: MakeRig) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 1:
                raise ObjectLostError("00" * 28, None, "")
            yield part_of(chunk, lacking(chunk))

        pool = rig(generate=generate)
        assert pool.play(chunks_of(A=2)).failed == 0
        assert pool.committed() == once(A=2)


class TestRestartedSlots:
    """A slot actor that died while nobody spoke to it is back before its pool knows, and knows nothing."""

    def test_one_that_is_given_work_is_started_again(self, rig: MakeRig) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 1:
                raise RestartedError
            yield part_of(chunk, lacking(chunk))

        pool = rig(max_attempts=1, generate=generate)
        assert pool.play(chunks_of(A=2)).failed == 0
        assert pool.committed() == once(A=2)
        assert pool.log.starts == ["slot-0", "slot-0"]

    def test_one_that_is_idle_is_started_again(self, rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
        back = asyncio.Event()

        async def start(_: StubSlot) -> None:
            if len(pool.log.starts) == 3:
                back.set()

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            await back.wait()
            yield part_of(chunk, lacking(chunk))

        async def progress(slot: StubSlot) -> tuple[int, list[str]]:
            if slot.id == "slot-1" and not back.is_set():
                raise as_ray_raises(RestartedError())
            return 0, []

        monkeypatch.setattr(pool_module, "WATCH_S", 0.01)
        monkeypatch.setattr(StubSlot, "_progress", progress)
        pool = rig(slots=2, start=start, generate=generate)
        assert pool.play(chunks_of(A=1)).failed == 0
        assert sorted(pool.log.starts) == ["slot-0", "slot-1", "slot-1"]


class TestHungSlots:
    def test_a_slot_that_gives_no_sign_of_life_is_killed(self, rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
        killed: list[StubSlot] = []
        hung, gone = asyncio.Event(), asyncio.Event()

        def kill(slot: StubSlot, *, no_restart: bool) -> None:
            assert not no_restart
            killed.append(slot)
            gone.set()

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if len(pool.log.grants) == 1:
                hung.set()
                await gone.wait()
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        async def progress(_: StubSlot) -> tuple[int, list[str]]:
            if hung.is_set() and not killed:
                await gone.wait()
            return 0, []

        monkeypatch.setattr(pool_module, "WATCH_S", 0.01)
        monkeypatch.setattr(pool_module.ray, "kill", kill)
        monkeypatch.setattr(StubSlot, "_progress", progress)
        pool = rig(generate=generate)
        pool.config = replace(pool.config, engine=replace(pool.config.engine, stall_timeout_s=0.05))
        assert pool.play(chunks_of(A=2)).failed == 0
        assert len(killed) == 1
        assert pool.committed() == once(A=2)
        assert "slot actor: no sign of life for 0 s" in [event["message"] for event in pool.events("crash")]


class TestErrors:
    @pytest.mark.parametrize("slots", [1, 2])
    @pytest.mark.parametrize("where", ["generate", "load", "fail"])
    def test_an_unexpected_error_ends_the_stage_once(self, where: str, slots: int, rig: MakeRig) -> None:
        async def boom(*_: object) -> None:
            raise ValueError("the disk is full")

        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            await boom()
            yield part_of(chunk, ())

        async def no_load(*_: object) -> None:
            raise LoadError("no memory")

        script = {"generate": {"generate": generate}, "load": {"load": boom}, "fail": {"load": no_load, "fail": boom}}
        pool = rig(slots=slots, max_attempts=1, **script[where])
        with pytest.raises(RuntimeError, match="the disk is full"):
            pool.play(chunks_of(A=50))
        assert len(pool.log.grants) + len(pool.log.loads) + len(pool.log.failed) <= 4 * slots
        assert pool.committed() == Counter()

    def test_a_part_that_cannot_be_committed_ends_the_stage_while_its_lease_goes_on(
        self, rig: MakeRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def generate(_: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            yield part_of(chunk, lacking(chunk)[:1])
            await asyncio.Event().wait()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Commits, "append", full)
        with pytest.raises(ResourceError, match=r"slot-0, A: .*No space left on device"):
            rig(generate=generate).play(chunks_of(A=1))

    def test_a_full_disk_is_a_resource_error(self, rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Commits, "append", full)
        with pytest.raises(ResourceError, match=r"slot-0, A: .*No space left on device"):
            rig().play(chunks_of(A=1))

    def test_the_error_names_slot_and_expert(self, rig: MakeRig) -> None:
        async def load(_: StubSlot, expert: str) -> None:
            if expert == "A":
                raise ValueError("odd")

        with pytest.raises(RuntimeError, match=r"slot-0, A: .*odd"):
            rig(load=load).play(chunks_of(A=1, B=1))

    def test_a_pool_that_has_been_taken_over_commits_nothing_more(self, rig: MakeRig) -> None:
        async def load(*_: object) -> None:
            Commits(Storage(pool.config.run_uri), epoch=2).fence()

        pool = rig(load=load)
        with pytest.raises(RuntimeError, match=r"attempt 1 at run .* has been taken over"):
            pool.play(chunks_of(A=5))
        assert pool.committed() == Counter()

    def test_a_slot_that_does_not_start_is_a_resource_error(
        self, rig: MakeRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def start(slot: StubSlot) -> None:
            if slot.id == "slot-1":
                await asyncio.Event().wait()

        monkeypatch.setattr(pool_module, "SLOT_START_TIMEOUT_S", 0.05)
        with pytest.raises(ResourceError, match=r"slot-1 did not start within"):
            rig(slots=2, start=start).play(chunks_of(A=1))


class TestNodes:
    """Slots come and go with their nodes; `alive` is what the cluster says of itself."""

    @pytest.fixture
    def alive(self, monkeypatch: pytest.MonkeyPatch) -> list[Node]:
        found: list[Node] = [Node(id="a", cpus=2)]

        async def reserve(*_: object) -> Reservation:
            return Reservation(options={})

        monkeypatch.setattr(pool_module, "nodes", lambda: found)
        monkeypatch.setattr(pool_module, "reserve", reserve)
        monkeypatch.setattr(pool_module, "SURVEY_S", 0.01)
        monkeypatch.setattr(pool_module.ray, "kill", lambda *_, **__: None)
        return found

    def test_a_node_that_joins_gets_slots_which_take_a_share(self, rig: MakeRig, alive: list[Node]) -> None:
        joined = asyncio.Event()

        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            alive[1:] = [Node(id="b", cpus=2)]
            if slot.id == "slot-0":
                await joined.wait()
            else:
                joined.set()
            yield part_of(chunk, lacking(chunk))

        rule = SlotRule(cpu_slots=1)
        pool = rig(places=rule.places(alive), rule=rule, generate=generate)
        assert pool.play(chunks_of(A=8)).rows == 80
        assert pool.committed() == once(A=8)
        assert {slot for slot, _ in pool.log.grants} == {"slot-0", "slot-1"}
        assert [event["node"] for event in pool.events("join")] == ["b"]

    def test_the_others_do_the_work_of_a_node_that_is_lost(self, rig: MakeRig, alive: list[Node]) -> None:
        """Its slot is given up at once, not when Ray has stopped hoping."""
        alive.append(Node(id="b", cpus=2))

        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if slot.id == "slot-1":
                alive[1:] = []
                await asyncio.sleep(0.1)
                raise RayActorError
            await asyncio.sleep(0.01)
            yield part_of(chunk, lacking(chunk))

        rule = SlotRule(cpu_slots=1)
        pool = rig(places=rule.places(alive), rule=rule, generate=generate)
        assert pool.play(chunks_of(A=8)).rows == 80
        assert pool.committed() == once(A=8)
        assert "node b is lost" in {event["message"] for event in pool.events("crash")}

    @pytest.mark.parametrize("wait_s", [0.0, 10.0])
    def test_where_all_nodes_are_lost_another_is_waited_for_as_long_as_is_said(
        self, wait_s: float, rig: MakeRig, alive: list[Node]
    ) -> None:
        async def generate(slot: StubSlot, chunk: Chunk) -> AsyncIterator[Part]:
            if slot.id == "slot-0":
                alive[:] = []
                await asyncio.sleep(0.05)
                alive[:] = [Node(id="c", cpus=2)] if wait_s else []
                raise RayActorError
            yield part_of(chunk, lacking(chunk))

        rule = SlotRule(cpu_slots=1)
        pool = rig(places=rule.places(alive), rule=rule, generate=generate, node_wait_s=wait_s)
        if wait_s:
            assert pool.play(chunks_of(A=4)).rows == 40
            assert pool.committed() == once(A=4)
        else:
            with pytest.raises(ResourceError, match="no slot is left"):
                pool.play(chunks_of(A=4))

    def test_an_engine_goes_to_a_slot_that_has_its_gpus_and_their_kind(self, rig: MakeRig, alive: list[Node]) -> None:
        experts = (
            EXPERTS["A"],
            ExpertSpec(name="B", model="org/B", tensor_parallel_size=4),
            ExpertSpec(name="C", model="org/C", tensor_parallel_size=2, accelerator_type="H100"),
        )
        rule = SlotRule(demand=demand_of(experts, {e.name: 1.0 for e in experts}))
        places = rule.places([Node(id="a", gpus=6, kind="A100"), Node(id="h", gpus=2, kind="H100")])
        assert sorted((p.gpus, p.kind) for p in places) == [(1, "A100"), (1, "A100"), (2, "H100"), (4, "A100")]
        pool = rig(experts=experts, places=places)
        assert pool.play(chunks_of(A=3, B=3, C=3)).rows == 90
        where = {f"slot-{i}": place for i, place in enumerate(places)}
        loads = {expert: {where[slot].gpus for slot, e in pool.log.loads if e == expert} for expert in "ABC"}
        assert loads["B"] == {4}
        assert {where[slot].kind for slot, e in pool.log.loads if e == "C"} == {"H100"}
        assert 1 in loads["A"]


class TestEvents:
    def test_a_wall_clock_that_jumps_moves_no_event(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        started = 1_000_000.0
        monkeypatch.setattr(time, "time", lambda: started + 5.0)
        log = EventLog(Storage(str(tmp_path)), 1, started)
        for wall in (started + 6.0, started - 86_400.0, started + 86_400.0):
            monkeypatch.setattr(time, "time", lambda wall=wall: wall)
            log.add("answer", "slot-0", "load")
        log.flush()
        events = [json.loads(line) for line in Storage(str(tmp_path)).read_text("events.jsonl").splitlines()]
        assert all(5.0 <= event["t"] < 15.0 for event in events)
        assert all(event["time"] == pytest.approx(started + event["t"]) for event in events)

    def test_events_that_cannot_be_written_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = EventLog(Storage(str(tmp_path)), 1, 0.0)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        log.add("answer", "slot-0", "load")
        with monkeypatch.context() as broken:
            broken.setattr(Storage, "append_text", full)
            log.flush()
        log.add("answer", "slot-0", "generate")
        log.flush()
        log.flush()
        lines = Storage(str(tmp_path)).read_text("events.jsonl").splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["load", "generate"]
