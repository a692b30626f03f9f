"""What is done to start engines faster changes nothing about their answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.engine_host import EngineHost
from actors.launcher import ForkLauncher, Launcher, SpawnLauncher
from actors.models import prepared_folder
from actors.platform import engine_environment
from actors.protocol import Ready, encode, read_frame
from actors.vllm_patches import fresh_zeros
from symoe_ray.core import Completion
from tests.engine.conftest import HOST, plans, prepared, request

pytestmark = pytest.mark.real_engine
TIED = ("tiny-gemma2", "tiny-qwen3")  # their embedding table is the output layer, too


@pytest.fixture
def environment() -> dict[str, str]:
    if not prepared_folder("tiny-llama").is_dir():
        pytest.skip("package:tiny-llama is not prepared (make setup)")
    return engine_environment(offline=True)


async def answers(launcher: Launcher, *names: str) -> list[list[Completion]]:
    """Greedy answers of prepared models, each loaded through this launcher alone."""
    host = EngineHost([launcher], HOST)
    try:
        found = []
        for name in names:
            await host.load(plans([prepared(name)])[name])
            prompts = ("Hello", "Tell me something")
            found += await asyncio.gather(*(host.generate(request(p, temperature=0.0)) for p in prompts))
        return found
    finally:
        await host.close()


@pytest.mark.slow
def test_engines_answer_alike_with_and_without_the_changes_to_vllm(environment: dict[str, str], tmp_path: Path) -> None:
    log = str(tmp_path / "engine.log")
    names = ("tiny-llama", *TIED)
    plain = asyncio.run(answers(SpawnLauncher("tests.engine.unpatched_engine", environment, log), *names))
    changed = asyncio.run(answers(ForkLauncher(environment, log), *names))
    assert all(c.failure is None and c.completion_tokens > 0 for (c,) in plain)
    assert changed == plain


def test_an_engine_finds_what_its_zygote_has_learned(environment: dict[str, str], tmp_path: Path) -> None:
    frame, module = plans([prepared("tiny-gemma2")])["tiny-gemma2"].frame, "vllm.model_executor.models.gemma2"

    async def imports(launcher: ForkLauncher) -> list[str]:
        process = await launcher.launch()
        reader, writer = await asyncio.open_connection(sock=process.sock)
        writer.write(encode(frame))
        ready = await read_frame(reader)
        assert isinstance(ready, Ready)
        process.kill()
        writer.close()
        await process.ended
        return ready.modules

    async def before_and_after() -> tuple[list[str], list[str]]:
        launcher = ForkLauncher(environment, str(tmp_path / "zygote.log"))
        try:
            before = await imports(launcher)
            broken = frame.args | {"model": "/no/such/model"}
            await launcher.learn([], engines=[frame.args, broken])
            return before, await imports(launcher)
        finally:
            await launcher.close()

    before, after = asyncio.run(before_and_after())
    assert module in before
    assert module not in after


def test_memory_from_fresh_pages_is_zero_and_can_be_written() -> None:
    import torch

    made = fresh_zeros(3 << 20, dtype=torch.int8, device=torch.device("cpu"))
    assert (made.shape, made.dtype) == (torch.Size([3 << 20]), torch.int8)
    assert not made.any()
    made[-1] = 7
    assert made.sum() == 7
    assert fresh_zeros(0, dtype=torch.int8, device=torch.device("cpu")).numel() == 0
