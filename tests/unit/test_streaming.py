"""Streaming on its way from an engine process to whoever asked a slot: whole, in order, and given up when unwanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine import _Partial
from actors.engine_host import EngineHost, HostSettings
from actors.gate import Gate
from actors.launcher import SpawnLauncher
from actors.protocol import Delta, Generate, LoadEngine
from actors.slot import Slot, SlotConfig
from symoe_ray.core import ExpertSpec, Message, Request, Sampling
from symoe_ray.serving.asking import Ask, Grown, Growth, Reply
from symoe_ray.settings import EngineSettings
from symoe_ray.testing import CRASH, fake_text
from tests.unit.test_launcher import planned, request

TIMEOUT_S = 30.0
SPEC = ExpertSpec(name="A", model="org/a")


def ask_of(content: str = "Why?", *, n: int = 1, stream: bool = True) -> Ask:
    """A request to A."""
    made = Request(
        id="r", question_id="q", expert="A", messages=(Message(role="user", content=content),), seed=7, n=n,
        sampling=Sampling(),
    )  # fmt: skip
    return Ask(request=made, stream=stream)


def play(tmp_path: Path, work: Callable[[Slot, EngineHost], Awaitable[None]], tokens_per_s: float = 500.0) -> None:
    """Do something with a slot that has A's engine, a real process without a model."""

    async def whole() -> None:
        (tmp_path / "manifest.json").write_text("{}")
        engine = EngineSettings(kind="fake", fake_tokens_per_s=tokens_per_s, max_attempts=2)
        slot = Slot(
            SlotConfig(id="s", index=0, slots=1, run_uri=str(tmp_path), epoch=1, experts=(SPEC,), engine=engine)
        )
        host = EngineHost(
            [SpawnLauncher("actors.fake_engine", {}, str(tmp_path / "log"))],
            HostSettings(load_timeout_s=TIMEOUT_S, stall_timeout_s=TIMEOUT_S),
        )
        slot._host = host
        try:
            await slot.load("A")
            await work(slot, host)
        finally:
            await slot.stop()

    asyncio.run(asyncio.wait_for(whole(), 2 * TIMEOUT_S))


async def all_of(slot: Slot, ask: Ask) -> tuple[list[Grown], Reply]:
    *grown, reply = [came async for came in slot.ask(ask)]
    assert isinstance(reply, Reply)
    return [g for g in grown if isinstance(g, Grown)], reply


class TestSlot:
    def test_what_grows_adds_up_to_the_reply(self, tmp_path: Path) -> None:
        async def work(slot: Slot, _: EngineHost) -> None:
            grown, reply = await all_of(slot, ask_of(n=2))
            texts = {c.index: c.text for c in reply.completions}
            assert texts == {i: fake_text(SPEC.engine_key, "Why?", 7 + i) for i in range(2)}
            told: dict[int, str] = {}
            for growth in grown:
                for index, text in growth.texts:
                    told[index] = told.get(index, "") + text
            assert all(texts[i].startswith(told.get(i, "")) for i in texts)
            assert len(grown) > 1

        play(tmp_path, work, tokens_per_s=100.0)

    def test_what_is_not_streamed_comes_in_one_piece(self, tmp_path: Path) -> None:
        async def work(slot: Slot, _: EngineHost) -> None:
            reply = await slot.answer(ask_of(stream=False))
            assert reply.completion_tokens == len(reply.completions[0].text.split())

        play(tmp_path, work)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_caller_that_goes_away_has_the_engine_stop(self, tmp_path: Path, stream: bool) -> None:
        async def work(slot: Slot, host: EngineHost) -> None:
            ask = ask_of(stream=stream)
            waiting = asyncio.create_task(anext(slot.ask(ask)) if stream else slot.answer(ask))  # type: ignore[arg-type]
            while (await slot.measure()).running != 1:
                pass
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            while (await slot.measure()).running:
                pass
            assert host.deaths == []

        play(tmp_path, work, tokens_per_s=0.001)

    def test_a_request_that_kills_its_engine_is_a_failure_and_the_next_one_is_answered(self, tmp_path: Path) -> None:
        async def work(slot: Slot, host: EngineHost) -> None:
            _, reply = await all_of(slot, ask_of(CRASH))
            assert [c.failure and c.failure.kind for c in reply.completions] == ["engine_died"]
            assert len(host.deaths) == 2
            _, reply = await all_of(slot, ask_of())
            assert reply.completions[0].failure is None

        play(tmp_path, work)


