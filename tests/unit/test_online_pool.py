"""The endpoint's pool over slot actors without Ray: who is granted, who waits, who is refused, what dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from actors import slot_pool
from actors.engine_host import LoadError
from actors.engine_plans import EngineFacts
from actors.online_pool import OnlinePool
from actors.online_state import Grant, Refusal, Ticket
from actors.serving.pool_engines import PoolEngines
from actors.slot import Loaded, Prefetched, RestartedError, SlotConfig, SlotInfo, Told
from actors.slot_pool import PoolConfig
from symoe_ray.core import Completion, ExpertSpec, Message, Request, Sampling
from symoe_ray.engine_room import Room
from symoe_ray.scheduling import Online
from symoe_ray.serving.asking import Ask, RefusedError, Reply
from symoe_ray.settings import EngineSettings
from symoe_ray.slot_places import anywhere
from tests.unit.test_pool import Method, answer

EXPERTS = tuple(ExpertSpec(name=name, model=f"org/{name}") for name in "ABC")
CAPACITY = 4


@dataclass
class Slots:
    """Slot actors: `load` may raise or wait, `answers` are raised before any is given; `loads` are (slot, expert)."""

    load: Callable[[str], Awaitable[None]] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    loads: list[tuple[str, str]] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    answers: list[Exception] = field(default_factory=list)

    def make(self, config: SlotConfig) -> Any:
        return StubSlot(config.id, self)


class StubSlot:
    """The handle of a slot actor."""

    def __init__(self, slot: str, slots: Slots) -> None:
        self.id, self._slots = slot, slots
        for name in ("start", "load", "resolve", "facts", "prepare", "progress", "measure", "answer", "stop"):
            setattr(self, name, Method(lambda *given, name=name: answer(getattr(self, f"_{name}")(*given))))

    async def _start(self) -> SlotInfo:
        return SlotInfo(id=self.id, node="node", pid=1, gpus=0)

    async def _load(self, expert: str) -> Loaded:
        self._slots.loads.append((self.id, expert))
        if self._slots.load is not None:
            await self._slots.load(expert)
        await asyncio.sleep(0)
        return Loaded(tier="fork", seconds=0.1, start_s=0.1, bytes=0, room=Room(CAPACITY), beside=False, note="")

    async def _resolve(self, _: list[str]) -> dict[str, str]:
        return self._slots.problems

    async def _facts(self, experts: list[str]) -> dict[str, EngineFacts]:
        return dict.fromkeys(experts, EngineFacts(weight_bytes=0, kv_bytes_per_token=0, shape=""))

    async def _prepare(self, expert: str) -> Prefetched:
        self._slots.prepared.append(expert)
        return Prefetched(bytes=0, seconds=0.0)

    async def _progress(self) -> tuple[int, list[str]]:
        return 0, []

    async def _measure(self) -> Told:
        return Told(running=0, families=())

    async def _answer(self, ask: Ask) -> Reply:
        if self._slots.answers:
            raise self._slots.answers.pop(0)
        text = Completion(request_id=ask.request.id, index=0, text=self.id, completion_tokens=1)
        return Reply(completions=(text,), seconds=0.1)

    async def _stop(self) -> None:
        return None


def ticket(number: int, expert: str, **changes: Any) -> Ticket:
    return replace(Ticket(id=f"t{number}", expert=expert, rows=1, tokens=50), **changes)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a test's coroutine on an open pool."""

    def run(
        test: Callable[[OnlinePool, Slots], Awaitable[None]], slots: Slots | None = None, *, number: int = 1,
        max_wait_s: float = 60.0, max_queue: int = 8, experts: tuple[ExpertSpec, ...] = EXPERTS,
    ) -> None:  # fmt: skip
        stubs = slots or Slots()
        monkeypatch.setattr(slot_pool, "SlotActor", Method(stubs.make))
        engine = EngineSettings(kind="fake", max_attempts=2)
        config = PoolConfig(
            run_uri=str(tmp_path), epoch=1, started=0.0, experts=experts, engine=engine, places=anywhere(number)
        )

        async def main() -> None:
            pool = OnlinePool(config, Online(max_wait_s=max_wait_s), max_queue)
            await pool.open()
            await test(pool, stubs)

        asyncio.run(asyncio.wait_for(main(), 20))

    return run


async def granted(pool: OnlinePool, *tickets: Ticket) -> list[Grant | Refusal]:
    return list(await asyncio.gather(*(pool.reserve(t) for t in tickets)))


async def settle(pool: OnlinePool) -> None:
    """Let everything that can happen now happen, a decision that is due included."""
    for _ in range(50):
        await asyncio.sleep(0)
        while pool._deciding is not None:
            await asyncio.sleep(0)


def test_questions_that_arrive_together_share_a_load(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, slots: Slots) -> None:
        order = "ABABAB"
        waiting = [asyncio.create_task(pool.reserve(ticket(i, e))) for i, e in enumerate(order)]
        while not all(w.done() for w in waiting):
            await settle(pool)
            for i, w in enumerate(waiting):
                if w.done():
                    pool.release(f"t{i}", 10)
        assert [expert for _, expert in slots.loads] == ["A", "B"]

    play(test)


