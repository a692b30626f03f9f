"""What a slot's engine promises, on real vLLM engines with tiny models."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from actors.engine_host import EngineDiedError, EngineHost, LoadError
from actors.engine_plans import EnginePlans
from actors.launcher import ForkLauncher, LaunchError, SpawnLauncher
from actors.platform import engine_environment
from tests.engine.conftest import HOST, SETTINGS, Engines, plan, prepared, request

pytestmark = pytest.mark.real_engine


def test_experts_are_swapped_by_fork_and_answer(engines: Engines) -> None:
    for name in ("tiny-qwen2", "tiny-llama", "tiny-qwen2"):
        report = engines.load(name)
        assert (report.tier, report.note) == ("fork", "")
        (done,) = engines.run(engines.host.generate(request("Hello", max_tokens=5, temperature=0.0)))
        assert done.failure is None
        assert 1 <= done.completion_tokens <= 5
        assert done.prompt_tokens > 0


def test_an_engine_says_how_much_fits_into_its_cache_as_was_computed_before(engines: Engines) -> None:
    for name in ("tiny-qwen2", "tiny-llama"):
        report = engines.load(name)
        room = EnginePlans([prepared(name)], SETTINGS, cores=(), cuda=False).facts(name).room
        assert room is not None
        assert room.max_num_seqs == report.max_num_seqs == 8
        assert report.kv_tokens == pytest.approx(room.kv_tokens, rel=0.02)


def test_a_missing_sample_made_alone_is_the_one_made_in_a_batch(engines: Engines) -> None:
    engines.loaded("tiny-llama")
    together = engines.run(engines.host.generate(request("Tell me something", n=3, temperature=1.0)))
    alone = engines.run(engines.host.generate(request("Tell me something", first_sample=1, temperature=1.0)))
    assert [c.index for c in together] == [0, 1, 2]
    assert len({c.text for c in together}) == 3
    assert [c.index for c in alone] == [1]
    assert alone[0].text == together[1].text


def test_greedy_samples_are_generated_once_and_copied(engines: Engines) -> None:
    """vLLM refuses n > 1 at temperature 0."""
    engines.loaded("tiny-llama")
    samples = engines.run(engines.host.generate(request("Hello", n=3, temperature=0.0)))
    assert [c.index for c in samples] == [0, 1, 2]
    assert len({c.text for c in samples}) == 1
    assert [c.failure for c in samples] == [None] * 3
    assert [c.completion_tokens > 0 for c in samples] == [True, False, False]


def test_bad_requests_fail_alone(engines: Engines) -> None:
    engines.loaded("tiny-llama")

    async def mixed() -> list[str]:
        requests = [
            request("word " * 600),  # 600 tokens or more in a context of 512
            request("fine", temperature=-1.0),
            request("fine"),
        ]
        answers = await asyncio.gather(*(engines.host.generate(r) for r in requests))
        return [a[0].failure.kind if a[0].failure else "" for a in answers]

    assert engines.run(mixed()) == ["prompt_too_long", "bad_request", ""]


def test_an_answer_is_cut_to_what_the_context_leaves(engines: Engines) -> None:
    engines.loaded("tiny-llama")
    (done,) = engines.run(engines.host.generate(request("word " * 470, max_tokens=4096, temperature=0.0)))
    assert done.failure is None
    assert done.prompt_tokens + done.completion_tokens <= 512


def test_long_seeded_prompts_do_not_kill_the_engine(engines: Engines) -> None:
    """Together they exceed a step's token budget: vLLM 0.32 dies on the CPU when it splits a seeded prompt."""
    engines.loaded("tiny-llama")

    async def many() -> list[str]:
        requests = [request(f"{i} " + "word " * 400, max_tokens=2) for i in range(16)]
        answers = await asyncio.gather(*(engines.host.generate(r) for r in requests))
        return [a[0].failure.kind if a[0].failure else "" for a in answers]

    assert engines.run(many()) == [""] * 16


def test_a_cancelled_request_is_aborted_on_the_engine(engines: Engines) -> None:
    engines.loaded("tiny-llama")

    async def cancel_one() -> tuple[int, int]:
        endless = asyncio.create_task(engines.host.generate(request("long", max_tokens=400, temperature=1.0)))
        await engines.host.generate(request("short", max_tokens=1))
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        (after,) = await engines.host.generate(request("after", max_tokens=1))
        return engines.host.tokens, after.completion_tokens

    before = engines.host.tokens
    tokens, after = engines.run(cancel_one())
    assert after == 1
    assert tokens - before < 400


def test_a_killed_engine_is_an_error_at_once_and_can_be_replaced(engines: Engines) -> None:
    report = engines.load("tiny-qwen2")

    async def kill_at_work() -> None:
        work = asyncio.create_task(engines.host.generate(request("long", max_tokens=400)))
        await engines.host.generate(request("short", max_tokens=1))
        os.kill(report.pid, signal.SIGKILL)
        await asyncio.wait_for(work, 20)

    with pytest.raises(EngineDiedError, match="signal 9"):
        engines.run(kill_at_work())
    assert not engines.host.alive
    assert engines.load("tiny-qwen2").tier == "fork"
    assert engines.run(engines.host.generate(request("again")))[0].failure is None


def test_an_engine_ends_with_its_zygote_and_the_next_one_has_a_new_one(engines: Engines) -> None:
    report = engines.load("tiny-llama")
    zygote = int(Path(f"/proc/{report.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(zygote, signal.SIGKILL)
    with pytest.raises(EngineDiedError):
        engines.run(asyncio.wait_for(engines.host.generate(request("lost", max_tokens=400)), 20))
    assert engines.load("tiny-llama").tier == "fork"


def test_a_model_that_is_not_there_is_a_load_error_that_names_each_tier(engines: Engines, tmp_path: Path) -> None:
    here = plan("tiny-llama")
    nowhere = replace(here, frame=structs.replace(here.frame, args=here.frame.args | {"model": str(tmp_path)}))
    with engines.another_host(tmp_path) as host, pytest.raises(LoadError, match="fork: "):
        engines.run(host.load(nowhere))


def test_where_forking_is_not_safe_the_engine_is_spawned_and_the_report_says_why(
    engines: Engines, tmp_path: Path
) -> None:
    environment = engine_environment(offline=True)
    threaded = ForkLauncher({**environment, "OPENBLAS_NUM_THREADS": "2"}, str(tmp_path / "zygote.log"))
    spawn = SpawnLauncher("actors.engine", environment, str(tmp_path / "spawn.log"))
    if os.cpu_count() == 1:
        pytest.skip("OpenBLAS starts no threads on a single core")
    with pytest.raises(LaunchError, match="threads"):
        engines.run(threaded.launch())
    host = EngineHost([threaded, spawn], HOST)
    report = engines.run(host.load(plan("tiny-llama")))
    assert report.tier == "spawn"
    assert "threads" in report.note
    assert engines.run(host.generate(request("hello")))[0].failure is None
    engines.run(host.close())
