"""Live requests to more experts than fit: symoe's policy against first come, first served, on the same engines.

`python -m benchmarks.serve [--json] [--seconds S]`: eight tiny models (random weights, two layers) on one CPU slot,
real vLLM engines, changed by the same swap tiers for all. Requests go to one expert each, drawn uniformly, 16 tokens,
and arrive by a Poisson process whatever the answers do (open loop). Contenders:

- symoe: `actors.online_pool`.
- first_come: the same pool, which works on requests strictly in their order and changes engines whenever the next one
  needs another: what llama-swap does, and a replica of Ray Serve's multiplexing with room for one model.

The unit of load is the rate that `first_come` sustains: requests per second while it works off a backlog. A rate is
sustained where nothing is refused and 99 of 100 requests are reached within `max_wait_s`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from actors.cluster import connected
from actors.online_pool import OnlinePool
from actors.serving.pool_engines import PoolEngines
from actors.slot_pool import PoolConfig
from symoe_ray.config import load
from symoe_ray.core import ExpertSpec, Message, Sampling
from symoe_ray.requests import make_request
from symoe_ray.schedule_views import Lease, Online, Prepare
from symoe_ray.serving.asking import Ask, RefusedError, Reply
from symoe_ray.storage import Storage

MODELS = ("tiny-llama", "tiny-qwen2", "tiny-gemma2", "tiny-qwen3")
CONTEXTS = (512, 448)  # two engines of each model
MAX_WAIT_S = 15.0
BACKLOG = 40
TOKENS = 16
LOADS = {"first_come": (0.5, 1.0, 2.0), "symoe": (0.5, 1.0, 2.0, 4.0, 8.0)}


class FirstComePool(OnlinePool):
    """Works on requests in their order: the oldest of all decides which engine there is."""

    def _decide(self, slot: Any) -> Lease | Prepare | None:
        waiting = [q for q in self._queues.values() if q.waiting]
        if not waiting:
            return None
        first = min(waiting, key=lambda q: q.waiting[0].since)
        view = self._view(slot, self._queues)
        room = first.key == slot.key and view.rows < view.capacity
        return Lease(view.id, first.key, 1) if room or not view.rows else None


@dataclass(slots=True)
class Outcome:
    """What came of one load: seconds of each answer and wait, swaps, refusals."""

    offered: float
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    unfinished: int = 0
    swaps: int = 0
    wall_s: float = 0.0

    def row(self) -> dict[str, float]:
        """The figures of a row."""
        done = len(self.seconds)
        made = {
            "offered_rps": self.offered, "done_rps": done / self.wall_s, "p50_s": _quantile(self.seconds, 0.5),
            "p95_s": _quantile(self.seconds, 0.95), "p99_s": _quantile(self.seconds, 0.99),
            "p99_wait_s": _quantile(self.waits, 0.99), "swaps_per_request": self.swaps / max(1, done),
            "refused": float(self.refused), "unfinished": float(self.unfinished), "requests": float(done),
        }  # fmt: skip
        return {name: round(value, 3) for name, value in made.items()}


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long requests arrive, for each row")
    parser.add_argument("--max-wait", type=float, default=MAX_WAIT_S, help="predicted wait that is refused, seconds")
    options = parser.parse_args()
    table = sys.stderr if options.json else sys.stdout
    settings = load(["task=demo", "pool=tiny"])
    experts = [
        ExpertSpec(name=f"{model}-{context}", model=f"package:{model}", max_model_len=context)
        for model in MODELS
        for context in CONTEXTS
    ]
    with connected(settings):
        result = asyncio.run(measure(experts, options.seconds, options.max_wait, table))
    print(json.dumps({"benchmark": "serve", "experts": len(experts), "max_wait_s": options.max_wait, **result}))


async def measure(experts: Sequence[ExpertSpec], seconds: float, max_wait_s: float, table: Any) -> dict[str, Any]:
    """All contenders at all loads."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    async with opened(FirstComePool, experts, max_wait_s) as engines:
        backlog = await drive(engines, experts, [0.0] * BACKLOG, seed=1, admit=False)
        rate = BACKLOG / backlog.wall_s
    print(f"first come, first served sustains {rate:.2f} requests/s", file=table, flush=True)
    print(f"{'contender':<12}{'load':>6}{'offered/s':>11}{'done/s':>8}{'p50 s':>8}{'p95 s':>8}{'p99 s':>8}"
          f"{'p99 wait':>10}{'swaps/req':>11}{'refused':>9}{'late':>6}", file=table)  # fmt: skip
    for name, kind in (("first_come", FirstComePool), ("symoe", OnlinePool)):
        rows[name] = {}
        async with opened(kind, experts, max_wait_s) as engines:
            for load_ in LOADS[name]:
                arrivals = poisson(rate * load_, seconds, seed=int(100 * load_))
                outcome = await drive(engines, experts, arrivals, seed=2, admit=name == "symoe", until_s=seconds)
                outcome.offered = rate * load_
                made = rows[name][f"{load_:g}"] = outcome.row()
                print(f"{name:<12}{load_:>6g}{made['offered_rps']:>11.2f}{made['done_rps']:>8.2f}{made['p50_s']:>8.2f}"
                      f"{made['p95_s']:>8.2f}{made['p99_s']:>8.2f}{made['p99_wait_s']:>10.2f}"
                      f"{made['swaps_per_request']:>11.3f}{made['refused']:>9.0f}{made['unfinished']:>6.0f}",
                      file=table, flush=True)  # fmt: skip
    sustained = {
        name: max((float(k) for k, r in own.items() if not r["refused"] and r["p99_wait_s"] <= max_wait_s), default=0.0)
        for name, own in rows.items()
    }
    return {"first_come_rps": round(rate, 3), "rows": rows, "sustained_loads": sustained}


