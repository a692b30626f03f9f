"""Ray Data for what it is good at: reading questions in shards, building requests and sharding them by expert into
Parquet, and joining, parsing and grading what was generated. One execution per call; engines are not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipelines.run import Run
from symoe_ray.fingerprints import digest
from symoe_ray.ledger import Chunk, Commits, missing_chunks
from symoe_ray.length_estimates import expected_tokens, most_tokens, seen_lengths
from symoe_ray.shard_files import in_shards, of_shards
from symoe_ray.stage_sizes import joint_name
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, SEATS, table_of

SHARD_ROWS = 512
# Stage -> those whose answers tell how long its own will be, the best first. Of `answer` itself the longest come first.
LIKE = {"answer": ("profile", "answer"), "aggregate": ("aggregate", "bench-aggregators")}

Rows = list[dict[str, Any]]
BuildRequests = Callable[[Storage, Rows], Iterable[dict[str, Any]]]
Collect = Callable[[Storage, Rows], Iterable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage has generated. `build` makes the `REQUESTS` rows (with `expert`) of some questions of the splits;
    they are built again when `inputs` changed. `then`: experts of the next stage.
    """

    stage: str
    splits: tuple[str, ...]
    build: BuildRequests
    inputs: str
    then: tuple[str, ...] = ()


def generate(run: Run, *works: Work) -> list[str]:
    """Have all rows of one stage or of several generated, each expert loaded once for all of them; returns the names of
    their commits.

    Rows that are committed already are not generated again, whichever inputs they were first made for.
    """
    due = [work for work in works if run.generated.get(work.stage) != work.inputs]
    chunks: list[Chunk] = []
    for work in due:
        run.forget(work.stage)
        if own := _chunks(run, work):
            rows, experts = sum(c.rows for c in own), len({c.expert for c in own})
            run.say(f"{work.stage}: {rows} requests to {experts} expert(s)")
            chunks += own
    if chunks:
        name = joint_name(dict.fromkeys(c.stage for c in chunks))
        then = [expert for work in due for expert in work.then]
        summary = run.pool().generate(name, chunks, run.on_progress, then)
        run.say(
            f"{name}: {summary.rows} requests in {summary.seconds:.1f} s, {summary.completion_tokens} tokens"
            + (f", {summary.failed} failed" if summary.failed else "")
        )
    commits = Commits(run.storage)
    for work in due:
        commits.compact(work.stage)
        run.generated[work.stage] = work.inputs
    return [name for work in works for name in commits.names(work.stage)]


def _chunks(run: Run, work: Work) -> list[Chunk]:
    """What a stage still wants, of requests that are built first where they are not those of its inputs."""
    requests, stage = run.manifest["requests"], work.stage
    if requests.get(stage, {}).get("inputs") != made_from(work.inputs):
        run.start_ray()
        if requests.pop(stage, None) is not None:
            run.save()
        run.storage.delete(f"requests/{stage}")
        schema = REQUESTS.append(pa.field("expert", pa.string()))
        made = _execute(run, work.splits, work.build, schema, f"requests/{stage}", partition_by="expert")
        requests[stage] = {"inputs": made_from(work.inputs), "files": made}
        run.save()
    files: dict[str, list[str]] = {}
    for name in requests[stage]["files"]:
        files.setdefault(name.split("expert=")[1].split("/")[0], []).append(name)
    return _missing(run, stage, files, run.settings.engine.chunk_rows)


def made_from(inputs: str) -> str:
    """What request files are made from: the inputs of their stage, and the columns that they are to have."""
    return digest(inputs, REQUESTS.names)


def collect(run: Run, folder: str, splits: tuple[str, ...], function: Collect, schema: pa.Schema) -> list[str]:
    """Write the table that `function` makes of each shard of questions; returns its files."""
    run.start_ray()
    run.storage.delete(folder)
    return _execute(run, splits, function, schema, folder)


def question_files(storage: Storage, splits: Iterable[str]) -> list[str]:
    """The question files of these splits."""
    return [name for split in splits for name in storage.names(f"questions/{split}", ".parquet")]


def rows_of_shards(storage: Storage, folder: str, schema: pa.Schema, questions: Rows) -> Rows:
    """The rows of a stage's table that belong to the same shards as some questions."""
    shards = {row["shard"] for row in questions}
    files = of_shards(storage.names(folder, ".parquet"), shards)
    tables = (storage.read_table(name, schema.names, in_shards(shards)) for name in files)
    return [row for table in tables for row in table.cast(schema).to_pylist()]


def seats_of(storage: Storage, folder: str, questions: Rows, schema: pa.Schema = SEATS) -> dict[str, dict[str, Any]]:
    """Question -> its `SEATS` row (or `SKILLED_SEATS` row), of a seed's folder ("" or "seed=<N>/")."""
    name = "seats" if storage.exists(f"{folder}seats") else "recruits"  # which an imported run has alone
    return {row["question_id"]: row for row in rows_of_shards(storage, folder + name, schema, questions)}


def _execute(
    run: Run, splits: tuple[str, ...], function: Collect, schema: pa.Schema, folder: str, partition_by: str = ""
) -> list[str]:
    """Map the questions' shards; returns the files, which are all that is in the folder then."""
    storage = run.storage
    files = question_files(storage, splits)
    if not files:
        return []
    from pipelines.ray_data import map_parquet

    written = map_parquet(storage, files, partial(_on_batch, storage.uri, function, schema), folder, partition_by)
    for stray in set(storage.names(folder, ".parquet")) - set(written):  # a worker of a driver that is dead
        storage.delete(stray)
    return written


def _on_batch(uri: str, function: Collect, schema: pa.Schema, batch: pa.Table) -> pa.Table:
    return table_of(function(Storage(uri), batch.to_pylist()), schema)


def _missing(run: Run, stage: str, files: dict[str, list[str]], chunk_rows: int) -> list[Chunk]:
    commits = Commits(run.storage)
    most = {e.name: most_tokens(run.settings, stage, e) for e in run.settings.pool.experts}
    seen = seen_lengths([commits.each_part(name) for name in LIKE.get(stage, (stage,))])
    return list(
        missing_chunks(
            run.storage, stage, files, chunk_rows=chunk_rows, estimate=expected_tokens(most, seen), most=most,
            prompts={name: lengths.prompt for name, lengths in seen.items()}, retry_failed=run.retry_failed,
        )
    )  # fmt: skip