def test_where_there_is_a_slot_for_each_engine_nothing_is_swapped(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, slots: Slots) -> None:
        for round_ in range(4):
            tickets = [ticket(10 * round_ + i, e) for i, e in enumerate("ABCAAAAAA")]
            tasks = [asyncio.create_task(pool.reserve(t)) for t in tickets]
            while not all(t.done() for t in tasks):
                await settle(pool)
                for t, task in zip(tickets, tasks, strict=True):
                    if task.done():
                        pool.release(t.id, 5)
        assert sorted(expert for _, expert in slots.loads) == ["A", "B", "C"]

    play(test, number=3, max_queue=100)


def test_an_engine_takes_no_more_than_its_capacity(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, _: Slots) -> None:
        await granted(pool, ticket(0, "A"))
        waiting = [asyncio.create_task(pool.reserve(ticket(i, "A"))) for i in range(1, 7)]
        await settle(pool)
        assert sum(w.done() for w in waiting) == CAPACITY - 1
        pool.release("t0")
        await settle(pool)
        assert sum(w.done() for w in waiting) == CAPACITY

    play(test)


def test_an_engine_is_not_taken_away_under_its_work(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, slots: Slots) -> None:
        await granted(pool, ticket(0, "A"))
        other = asyncio.create_task(pool.reserve(ticket(1, "B")))
        await settle(pool)
        assert not other.done()
        assert [e for _, e in slots.loads] == ["A"]
        pool.release("t0", 10)
        assert isinstance(await other, Grant)
        assert [e for _, e in slots.loads] == ["A", "B"]

    play(test)


def test_who_has_waited_long_enough_gets_the_next_engine(play: Callable[..., None]) -> None:
    """The busy engine's queue is never empty, and yet B comes."""

    async def test(pool: OnlinePool, slots: Slots) -> None:
        await granted(pool, ticket(0, "A"))
        other, number = asyncio.create_task(pool.reserve(ticket(1, "B"))), 1
        late = asyncio.create_task(pool.reserve(ticket(2, "A")))
        while not slots.prepared:
            await asyncio.sleep(0.01)
            if late.done():  # one of A always runs
                pool.release(f"t{number}" if number > 1 else "t0", 1)
                number += 1
                late = asyncio.create_task(pool.reserve(ticket(number + 1, "A")))
        await settle(pool)
        assert not late.done(), "a slot that is promised to B takes no more for A"
        assert not other.done()
        pool.release(f"t{number}" if number > 1 else "t0", 1)
        assert isinstance(await other, Grant)
        late.cancel()

    play(test, max_wait_s=1.0)


def test_a_ticket_may_be_given_back_before_it_is_granted(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, slots: Slots) -> None:
        await granted(pool, ticket(0, "A"))
        other = asyncio.create_task(pool.reserve(ticket(1, "B")))
        await settle(pool)
        pool.release("t1")
        with pytest.raises(asyncio.CancelledError):
            await other
        pool.release("t0")
        pool.release("t0")
        await settle(pool)
        assert [e for _, e in slots.loads] == ["A"]
        assert all(q.waiting == q.running == 0 for q in (await pool.status()).queues)

    play(test)


def test_whoever_no_longer_waits_gives_the_place_back(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, slots: Slots) -> None:
        await granted(pool, *(ticket(i, "A") for i in range(CAPACITY)))
        same, other = (asyncio.create_task(pool.reserve(ticket(*t))) for t in ((10, "A"), (11, "B")))
        await settle(pool)
        pool.release("t0")
        same.cancel()  # it has been granted and has not heard of it
        other.cancel()
        await settle(pool)
        assert (same.cancelled(), other.cancelled()) == (True, True)
        assert [(q.waiting, q.running) for q in (await pool.status()).queues] == [(0, CAPACITY - 1), (0, 0), (0, 0)]
        assert [e for _, e in slots.loads] == ["A"]

    play(test)


def test_a_ticket_may_be_given_back_while_its_engine_loads(play: Callable[..., None]) -> None:
    held = asyncio.Event()

    async def load(expert: str) -> None:
        if expert == "A":
            await held.wait()

    async def test(pool: OnlinePool, _: Slots) -> None:
        task = asyncio.create_task(pool.reserve(ticket(0, "A")))
        await settle(pool)
        pool.release("t0")
        held.set()
        assert isinstance(await pool.reserve(ticket(1, "B")), Grant)
        task.cancel()
        running = {q.experts: q.running for q in (await pool.status()).queues}
        assert running == {("A",): 0, ("B",): 1, ("C",): 0}

    play(test, Slots(load=load))


def test_a_queue_has_a_bound(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, _: Slots) -> None:
        await granted(pool, *(ticket(i, "A") for i in range(CAPACITY)))
        tasks = [asyncio.create_task(pool.reserve(ticket(10 + i, "A"))) for i in range(3)]
        await settle(pool)
        refused = await pool.reserve(ticket(20, "A", rows=6))
        assert isinstance(refused, Refusal)
        assert refused.kind == "overloaded"
        for task in tasks:
            task.cancel()

    play(test)


