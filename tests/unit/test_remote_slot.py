"""The slot of an expert on a server elsewhere, over a real HTTP server: samples, failures, outages, parts, streams."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from actors.engine_host import LoadError
from actors.remote_check import look_at_server
from actors.remote_slot import OUTAGE, RemoteSlot
from actors.slot import SlotConfig
from symoe_ray.core import ExpertSpec, Message, RemoteServer, Request, Sampling
from symoe_ray.engine_room import Room
from symoe_ray.ledger import Chunk, Part
from symoe_ray.serving.asking import Ask, Grown, Reply
from symoe_ray.settings import EngineSettings
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, request_row, table_of
from tests.unit.scripted_server import Action, Server, answer, hang, piece, refusal, reply, scripted, stream
from tests.unit.test_remote_client import Time

KEY, VARIABLE = "sk-secret-1234", "SYMOE_TEST_KEY"
WARM, GREEDY = "Warm", "Greedy"


def request_of(expert: str = WARM, number: int = 0, *, n: int = 1) -> Request:
    return Request(
        id=f"r{number}", question_id=f"q{number}", expert=expert, messages=(Message(role="user", content="Why?"),),
        sampling=Sampling(temperature=0.0 if expert == GREEDY else 0.7, max_tokens=50), seed=100, n=n,
    )  # fmt: skip


def experts_of(server: RemoteServer) -> tuple[ExpertSpec, ...]:
    warm = ExpertSpec(name=WARM, model="model", server=server)
    return warm, replace(warm, name=GREEDY, sampling=Sampling(temperature=0))


def play(
    tmp_path: Path, script: Iterable[Action], work: Callable[[RemoteSlot, Server], Awaitable[None]], **changes: Any
) -> None:
    """Do something with a slot whose server follows a script."""

    async def whole() -> None:
        async with scripted(iter(script)) as server:
            settings = RemoteServer(base_url=server.url, retries=1, timeout_s=60.0)
            config = SlotConfig(
                id="remote-0", index=0, slots=1, run_uri=str(tmp_path), epoch=1, engine=EngineSettings(kind="openai"),
                experts=experts_of(replace(settings, **changes)),
            )  # fmt: skip
            slot = RemoteSlot(config, Time().clock())
            try:
                await work(slot, server)
            finally:
                await slot.stop()

    asyncio.run(asyncio.wait_for(whole(), 20))


def chunk_of(tmp_path: Path, *requests: Request) -> Chunk:
    """A chunk with these requests, in the run's folder."""
    path = f"requests/answer/expert={WARM}/part-0.parquet"
    Storage(str(tmp_path)).write_table(path, table_of([request_row(r, 0, 0) for r in requests], REQUESTS))
    return Chunk(
        id="c", stage="answer", expert=WARM, path=path, start=0, stop=len(requests), rows=len(requests), tokens=100
    )


class TestLoading:
    def test_a_server_that_answers_is_all_there_is_to_load(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, server: Server) -> None:
            assert await slot.resolve([WARM]) == {}
            loaded = await slot.load(WARM)
            assert (loaded.tier, loaded.bytes, loaded.room) == ("remote", 0, Room(8))
            assert server.listed == 2
            assert server.headers[0]["authorization"] == f"Bearer {KEY}"

        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(VARIABLE, f" {KEY}\n")
            play(tmp_path, [], work, api_key_env=VARIABLE)

    @pytest.mark.parametrize(
        ("models", "problem"),
        [
            (reply(200, {"data": [{"id": "a"}, {"id": "b"}]}), "there is no model 'model'; there are a, b"),
            (refusal(500, "oops"), "HTTP 500: oops"),
            (refusal(401, "who are you"), "HTTP 401: who are you"),
        ],
    )
    def test_what_is_in_the_way_is_said(self, tmp_path: Path, models: Action, problem: str) -> None:
        async def work(slot: RemoteSlot, server: Server) -> None:
            server.models = models
            assert await slot.resolve([WARM, GREEDY]) == dict.fromkeys([WARM, GREEDY], f"{server.url}: {problem}")
            with pytest.raises(LoadError, match=problem):
                await slot.load(WARM)

        play(tmp_path, [], work)

    @pytest.mark.parametrize(("value", "problem"), [(None, "is not set"), ("two words", "holds no usable key")])
    def test_a_key_that_is_not_there_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, problem: str
    ) -> None:
        monkeypatch.setenv(VARIABLE, value or "")
        if value is None:
            monkeypatch.delenv(VARIABLE)

        async def work(slot: RemoteSlot, _: Server) -> None:
            problems = await slot.resolve([WARM])
            assert f"environment variable {VARIABLE} {problem}" in problems[WARM]
            assert "two words" not in problems[WARM]

        play(tmp_path, [], work, api_key_env=VARIABLE)

    def test_the_doctor_looks_once(self) -> None:
        async def main(models: Action) -> tuple[bool, str]:
            async with scripted(iter([])) as server:
                server.models = models
                spec = experts_of(RemoteServer(base_url=server.url))[0]
                finding = await asyncio.to_thread(look_at_server, spec)
                assert server.listed == 1
                return finding.fine, finding.value.replace(server.url, "URL")

        listed = reply(200, {"data": [{"id": "model"}]})
        assert asyncio.run(main(listed)) == (True, "model at URL: answers, 8 requests at once")
        assert asyncio.run(main(refusal(503, "busy"))) == (False, "model at URL: HTTP 503: busy")


