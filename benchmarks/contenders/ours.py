"""This project as a contender: a running pool that stages of requests are sent through, and one engine host alone."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.canary import CanaryBook
from actors.cluster import connected
from actors.engine_host import EngineHost, HostSettings
from actors.engine_plans import EnginePlans
from actors.launcher import ForkLauncher
from actors.memory import free_memory
from actors.platform import cores_of, engine_environment
from actors.pool_client import PoolClient, pool
from benchmarks.contenders.work import Counts, Work
from symoe_ray.config import load
from symoe_ray.core import ExpertSpec
from symoe_ray.ledger import Chunk, missing_chunks
from symoe_ray.settings import PoolSettings, Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, request_row, table_of

LOADS = ("load", "reload", "wake")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A finished stage: seconds from its submission to its last commit, and from the pool's events the tier of each
    load, in their order, with what was said of the tiers that failed. `load_s` is the part of the loads.
    """

    seconds: float
    load_s: float
    counts: Counts
    tiers: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ideal:
    """What a stage takes without any scheduling: the loads of its experts' engines, and generation on loaded ones."""

    load_s: float
    generate_s: float
    counts: Counts

    @property
    def seconds(self) -> float:
        """Both, one after the other."""
        return self.load_s + self.generate_s


class RunningPool:
    """A pool that is up, and the run folder that it works on."""

    def __init__(self, client: PoolClient, settings: Settings, storage: Storage) -> None:
        self._client, self._settings, self._storage = client, settings, storage

    def generate(self, stage: str, work: Work) -> Stage:
        """Send requests through the pool; the clock starts when they lie in the run folder, as in a run's stage."""
        chunks = self._chunks(stage, work)
        started = time.perf_counter()
        summary = self._client.generate(stage, chunks)
        seconds = time.perf_counter() - started
        if summary.failed or summary.rows != sum(len(requests) for requests in work.values()):
            raise RuntimeError(f"stage {stage}: {summary.failed} of {summary.rows} rows failed")
        counts = Counts(prompt=summary.prompt_tokens, completion=summary.completion_tokens)
        loads = self._loads(stage)
        return Stage(
            seconds=seconds, load_s=sum(e["seconds"] for e in loads), counts=counts,
            tiers=tuple(e["tier"] for e in loads),
            notes=tuple(e["message"] for e in loads if e.get("message")),
        )  # fmt: skip

    def _chunks(self, stage: str, work: Work) -> list[Chunk]:
        files = {}
        for expert, requests in work.items():
            rows = [{k: v for k, v in request_row(r, 0, 0).items() if k in REQUESTS.names} for r in requests]
            files[expert] = [f"requests/{stage}/expert={expert}/part-00000000.parquet"]
            self._storage.write_table(files[expert][0], table_of(rows, REQUESTS))
        estimate = {spec.name: spec.sampling.max_tokens for spec in self._settings.pool.experts}
        rows_each = self._settings.engine.chunk_rows
        return list(missing_chunks(self._storage, stage, files, chunk_rows=rows_each, estimate=estimate))

    def _loads(self, stage: str) -> list[dict[str, Any]]:
        lines = Path(self._storage.path("events.jsonl")).read_text().splitlines()
        return [e for e in map(json.loads, lines) if e["stage"] == stage and e["event"] in LOADS]


@contextmanager
def running_pool(experts: Sequence[ExpertSpec], *, reload: bool = True) -> Iterator[RunningPool]:
    """A pool with one slot on all cores, on a Ray cluster of its own, in a run folder that goes with it."""
    settings = _settings(experts, reload=reload)
    with tempfile.TemporaryDirectory() as folder, connected(settings):
        storage = Storage(str(Path(folder, "run")))
        storage.write_json("manifest.json", {})
        with pool(settings, storage.uri, epoch=1, started=time.time()) as client:
            client.require([spec.name for spec in experts])
            yield RunningPool(client, settings, storage)


def measure_ideal(experts: Sequence[ExpertSpec], work: Work, repeats: int) -> list[Ideal]:
    """Fork each expert's engine and generate its requests, all at once, on an engine host without pool and cluster."""
    return asyncio.run(_ideal(experts, work, repeats))


async def _ideal(experts: Sequence[ExpertSpec], work: Work, repeats: int) -> list[Ideal]:
    engine = _settings(experts, reload=False).engine
    plans = EnginePlans(experts, engine, cores=cores_of(0, 1), cuda=False)
    plans.problems([spec.name for spec in experts])
    times = HostSettings(
        load_timeout_s=engine.load_timeout_s, stall_timeout_s=engine.stall_timeout_s, reload=False,
        free_memory=partial(free_memory, cuda=False),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        launcher = ForkLauncher(engine_environment(offline=True), str(Path(folder, "engine.log")))
        host = EngineHost([launcher], times, CanaryBook(Path(folder, "canaries")))
        try:
            host.expect([plans.plan(spec.name) for spec in experts])
            for spec in experts:  # the zygote learns what each architecture imports, as in a pool that is up
                await host.load(plans.plan(spec.name))
            return [await _ideal_once(host, plans, work) for _ in range(repeats)]
        finally:
            await host.close()


async def _ideal_once(host: EngineHost, plans: EnginePlans, work: Work) -> Ideal:
    load_s = generate_s = 0.0
    prompt = completion = 0
    for expert, requests in work.items():
        started = time.perf_counter()
        await host.load(plans.plan(expert))
        loaded = time.perf_counter()
        answers = await asyncio.gather(*(host.generate(request) for request in requests))
        load_s, generate_s = load_s + loaded - started, generate_s + time.perf_counter() - loaded
        prompt += sum(samples[0].prompt_tokens for samples in answers)
        completion += sum(sample.completion_tokens for samples in answers for sample in samples)
    return Ideal(load_s=load_s, generate_s=generate_s, counts=Counts(prompt=prompt, completion=completion))


def _settings(experts: Sequence[ExpertSpec], *, reload: bool) -> Settings:
    settings = load(("pool=tiny", "engine.slots=1", f"engine.reload={str(reload).lower()}"))
    return replace(settings, pool=PoolSettings(name="benchmark", experts=tuple(experts)))
