"""Every way to an expert leads to the same tokens, on real vLLM engines with tiny models in float32."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actors.engine_host import EngineHost
from actors.models import prepared_folder
from symoe_ray.core import Completion
from tests.engine.conftest import HOST, SETTINGS, Engines, plan, plans, prepared, request

pytestmark = pytest.mark.real_engine

# The last one fills several blocks of the KV cache, which the weights before must not have left to those after.
PROMPTS = ("Hello", "What is seven times six?", "one two three four " * 25)
BASE, LORA_A, LORA_B = (
    prepared("base", model="package:tiny-llama"),
    prepared("a", model="package:tiny-llama", lora="package:tiny-llama-lora-a"),
    prepared("b", model="package:tiny-llama", lora="package:tiny-llama-lora-b"),
)


async def greedy(host: EngineHost, lora: str = "", prompts: Sequence[str] = PROMPTS) -> list[str]:
    """The greedy answers to some prompts, one prompt after another."""
    return [text_of(await host.generate(request(p, temperature=0.0), lora)) for p in prompts]


def text_of(samples: list[Completion]) -> str:
    (sample,) = samples
    assert sample.failure is None
    return sample.text


def test_weights_of_the_same_shape_are_reloaded_and_answer_as_fresh_ones(engines: Engines, tmp_path: Path) -> None:
    async def work(host: EngineHost) -> None:
        fresh, reports = {}, []
        for name in ("tiny-llama", "tiny-llama-b"):
            reports.append(await host.load(plan(name)))
            fresh[name] = await greedy(host)
        assert not set(fresh["tiny-llama"]) & set(fresh["tiny-llama-b"])
        for name in ("tiny-llama", "tiny-llama-b", "tiny-llama"):
            reports.append(await host.load(plan(name)))
            assert await greedy(host) == fresh[name]
        assert [r.tier for r in reports] == ["fork", "fork", "reload", "reload", "reload"]
        assert {r.note for r in reports} == {""}
        assert {r.pid for r in reports[1:]} == {reports[1].pid}

    with engines.another_host(tmp_path) as host:
        engines.run(work(host))


def test_an_engine_whose_requests_were_cancelled_can_be_reloaded(engines: Engines, tmp_path: Path) -> None:
    async def work(host: EngineHost) -> None:
        for name in ("tiny-llama", "tiny-llama-b"):
            await host.load(plan(name))
        long = [asyncio.create_task(host.generate(request(f"{i}", max_tokens=400))) for i in range(4)]
        await host.generate(request("short", max_tokens=1))
        for task in long:
            task.cancel()
        await asyncio.wait(long)
        report = await host.load(plan("tiny-llama"))
        assert (report.tier, report.note) == ("reload", "")

    with engines.another_host(tmp_path) as host:
        engines.run(work(host))


def perturbed(name: str, folder: Path, seed: int) -> Path:
    """A copy of a prepared model with noise in every weight."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(prepared_folder(name), folder)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: (value.float() + 0.2 * torch.randn(value.shape, generator=generator)).to(value.dtype)
        for key, value in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_tied_embeddings_are_never_reloaded_into_wrong_tokens(engines: Engines, tmp_path: Path) -> None:
    """On the CPU vLLM 0.32 keeps the packed copy of the old weights and says nothing."""
    folders = {name: str(perturbed("tiny-qwen3", tmp_path / name, seed)) for seed, name in enumerate("xy")}
    tied = plans([prepared(name, model=folder) for name, folder in folders.items()])
    assert {p.shape for p in tied.values()} == {""}
    forced = {name: replace(p, shape="forced", canary=name) for name, p in tied.items()}

    async def work(host: EngineHost) -> None:
        fresh = {}
        for name in "xy":
            await host.load(forced[name])
            fresh[name] = await greedy(host)
        report = await host.load(forced["x"])
        assert (report.tier, report.note) == ("fork", "reload: the canary differs from that of a fresh engine")
        assert await greedy(host) == fresh["x"] != fresh["y"]

    with engines.another_host(tmp_path / "canaries") as host:
        engines.run(work(host))