@asynccontextmanager
async def opened(kind: type[OnlinePool], experts: Sequence[ExpertSpec], max_wait_s: float) -> AsyncIterator[Measured]:
    """A pool of one slot in which each expert has been loaded once."""
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        Storage(folder).write_json("manifest.json", {})
        engine = load(["task=demo", "pool=tiny"]).engine
        config = PoolConfig(
            run_uri=folder,
            epoch=1,
            started=time.time(),
            experts=tuple(experts),
            engine=replace(engine, slots=1),
            slots=1,
        )
        pool = (
            ray.remote(kind)
            .options(num_cpus=0, max_concurrency=10_000)
            .remote(config, Online(max_wait_s=max_wait_s), 5000)
        )
        try:
            problems = await pool.open.remote()
            if problems:
                raise RuntimeError(f"models are missing: {problems}")
            engines = Measured(pool, Path(folder))
            await drive(engines, experts, [0.0] * len(experts), seed=0, admit=False, each_once=True)
            yield engines
        finally:
            await pool.stop.remote()
            ray.kill(pool)


class Measured(PoolEngines):
    """The port over a pool, and the pool's own count of swaps."""

    def __init__(self, pool: Any, folder: Path) -> None:
        super().__init__(pool, lambda expert, seconds: None)
        self.folder = folder

    async def swaps(self) -> int:
        """Loads so far."""
        return sum((await self._pool.status.remote()).swaps.values())


async def drive(
    engines: Measured, experts: Sequence[ExpertSpec], arrivals: Sequence[float], *, seed: int, admit: bool,
    until_s: float = 0.0, each_once: bool = False,
) -> Outcome:  # fmt: skip
    """Send requests at these times to experts drawn by the seed; what came of them once all have ended."""
    generator, outcome = random.Random(seed), Outcome(offered=0.0)
    swaps, started = await engines.swaps(), time.monotonic()

    async def one(number: int, expert: ExpertSpec) -> None:
        begun = time.monotonic()
        try:
            if admit:
                await engines.admit(expert.name)
            async for came in engines.ask(ask_of(expert, number, seed)):
                if isinstance(came, Reply):
                    if any(c.failure for c in came.completions):
                        raise RuntimeError(f"{expert.name}: {came.completions[0].failure}")
                    outcome.waits.append(came.wait_s)
        except RefusedError:
            outcome.refused += 1
        else:
            outcome.seconds.append(time.monotonic() - begun)

    tasks = []
    for number, at in enumerate(arrivals):
        await asyncio.sleep(max(0.0, started + at - time.monotonic()))
        expert = experts[number] if each_once else generator.choice(experts)
        tasks.append(asyncio.create_task(one(number, expert)))
    await asyncio.sleep(max(0.0, started + until_s - time.monotonic()))
    outcome.unfinished = sum(not t.done() for t in tasks)
    await asyncio.gather(*tasks)
    outcome.wall_s = time.monotonic() - started
    outcome.swaps = await engines.swaps() - swaps
    return outcome


def ask_of(expert: ExpertSpec, number: int, seed: int) -> Ask:
    """A short question of its own."""
    sampling = Sampling(temperature=0.7, max_tokens=TOKENS)
    messages = (Message(role="user", content=f"What is {number} plus {seed}?"),)
    return Ask(request=make_request(expert, f"{seed}-{number}", messages, sampling, run_seed=seed))


def poisson(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Arrival times."""
    generator, now, times = random.Random(seed), 0.0, []
    while (now := now + generator.expovariate(rate)) < seconds:
        times.append(now)
    return times


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


if __name__ == "__main__":
    main()
