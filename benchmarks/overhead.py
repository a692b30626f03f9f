"""Requests per second through the pool with engines that cost nothing, so that only this project's code is measured.

`python -m benchmarks.overhead [--json] [--rows 1000 10000 100000]`: a pool of two slots on a local Ray cluster, four
experts, chunks of 256. From the first submit to the last commit, on a pool that is up. Should grow linearly with rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from actors.cluster import connected
from actors.pool_client import PoolClient, pool
from symoe_ray.config import load
from symoe_ray.core import Message, Question
from symoe_ray.ledger import missing_chunks
from symoe_ray.prompts import answer_messages
from symoe_ray.requests import make_request
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, request_row, table_of

SETTINGS = ("engine.kind=fake", "engine.slots=2", "pool=tiny")
FILE_ROWS = 4096


def main() -> None:
    """Print rows, seconds and requests per second, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    settings = load(SETTINGS)
    table = sys.stderr if options.json else sys.stdout
    with tempfile.TemporaryDirectory() as folder, connected(settings):
        storage = Storage(str(Path(folder, "run")))
        storage.write_json("manifest.json", {})
        with pool(settings, storage.uri, epoch=1, started=time.time()) as client:
            measure(client, settings, storage, "warm-up", 200)
            print(f"{'rows':>9}{'seconds':>10}{'requests/s':>12}", file=table)
            cases = []
            for rows in options.rows:
                seconds = measure(client, settings, storage, f"rows-{rows}", rows)
                print(f"{rows:>9,}{seconds:>10.2f}{rows / seconds:>12,.0f}", file=table, flush=True)
                cases.append({"rows": rows, "seconds": round(seconds, 3), "requests_per_s": round(rows / seconds, 1)})
    print(json.dumps({"benchmark": "overhead", "slots": 2, "cases": cases}))


def measure(client: PoolClient, settings: Settings, storage: Storage, stage: str, rows: int) -> float:
    """Seconds to generate and commit that many requests, shared out evenly over the experts."""
    files: dict[str, list[str]] = {}
    experts = settings.pool.experts
    for spec in experts:
        own = range(rows // len(experts))
        for start in range(0, len(own), FILE_ROWS):
            made = []
            for number in own[start : start + FILE_ROWS]:
                request = make_request(spec, f"q{number}", messages(number), spec.sampling, run_seed=0)
                made.append({k: v for k, v in request_row(request, 0, 0).items() if k in REQUESTS.names})
            name = f"requests/{stage}/expert={spec.name}/part-{start:08d}.parquet"
            storage.write_table(name, table_of(made, REQUESTS))
            files.setdefault(spec.name, []).append(name)
    chunks = list(
        missing_chunks(
            storage, stage, files, chunk_rows=settings.engine.chunk_rows, estimate={e.name: 10 for e in experts}
        )
    )
    started = time.perf_counter()
    summary = client.generate(stage, chunks)
    assert summary.failed == 0
    assert summary.rows == sum(chunk.rows for chunk in chunks)
    return time.perf_counter() - started


def messages(number: int) -> tuple[Message, ...]:
    """The prompt of a small integer question."""
    return answer_messages(Question(id=f"q{number}", text=f"What is {number} plus 1?", kind="integer", task="overhead"))


if __name__ == "__main__":
    main()