class TestAnswering:
    def test_samples_are_asked_for_one_by_one_and_their_prompts_add_up(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, server: Server) -> None:
            made = await slot.answer(Ask(request=replace(request_of(n=2), first_sample=3)))
            assert sorted(c.text for c in made.completions) == ["one", "two"]
            assert [c.index for c in made.completions] == [3, 4]
            assert sorted(b["seed"] for b in server.bodies) == [103, 104]
            assert (made.prompt_tokens, made.completion_tokens) == (14, 6)
            assert (await slot.progress())[0] == 6

        play(tmp_path, [answer("one"), answer("two")], work)

    def test_a_greedy_sample_is_asked_for_once(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, server: Server) -> None:
            made = await slot.answer(Ask(request=request_of(GREEDY, n=3)))
            assert [c.text for c in made.completions] == ["same"] * 3
            assert (made.prompt_tokens, made.completion_tokens, len(server.bodies)) == (7, 3, 1)

        play(tmp_path, [answer("same")], work)

    def test_a_streamed_answer_grows(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, _: Server) -> None:
            *grown, last = [came async for came in slot.ask(Ask(request=request_of(), stream=True))]
            assert "".join(text for g in grown if isinstance(g, Grown) for _, text in g.texts) == "a b"
            assert isinstance(last, Reply)
            assert last.completions[0].text == "a b"

        play(tmp_path, [stream(piece("a "), piece("b", "stop"))], work)

    def test_a_caller_that_goes_away_has_the_server_stop(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, server: Server) -> None:
            asking = asyncio.create_task(slot.answer(Ask(request=request_of())))
            while not server.now:
                await asyncio.sleep(0.01)
            assert (await slot.measure()).running == 1
            asking.cancel()
            await asyncio.wait([asking])
            assert (await slot.measure()).running == 0

        play(tmp_path, [hang], work)


class TestFailing:
    def test_a_sample_that_fails_leaves_the_others(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, _: Server) -> None:
            made = await slot.answer(Ask(request=request_of(n=2)))
            (failed,) = [c for c in made.completions if c.failure is not None]
            assert failed.failure is not None
            assert (failed.failure.boundary, failed.failure.kind) == ("server", "bad_request")
            assert (failed.failure.retryable, failed.failure.attempt) == (False, 1)
            assert [c.text for c in made.completions if c.failure is None] == ["fine"]

        play(tmp_path, [refusal(400, "top_k is not known"), answer("fine")], work, max_concurrency=1)

    def test_a_chunk_becomes_a_part_with_its_failures(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, _: Server) -> None:
            chunk = chunk_of(tmp_path, *(request_of(number=i, n=2) for i in range(2)))
            parts = [came async for came in slot.generate(chunk, "000001") if isinstance(came, Part)]
            (part,) = parts
            assert (part.requests, part.samples, part.failed, part.done) == (2, 4, 1, (0, 1))
            assert (part.prompt_tokens, part.completion_tokens) == (21, 9)
            rows = pq.read_table(tmp_path / part.path, partitioning=None).to_pylist()
            (failure,) = [r["failure"] for r in rows if r["failure"] is not None]
            assert (failure["kind"], failure["message"]) == ("server_error", "HTTP 500: oops")

        script = [answer(), answer(), answer(), refusal(500, "oops"), refusal(500, "oops")]
        play(tmp_path, script, work, max_concurrency=1)

    def test_a_server_that_answers_nothing_is_an_outage_and_not_the_rows_fault(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, server: Server) -> None:
            for number in range(OUTAGE - 1):
                (made,) = await slot._attempt(request_of(number=number), 1)
                assert made.failure is not None
            with pytest.raises(LoadError, match=f"{OUTAGE} requests in a row have no answer; the last: HTTP 500"):
                await slot._attempt(request_of(), 1)

        play(tmp_path, itertools.repeat(refusal(500)), work)

    def test_one_answer_ends_an_outage_and_refusals_are_none(self, tmp_path: Path) -> None:
        async def work(slot: RemoteSlot, _: Server) -> None:
            for number in range(3 * OUTAGE):
                await slot._attempt(request_of(number=number), 1)

        bad = [refusal(500)] * 2 * (OUTAGE - 1)
        play(tmp_path, [*bad, answer(), *bad, refusal(400), *bad, *[refusal(400)] * 20], work)