def test_nobody_is_let_in_who_would_wait_too_long(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, _: Slots) -> None:
        assert pool.admit("A") is None
        await granted(pool, *(ticket(i, "A", tokens=4000) for i in range(CAPACITY)))
        tasks = [asyncio.create_task(pool.reserve(ticket(10 + i, "A", tokens=4000))) for i in range(500)]
        await settle(pool)
        refused = pool.admit("A")
        assert refused is not None
        assert (refused.kind, refused.retry_after_s > 0) == ("overloaded", True)
        for task in tasks:
            task.cancel()

    play(test, max_wait_s=1.0, max_queue=1000)


def test_an_engine_that_cannot_be_loaded_fails_its_own_questions_alone(play: Callable[..., None]) -> None:
    async def load(expert: str) -> None:
        if expert == "B":
            raise LoadError("out of memory")

    async def test(pool: OnlinePool, slots: Slots) -> None:
        first, second = await granted(pool, ticket(0, "B"), ticket(1, "A"))
        assert isinstance(first, Refusal)
        assert (first.kind, first.message) == ("load_failed", "out of memory")
        assert isinstance(second, Grant)
        assert [e for _, e in slots.loads].count("B") == 2
        refused = pool.admit("B")
        assert refused is not None
        assert refused.kind == "load_failed"

    play(test, Slots(load=load))


def test_after_an_engines_death_it_is_loaded_again(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, slots: Slots) -> None:
        await granted(pool, ticket(0, "A"))
        pool.release("t0", lost=True)
        await granted(pool, ticket(1, "A"))
        assert [e for _, e in slots.loads] == ["A", "A"]

    play(test)


@pytest.mark.parametrize("death", [ActorUnavailableError("it was killed", None), RestartedError()])
def test_a_slot_that_dies_is_revived_and_the_request_is_granted(play: Callable[..., None], death: Exception) -> None:
    deaths = iter([True])

    async def load(_: str) -> None:
        if next(deaths, False):
            raise death

    async def test(pool: OnlinePool, slots: Slots) -> None:
        assert isinstance(await pool.reserve(ticket(0, "A")), Grant)
        assert len(slots.loads) == 2
        assert (await pool.status()).crashes == 1

    play(test, Slots(load=load))


def asked(expert: str) -> Ask:
    message = Message(role="user", content="Why?")
    made = Request(
        id="r", question_id="q", expert=expert, messages=(message,), seed=7, n=1, sampling=Sampling(max_tokens=5)
    )
    return Ask(request=made)


@pytest.mark.parametrize("death", [ActorUnavailableError("it was killed", None), RestartedError()])
def test_a_slot_that_dies_before_it_answers_is_asked_again(play: Callable[..., None], death: Exception) -> None:
    async def test(pool: OnlinePool, slots: Slots) -> None:
        waits: list[str] = []
        engines = PoolEngines(pool, lambda expert, _: waits.append(expert))
        (reply,) = [came async for came in engines.ask(asked("A"))]
        assert isinstance(reply, Reply)
        assert (reply.completions[0].text, reply.completions[0].failure) == ("slot-0", None)
        assert waits == ["A", "A"]
        assert all(q.waiting == q.running == 0 for q in (await pool.status()).queues)

    play(test, Slots(answers=[death]))


def test_a_slot_that_dies_every_time_is_a_failure_of_the_request(play: Callable[..., None]) -> None:
    async def test(pool: OnlinePool, _: Slots) -> None:
        (reply,) = [came async for came in PoolEngines(pool, lambda *_: None).ask(asked("A"))]
        assert isinstance(reply, Reply)
        failure = reply.completions[0].failure
        assert failure is not None
        assert (failure.boundary, failure.kind) == ("slot", "engine_died")
        assert all(q.waiting == q.running == 0 for q in (await pool.status()).queues)

    play(test, Slots(answers=[RestartedError() for _ in range(3)]))


def test_whoever_is_refused_holds_no_place(play: Callable[..., None]) -> None:
    async def load(_: str) -> None:
        raise LoadError("out of memory")

    async def test(pool: OnlinePool, _: Slots) -> None:
        with pytest.raises(RefusedError, match="out of memory"):
            [came async for came in PoolEngines(pool, lambda *_: None).ask(asked("A"))]
        assert all(q.waiting == q.running == 0 for q in (await pool.status()).queues)

    play(test, Slots(load=load))


def test_adapters_over_one_base_share_its_engine(play: Callable[..., None]) -> None:
    base = ExpertSpec(name="A", model="org/base")
    experts = (base, replace(base, name="B", lora="org/adapter"))

    async def test(pool: OnlinePool, slots: Slots) -> None:
        first, second = await granted(pool, ticket(0, "A"), ticket(1, "B"))
        assert isinstance(first, Grant)
        assert isinstance(second, Grant)
        assert sorted(e for _, e in slots.loads) == ["A", "B"]
        (queue,) = (await pool.status()).queues
        assert (queue.experts, queue.running) == (("A", "B"), 2)

    play(test, experts=experts)