def test_growth_is_merged_while_nobody_asks() -> None:
    growth = Growth()
    for sample, text in ((0, "a"), (1, "x"), (0, "b")):
        growth.add([(sample, text)])
    assert growth.take() == ((0, "ab"), (1, "x"))
    assert growth.take() == ()
    assert growth.begun


def test_a_host_tells_what_a_streamed_request_grows_by(tmp_path: Path) -> None:
    async def work() -> None:
        host = EngineHost(
            [SpawnLauncher("actors.fake_engine", {}, str(tmp_path / "log"))],
            HostSettings(load_timeout_s=TIMEOUT_S, stall_timeout_s=TIMEOUT_S),
        )
        told: list[tuple[int, str]] = []
        try:
            await host.load(planned("A", tokens_per_s=500))
            (answer,) = await host.generate(request(), on_delta=told.extend)
        finally:
            await host.close()
        assert answer.text.startswith("".join(text for _, text in told).rstrip())
        assert len(told) > 1

    asyncio.run(asyncio.wait_for(work(), TIMEOUT_S))


class TestPartial:
    @staticmethod
    def delta(index: int, text: str, tokens: int, reason: str | None = None) -> Any:
        return SimpleNamespace(index=index, text=text, token_ids=[1] * tokens, finish_reason=reason)

    def test_deltas_add_up_whatever_order_samples_end_in(self) -> None:
        partial = _Partial()
        partial.add([self.delta(1, "so ", 1), self.delta(0, "it ", 1)])
        partial.add([self.delta(1, "", 1, "stop")])
        partial.add([self.delta(0, "is", 2, "length")])
        made = [(s.index, s.text, len(s.token_ids), s.finish_reason) for s in partial.samples()]
        assert made == [(0, "it is", 3, "length"), (1, "so ", 2, "stop")]


class TestFakeEngine:
    def test_words_are_streamed_as_they_would_be_written(self) -> None:
        from actors.fake_engine import _FakeEngine

        engine = _FakeEngine(LoadEngine(args={}, fake={"expert": "A", "tokens_per_s": 1e6}))
        frame = Generate(
            tag="t", messages=[{"role": "user", "content": "Why?"}], n=1, first_sample=3, seed=7, temperature=0.7,
            top_p=1.0, top_k=0, max_tokens=4, repetition_penalty=1.0, stream=True,
        )  # fmt: skip
        engine.take(frame)
        frames = []
        while engine.running or engine.pause_s() is not None:
            frames += engine.step()
        texts = [t for f in frames if isinstance(f, Delta) for t in f.texts]
        assert {index for index, _ in texts} == {3}
        assert len(texts) == 4


def test_one_that_wants_to_be_alone_is_not_kept_out_by_newcomers() -> None:
    async def work() -> list[str]:
        gate, order, leave = Gate(), [], asyncio.Event()

        async def enter(name: str, *, alone: bool) -> None:
            async with gate.enter(alone=alone):
                order.append(name)
                if name == "first":
                    await leave.wait()

        tasks = []
        for name, alone in (("first", False), ("alone", True), ("newcomer", False)):
            tasks.append(asyncio.create_task(enter(name, alone=alone)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(asyncio.wait_for(work(), TIMEOUT_S)) == ["first", "alone", "newcomer"]
