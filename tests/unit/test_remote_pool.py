"""Pools with experts on servers elsewhere: their slots stand beside those with engines, each with work of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import slot_pool
from actors.engine_host import LoadError
from actors.online_pool import OnlinePool
from actors.online_state import Grant, Refusal
from actors.slot_pool import PoolConfig
from symoe_ray.core import ExpertSpec, RemoteServer
from symoe_ray.engine_facts import engine_facts
from symoe_ray.scheduling import Online
from symoe_ray.settings import EngineSettings
from symoe_ray.slot_places import anywhere
from tests.unit.test_online_pool import CAPACITY as SEATS
from tests.unit.test_online_pool import Slots, granted, settle, ticket
from tests.unit.test_pool import CAPACITY, EXPERTS, Log, Method, Rig, Script, StubSlot, chunks_of, once

A, B = EXPERTS["A"], replace(EXPERTS["B"], server=RemoteServer(base_url="http://server/v1", max_concurrency=3))
ALL_REMOTE = (replace(A, server=B.server), B)


@pytest.fixture(autouse=True)
def _on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool asks Ray which node it is on."""
    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(slot_pool.ray, "get_runtime_context", lambda: context)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    def make(*, slots: int = 1, experts: tuple[ExpertSpec, ...] = (A, B), **script: Any) -> Rig:
        made = Rig(
            PoolConfig(
                run_uri=str(tmp_path / "run"), epoch=1, started=0.0, experts=experts, places=anywhere(slots),
                engine=EngineSettings(kind="fake", max_attempts=2, max_num_seqs=CAPACITY),
            )
        )  # fmt: skip
        for name, tier in (("SlotActor", "spawn"), ("RemoteSlotActor", "remote")):
            actor = Method(lambda config, tier=tier: StubSlot(config, Script(tier=tier, **script), made.log))
            monkeypatch.setattr(slot_pool, name, actor)
        return made

    return make


def where(log: Log) -> set[tuple[str, str]]:
    """Which slots have worked for which experts."""
    return {(slot, chunk.expert) for slot, chunk in log.grants}


class TestBatch:
    @pytest.mark.parametrize("slots", [1, 2])
    def test_each_expert_is_asked_where_it_lives(self, slots: int, rig: Callable[..., Rig]) -> None:
        pool = rig(slots=slots)
        summary = pool.play(chunks_of(A=3, B=5), chunks_of(A=2, B=2))
        assert (summary.rows, summary.failed) == (40, 0)
        assert {(slot, expert) for slot, expert in where(pool.log) if expert == "B"} == {("remote-0", "B")}
        assert {slot.partition("-")[0] for slot, expert in where(pool.log) if expert == "A"} == {"slot"}

    def test_neither_is_swapped_out_for_the_other(self, rig: Callable[..., Rig]) -> None:
        pool = rig()
        pool.play(chunks_of(A=2, B=2), chunks_of(B=1), chunks_of(A=1, B=1))
        assert sorted(pool.log.loads) == [("remote-0", "B"), ("slot-0", "A")]

    def test_a_pool_of_servers_alone_has_no_slots(self, rig: Callable[..., Rig]) -> None:
        pool = rig(slots=0, experts=ALL_REMOTE)
        assert pool.play(chunks_of(A=2, B=2)).failed == 0
        assert pool.committed() == once(A=2, B=2)
        assert where(pool.log) == {("remote-0", "A"), ("remote-1", "B")}

    def test_a_server_that_is_down_fails_its_own_rows_alone(self, rig: Callable[..., Rig]) -> None:
        async def load(slot: StubSlot, _: str) -> None:
            if slot.id == "remote-0":
                raise LoadError("HTTP 503: down")

        pool = rig(load=load)
        summary = pool.play(chunks_of(A=2, B=2))
        assert (summary.rows, summary.failed) == (40, 20)
        assert {(chunk.expert, failure.message) for _, chunk, failure in pool.log.failed} == {("B", "HTTP 503: down")}

    def test_what_a_server_did_counts_in_no_slot_time(self, rig: Callable[..., Rig]) -> None:
        pool = rig()
        pool.play(chunks_of(A=2, B=2))
        events = [e for kind in ("load", "generate", "unload") for e in pool.events(kind)]
        facts = engine_facts(events)
        assert (facts["loads"], facts["tiers"]) == ({"A": 1}, {"spawn": 1})
        assert engine_facts([e for e in events if e["slot"] == "slot-0"])["generate_s"] == facts["generate_s"]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a test's coroutine on an open pool of one slot, and servers."""

    def run(test: Callable[[OnlinePool, Slots], Awaitable[None]], slots: Slots | None = None) -> None:
        stubs = slots or Slots()
        monkeypatch.setattr(slot_pool, "SlotActor", Method(stubs.make))
        monkeypatch.setattr(slot_pool, "RemoteSlotActor", Method(stubs.make))
        config = PoolConfig(
            run_uri=str(tmp_path), epoch=1, started=0.0, experts=(A, B, replace(A, name="C", model="org/C")),
            engine=EngineSettings(kind="fake", max_attempts=2), places=anywhere(1),
        )  # fmt: skip

        async def main() -> None:
            pool = OnlinePool(config, Online(max_wait_s=60.0), 8)
            await pool.open()
            await test(pool, stubs)

        asyncio.run(asyncio.wait_for(main(), 20))

    return run


class TestOnline:
    def test_a_server_is_asked_while_the_slot_is_taken(self, play: Callable[..., None]) -> None:
        async def test(pool: OnlinePool, slots: Slots) -> None:
            (first,) = await granted(pool, ticket(0, "A"))
            elsewhere = await granted(pool, ticket(1, "B"), ticket(2, "B"))
            assert isinstance(first, Grant)
            assert {g.slot for g in elsewhere if isinstance(g, Grant)} == {"remote-0"}
            waiting = asyncio.create_task(pool.reserve(ticket(3, "C")))
            await settle(pool)
            assert not waiting.done()
            assert slots.loads == [("slot-0", "A"), ("remote-0", "B")]
            waiting.cancel()

        play(test)

    def test_no_more_are_let_through_than_the_server_is_to_have(self, play: Callable[..., None]) -> None:
        async def test(pool: OnlinePool, _: Slots) -> None:
            waiting = [asyncio.create_task(pool.reserve(ticket(i, "B"))) for i in range(6)]
            await settle(pool)
            assert sum(w.done() for w in waiting) == SEATS
            pool.release("t0", 10)
            await settle(pool)
            assert sum(w.done() for w in waiting) == SEATS + 1
            for w in waiting:
                w.cancel()

        play(test)

    def test_a_server_that_is_down_is_said_and_the_others_are_served(self, play: Callable[..., None]) -> None:
        async def load(expert: str) -> None:
            if expert == "B":
                raise LoadError("HTTP 503: down")

        async def test(pool: OnlinePool, _: Slots) -> None:
            refused, served = await granted(pool, ticket(0, "B"), ticket(1, "A"))
            assert isinstance(refused, Refusal)
            assert (refused.kind, refused.message) == ("load_failed", "HTTP 503: down")
            assert isinstance(served, Grant)

        play(test, Slots(load=load))
