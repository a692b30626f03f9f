"""Real vLLM engines for a session: one zygote, tiny models, float32 (bf16 results change with the batch)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from actors.engine_host import EngineHost, LoadReport
from actors.launcher import ForkLauncher, Launcher, SpawnLauncher
from actors.models import kv_bytes_per_token, prepared_folder
from actors.platform import engine_args, engine_environment
from actors.protocol import LoadEngine
from symoe_ray.core import ExpertSpec, Message, Request, Sampling
from symoe_ray.settings import EngineSettings

T = TypeVar("T")
SETTINGS = EngineSettings(dtype="float32", max_num_seqs=8)


@dataclass
class Engines:
    """An engine host on an event loop of its own, with the steps that tests need."""

    runner: asyncio.Runner
    host: EngineHost
    fork: ForkLauncher

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the host's loop."""
        return self.runner.run(work)

    def load(self, name: str, **engine: object) -> LoadReport:
        """Load a prepared model."""
        return self.run(self.host.load(load_frame(name, **engine)))

    def loaded(self, name: str) -> None:
        """Have a model that answers, loading it only where the last test left none."""
        if not self.host.alive or self.host.report is None or self._name != name:
            self.load(name)
        self._name = name

    _name: str = ""


def load_frame(name: str, **engine: object) -> LoadEngine:
    """The frame that loads a prepared model."""
    folder = prepared_folder(name)
    spec = ExpertSpec(name=name, model=f"package:{name}", max_model_len=512, engine_args=engine)
    args = engine_args(spec, str(folder), SETTINGS, cuda=False, kv_bytes_per_token=kv_bytes_per_token(folder))
    return LoadEngine(args=args, threads=1)


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
    host = EngineHost(tiers, load_timeout_s=300, stall_timeout_s=120)
    with asyncio.Runner() as runner:
        yield Engines(runner, host, fork)
        print(Path(log).read_text()[-3000:])  # shown beside a failure
        runner.run(host.close())
