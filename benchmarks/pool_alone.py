"""What the pool's event loop itself costs, with slots that answer at once, without Ray and engines.

`python -m benchmarks.pool_alone [--json] [--slots 2 8 64 256] [--rows N]`: the pool of a run, its policy, its ledger
and its commits on a local disk; the handles of its slots are objects that finish each lease as soon as they have told
once how far they are. Sixteen experts, the same rows for each number of slots. Medians of three.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from actors import slot_pool
from actors.engine_plans import EngineFacts
from actors.pool import EnginePool, PoolConfig
from actors.slot import Loaded, Prefetched, SlotConfig, SlotInfo
from symoe_ray.core import ExpertSpec
from symoe_ray.engine_room import Room
from symoe_ray.ledger import Chunk, Part
from symoe_ray.settings import EngineSettings
from symoe_ray.slot_places import anywhere

EXPERTS = tuple(ExpertSpec(name=f"expert-{i}", model=f"org/expert-{i}") for i in range(16))
CAPACITY = 256
REPEATS = 3


def main() -> None:
    """Print leases and rows per second for each number of slots, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--slots", type=int, nargs="+", default=[2, 8, 64, 256])
    parser.add_argument("--rows", type=int, default=131_072)
    options = parser.parse_args()
    table = sys.stderr if options.json else sys.stdout
    print(f"{'slots':>6}{'leases':>8}{'seconds':>9}{'rows/s':>10}{'CPU ms a lease':>16}", file=table)
    cases = []
    for slots in options.slots:
        made = [asyncio.run(measure(slots, options.rows)) for _ in range(REPEATS)]
        leases, seconds, cpu_s = (statistics.median(each) for each in zip(*made, strict=True))
        per_s, lease_ms = options.rows / seconds, 1e3 * cpu_s / leases
        cases.append({"slots": slots, "rows_per_s": round(per_s), "cpu_ms_per_lease": round(lease_ms, 3)})
        print(f"{slots:>6}{leases:>8,.0f}{seconds:>9.2f}{per_s:>10,.0f}{lease_ms:>16.2f}", file=table, flush=True)
    print(json.dumps({"benchmark": "pool_alone", "rows": options.rows, "cases": cases}))


async def measure(slots: int, rows: int) -> tuple[int, float, float]:
    """Leases, seconds and seconds of the processor of a stage on that many slots."""
    handles: list[Handle] = []

    def handle(config: SlotConfig) -> Handle:
        handles.append(Handle(config))
        return handles[-1]

    with tempfile.TemporaryDirectory() as folder:
        config = PoolConfig(
            run_uri=folder, epoch=1, started=time.time(), experts=EXPERTS, places=anywhere(slots),
            engine=EngineSettings(kind="fake", max_num_seqs=CAPACITY),
        )  # fmt: skip
        slot_pool.SlotActor = Call(handle)  # type: ignore[assignment]
        pool = EnginePool(config)
        await pool.start()
        chunks = [
            Chunk(
                id=f"{spec.name}-{start}", stage="answer", expert=spec.name, path=spec.name, start=start,
                stop=start + CAPACITY, rows=CAPACITY, tokens=400 * CAPACITY,
            )
            for spec in EXPERTS for start in range(0, rows // len(EXPERTS), CAPACITY)
        ]  # fmt: skip
        started, cpu = time.perf_counter(), time.process_time()
        summary = await pool.generate("answer", chunks)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        assert summary.rows == rows, "the rows are no multiple of a chunk for each expert"
        for task in pool._tasks:
            task.cancel()
    return sum(handle.leases for handle in handles), seconds, cpu_s


class Call:
    """A method of an actor's handle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def options(self, **_: object) -> Call:
        """The same method."""
        return self

    def remote(self, *arguments: Any) -> Any:
        """Its call."""
        return self._function(*arguments)


class Handle:
    """The handle of a slot actor that does nothing, at once."""

    def __init__(self, config: SlotConfig) -> None:
        self.leases = 0
        self._id = config.id
        self.start, self.load, self.facts = Call(self._start), Call(self._load), Call(self._facts)
        self.prepare, self.progress, self.generate = Call(self._prepare), Call(self._progress), Call(self._generate)

    async def _start(self) -> SlotInfo:
        return SlotInfo(id=self._id, node="here", pid=1, gpus=0)

    async def _load(self, _: str) -> Loaded:
        return Loaded(tier="fork", seconds=0.0, start_s=0.0, bytes=0, room=Room(CAPACITY), beside=False, note="")

    async def _facts(self, experts: list[str]) -> dict[str, EngineFacts]:
        return dict.fromkeys(experts, EngineFacts(weight_bytes=0, kv_bytes_per_token=0, shape=""))

    async def _prepare(self, _: str) -> Prefetched:
        return Prefetched(bytes=0, seconds=0.0)

    async def _progress(self) -> tuple[int, list[str]]:
        return 0, []

    async def _generate(self, chunk: Chunk, lease: str) -> AsyncIterator[Awaitable[Part | int]]:
        self.leases += 1
        rows = tuple(row for row in range(chunk.start, chunk.stop) if row not in chunk.done)
        await asyncio.sleep(0)
        yield _came(len(rows) // 2)
        await asyncio.sleep(0)
        yield _came(
            Part(
                path=lease, stage=chunk.stage, expert=chunk.expert, chunk=chunk.id, slot=self._id, shards=(0,),
                requests=len(rows), samples=len(rows), failed=0, prompt_tokens=0, completion_tokens=400 * len(rows),
                seconds=0.0, done=rows,
            )
        )  # fmt: skip


async def _came(value: Part | int) -> Part | int:
    return value


if __name__ == "__main__":
    main()
