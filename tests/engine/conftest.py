"""Real vLLM engines for a session: one zygote, tiny models, float32 (bf16 results change with the batch)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from actors.canary import CanaryBook
from actors.engine_host import EngineHost, EnginePlan, HostSettings, LoadReport
from actors.engine_plans import EnginePlans
from actors.launcher import ForkLauncher, Launcher, SpawnLauncher
from actors.memory import Need, host_available_bytes
from actors.models import prepared_folder
from actors.platform import engine_environment
from symoe_ray.core import ExpertSpec, Message, Request, Sampling
from symoe_ray.settings import EngineSettings

T = TypeVar("T")
SETTINGS = EngineSettings(dtype="float32", max_num_seqs=8, threads=1)
HOST = HostSettings(
    load_timeout_s=300, stall_timeout_s=120, free_memory=lambda: Need(host_bytes=host_available_bytes())
)
POOL = ("tiny-llama", "tiny-llama-b", "tiny-qwen2")


class Borrowed:
    """The session's zygote in the hands of another host, which does not end it."""

    tier = "fork"

    def __init__(self, fork: ForkLauncher) -> None:
        self.launch, self.learn = fork.launch, fork.learn

    async def close(self) -> None:
        """It is not this host's to end."""


@dataclass
class Engines:
    """An engine host on an event loop of its own, with the steps that tests need."""

    runner: asyncio.Runner
    host: EngineHost
    fork: ForkLauncher

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the host's loop."""
        return self.runner.run(work)

    def load(self, name: str) -> LoadReport:
        """Load a prepared model."""
        return self.run(self.host.load(plan(name)))

    def loaded(self, name: str) -> None:
        """Have a model that answers, loading it only where the last test left none."""
        if self.host.key != plan(name).key:
            self.load(name)

    @contextmanager
    def another_host(self, book: Path, settings: HostSettings = HOST) -> Iterator[EngineHost]:
        """A host of its own with nothing loaded, which forks from the same zygote and knows no canary."""
        host = EngineHost([Borrowed(self.fork)], settings, CanaryBook(book))
        try:
            yield host
        finally:
            self.run(host.close())


def prepared(name: str, model: str = "", lora: str = "") -> ExpertSpec:
    """An expert: the prepared model of its name, or another one, with an adapter or without."""
    return ExpertSpec(name=name, model=model or f"package:{name}", lora=lora, max_model_len=512)


def plans(experts: Sequence[ExpertSpec], settings: EngineSettings = SETTINGS) -> dict[str, EnginePlan]:
    """The engines of a pool's experts, by name."""
    made = EnginePlans(experts, settings, cores=(), cuda=False)
    names = [expert.name for expert in experts]
    assert made.problems(names) == {}
    return {name: made.plan(name) for name in names}


def plan(name: str) -> EnginePlan:
    """The engine of a prepared model of `POOL`."""
    return plans([prepared(n) for n in POOL])[name]


def request(text: str, *, n: int = 1, first_sample: int = 0, max_tokens: int = 16, **sampling: Any) -> Request:
    """A chat request."""
    return Request(
        id=text[:40],
        question_id="q",
        expert="e",
        messages=(Message(role="user", content=text),),
        sampling=Sampling(max_tokens=max_tokens, **sampling),
        seed=1234,
        n=n,
        first_sample=first_sample,
    )


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """A host with the fork and the spawn tier; skipped where `make setup` has not prepared the models."""
    if not prepared_folder("tiny-llama").is_dir():
        pytest.skip("package:tiny-llama is not prepared (make setup)")
    log = str(tmp_path_factory.mktemp("engine") / "engine.log")
    environment = engine_environment(offline=True)
    fork = ForkLauncher(environment, log)
    tiers: list[Launcher] = [fork, SpawnLauncher("actors.engine", environment, log)]
    host = EngineHost(tiers, HOST, CanaryBook(tmp_path_factory.mktemp("canaries")))
    with asyncio.Runner() as runner:
        yield Engines(runner, host, fork)
        print(Path(log).read_text()[-3000:])  # shown beside a failure
        runner.run(host.close())
