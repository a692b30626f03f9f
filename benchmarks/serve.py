"""Live requests to more experts than fit: symoe's policy, first come first served, and Ray Serve's multiplexing.

`python -m benchmarks.serve [--json] [--seconds S] [--contenders NAME ...] [--loads L ...] [--rate R] [--no-latency]`

Eight tiny models (random weights, two layers) on one CPU slot, real vLLM engines, changed by the same swap tiers for
all contenders (`benchmarks.contenders.live_pools`). Requests go to one expert each, drawn uniformly, 16 tokens, and
arrive by a Poisson process whatever the answers do (open loop).

The unit of load is the rate that `first_come` sustains: requests per second while it works off a backlog (`--rate`
takes another run's). A load is sustained where nothing is refused and 99 of 100 requests are reached within
`max_wait_s`. A rotation is the time for one swap and one request of each expert. `--contenders` and `--loads` make a
part of the table. The last part is `benchmarks.serve_latency`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.cluster import connected
from benchmarks import serve_latency
from benchmarks.contenders.live_pools import Contender, opened
from symoe_ray.config import load
from symoe_ray.core import ExpertSpec, Message, Sampling
from symoe_ray.requests import make_request
from symoe_ray.serving.asking import Ask, RefusedError

MODELS = ("tiny-llama", "tiny-qwen2", "tiny-gemma2", "tiny-qwen3")
CONTEXTS = (512, 448)  # two engines of each model
MAX_WAIT_S = 15.0
BACKLOG = 60
TOKENS = 16
LOADS = {"first_come": (0.5, 1.0, 2.0), "ray_serve": (0.5, 1.0, 2.0), "symoe": (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)}
COLUMNS = {
    "offered_rps": "offered/s", "done_rps": "done/s", "p50_s": "p50 s", "p95_s": "p95 s", "p99_s": "p99 s",
    "p99_wait_s": "p99 wait", "swaps_per_request": "swaps/req", "refused": "refused", "unfinished": "late",
}  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What came of one load: seconds of each answer and wait, swaps, refusals."""

    offered: float = 0.0
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
    parser.add_argument("--seconds", type=float, default=30.0, help="how long requests arrive, for each row")
    parser.add_argument("--max-wait", type=float, default=MAX_WAIT_S, help="predicted wait that is refused, seconds")
    parser.add_argument("--contenders", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--loads", nargs="+", type=float, help="times the rate, for all contenders")
    parser.add_argument("--rate", type=float, default=0.0, help="the unit, requests per second (default: measured)")
    parser.add_argument("--no-latency", action="store_true")
    options = parser.parse_args()
    table = sys.stderr if options.json else sys.stdout
    experts = [
        ExpertSpec(name=f"{model}-{context}", model=f"package:{model}", max_model_len=context)
        for model in MODELS
        for context in CONTEXTS
    ]
    with connected(load(["task=demo", "pool=tiny"])):
        result = asyncio.run(measure(experts, options, table))
    if not options.no_latency:
        result["latency"] = serve_latency.measure(200)
        serve_latency.show(result["latency"], table)
    print(json.dumps({"benchmark": "serve", "experts": len(experts), "max_wait_s": options.max_wait, **result}))


async def measure(experts: Sequence[ExpertSpec], options: argparse.Namespace, table: Any) -> dict[str, Any]:
    """All contenders at all loads."""
    unit: dict[str, float] = {"first_come_rps": options.rate}
    if not options.rate:
        async with opened("first_come", experts, options.max_wait) as contender:
            unit = await unit_of(contender, experts)
    print(f"first come, first served: {unit}", file=table, flush=True)
    print(f"{'':<12}{'load':>6}" + "".join(f"{title:>11}" for title in COLUMNS.values()), file=table, flush=True)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.contenders:
        rows[name] = {}
        async with opened(name, experts, options.max_wait) as contender:
            await warm(contender, experts)
            for load_ in options.loads or LOADS[name]:
                rate = unit["first_come_rps"] * load_
                arrivals = poisson(rate, options.seconds, seed=int(100 * load_))
                outcome = await drive(contender, experts, arrivals, seed=2, until_s=options.seconds)
                outcome.offered = rate
                made = rows[name][f"{load_:g}"] = outcome.row()
                cells = "".join(f"{made[column]:>11.2f}" for column in COLUMNS)
                print(f"{name:<12}{load_:>6g}{cells}", file=table, flush=True)
    sustained = {
        name: max((float(k) for k, r in own.items() if _sustained(r, options.max_wait)), default=0.0)
        for name, own in rows.items()
    }
    return {**unit, "rows": rows, "sustained_loads": sustained}


def _sustained(row: dict[str, float], max_wait_s: float) -> bool:
    return not row["refused"] and row["p99_wait_s"] <= max_wait_s


async def unit_of(first_come: Contender, experts: Sequence[ExpertSpec]) -> dict[str, float]:
    """What the policy of first come, first served sustains, and how long a rotation over all experts takes."""
    await warm(first_come, experts)
    backlog = await drive(first_come, experts, [0.0] * BACKLOG, seed=1)
    turn_s = backlog.wall_s / max(1, backlog.swaps)
    return {"first_come_rps": round(BACKLOG / backlog.wall_s, 3), "rotation_s": round(turn_s * len(experts), 3)}


async def warm(contender: Contender, experts: Sequence[ExpertSpec]) -> None:
    """Have every engine loaded once: its canary is known, its modules are imported."""
    for expert in experts:
        await contender.ask(ask_of(expert, 0, 0))


async def drive(
    contender: Contender, experts: Sequence[ExpertSpec], arrivals: Sequence[float], *, seed: int, until_s: float = 0.0
) -> Outcome:
    """Send requests at these times to experts drawn by the seed; what came of them once all have ended."""
    generator, outcome = random.Random(seed), Outcome()
    swaps, started = await contender.swaps(), time.monotonic()

    async def one(number: int, expert: ExpertSpec) -> None:
        begun = time.monotonic()
        try:
            reply = await contender.ask(ask_of(expert, number, seed))
        except RefusedError:
            outcome.refused += 1
            return
        if any(c.failure for c in reply.completions):
            raise RuntimeError(f"{expert.name}: {reply.completions[0].failure}")
        outcome.waits.append(reply.wait_s)
        outcome.seconds.append(time.monotonic() - begun)

    tasks = []
    for number, at in enumerate(arrivals):
        await asyncio.sleep(max(0.0, started + at - time.monotonic()))
        tasks.append(asyncio.create_task(one(number, generator.choice(experts))))
    await asyncio.sleep(max(0.0, started + until_s - time.monotonic()))
    outcome.unfinished = sum(not t.done() for t in tasks)
    await asyncio.gather(*tasks)
    outcome.wall_s = time.monotonic() - started
    outcome.swaps = await contender.swaps() - swaps
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