def test_adapters_and_their_base_share_an_engine_and_a_batch(engines: Engines, tmp_path: Path) -> None:
    """Rows without an adapter beside rows with one: https://github.com/vllm-project/vllm/issues/48421"""
    family = plans([BASE, LORA_A, LORA_B])
    assert len({p.key for p in family.values()}) == 1

    async def work(host: EngineHost) -> None:
        await host.load(plan("tiny-llama"))
        plain = await greedy(host)
        await host.load(family["a"])
        alone = {lora: await greedy(host, lora) for lora in ("", "a", "b")}
        assert alone[""] == plain
        assert not set(alone["a"]) & set(alone["b"])
        assert not set(plain) & {*alone["a"], *alone["b"]}
        rows = [(lora, prompt) for prompt in PROMPTS[:2] for lora in ("a", "", "b")]
        made = await asyncio.gather(*(host.generate(request(p, temperature=0.0), lora) for lora, p in rows))
        assert [text_of(each) for each in made] == [alone[lora][PROMPTS.index(p)] for lora, p in rows]
        (unknown,) = await host.generate(request("Hello"), "c")
        assert unknown.failure is not None
        assert unknown.failure.kind == "bad_request"

    with engines.another_host(tmp_path) as host:
        engines.run(work(host))


def test_an_engine_that_slept_answers_as_before(engines: Engines, tmp_path: Path) -> None:
    """On the CPU vLLM's sleep keeps everything where it is: this is the way there and back."""
    pool = plans([prepared("tiny-llama"), prepared("tiny-qwen2")], replace(SETTINGS, max_sleeping=1))

    async def work(host: EngineHost) -> None:
        first = await host.load(pool["tiny-llama"])
        before = await greedy(host)
        await host.load(pool["tiny-qwen2"])
        assert host.asleep == [pool["tiny-llama"].key]
        report = await host.load(pool["tiny-llama"])
        assert (report.tier, report.note, report.pid) == ("wake", "", first.pid)
        assert await greedy(host) == before

    with engines.another_host(tmp_path, replace(HOST, max_sleeping=1)) as host:
        engines.run(work(host))


def test_an_engine_starts_beside_one_that_generates_and_takes_over(engines: Engines, tmp_path: Path) -> None:
    async def work(host: EngineHost) -> None:
        await host.load(plan("tiny-qwen2"))
        fresh = await greedy(host)
        first = await host.load(plan("tiny-llama"))
        alone = text_of(await host.generate(request("long", max_tokens=300, temperature=0.0)))
        under_way = asyncio.create_task(host.generate(request("long", max_tokens=300, temperature=0.0)))
        others = asyncio.create_task(host.generate(request("others", n=7, max_tokens=20)))
        await asyncio.sleep(0)
        assert await host.prepare(plan("tiny-qwen2"), below=8) == ""
        assert others.done()
        assert not under_way.done()
        assert text_of(await under_way) == alone
        report = await host.load(plan("tiny-qwen2"))
        assert (report.tier, report.beside, report.note) == ("fork", True, "")
        assert report.pid != first.pid
        assert await greedy(host) == fresh

    with engines.another_host(tmp_path) as host:
        engines.run(work(host))


def test_a_reload_that_fails_gives_the_engine_up(engines: Engines, tmp_path: Path) -> None:
    async def work(host: EngineHost) -> None:
        for name in ("tiny-llama-b", "tiny-llama"):
            await host.load(plan(name))
        other = replace(plan("tiny-qwen2"), shape=plan("tiny-llama").shape, canary=plan("tiny-llama-b").canary)
        report = await host.load(other)  # its tensors do not fit
        assert report.tier == "fork"
        assert report.note.startswith("reload: ")
        assert host.key == other.key

    with engines.another_host(tmp_path) as host:
        engines.run(work(host))
