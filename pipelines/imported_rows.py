"""Texts that others have generated, as a run's own generated rows: found by the keys that its stages ask for.

Their prompts were not ours, so each says what it is: `finish_reason` and the part's slot and chunk are "imported".
Token counts are not known and stand as 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.run import Run
from pipelines.sharding import made_from
from symoe_ray.core import Completion, Request
from symoe_ray.ledger import Commits, Part
from symoe_ray.tables import REQUESTS, RESPONSES, request_row, response_row, table_of

IMPORTED = "imported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A request that a stage makes, with the texts that stand in for its samples 0, 1, ..."""

    request: Request
    shard: int
    run_seed: int
    texts: tuple[str, ...]


def commit(run: Run, stage: str, rows: Iterable[Imported]) -> int:
    """Write and commit the rows as the stage's own; returns the number of texts.

    Once for a stage in an attempt at the run, and before any pool starts: both number their commits from 0.
    """
    by_expert: dict[str, list[Imported]] = defaultdict(list)
    for row in rows:
        by_expert[row.request.expert].append(row)
    parts = [_part(run, stage, expert, rows) for expert, rows in sorted(by_expert.items())]
    if parts:
        Commits(run.storage, run.attempt, run.token).append(parts)
    return sum(part.samples for part in parts)


def write_requests(run: Run, stage: str, inputs: str, rows: Iterable[Imported]) -> None:
    """Write the requests as the stage would have made them: without these, its responses are not read."""
    by_expert: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_expert[row.request.expert].append(request_row(row.request, row.shard, row.run_seed))
    run.storage.delete(f"requests/{stage}")
    for expert, requests in sorted(by_expert.items()):
        own = [{name: row[name] for name in REQUESTS.names} for row in requests]
        run.storage.write_table(f"requests/{stage}/expert={expert}/part-imported.parquet", table_of(own, REQUESTS))
    files = run.storage.names(f"requests/{stage}", ".parquet")
    run.manifest["requests"][stage] = {"inputs": made_from(inputs), "files": files}
    run.save()


def _part(run: Run, stage: str, expert: str, rows: Sequence[Imported]) -> Part:
    path = f"responses/{stage}/expert={expert}/imported-{run.attempt:06d}.parquet"
    responses = [response for row in rows for response in _responses(row, run.attempt)]
    run.storage.write_table(path, table_of(responses, RESPONSES))
    return Part(
        path=path, stage=stage, expert=expert, chunk=IMPORTED, slot=IMPORTED,
        shards=tuple(sorted({row.shard for row in rows})), requests=len(rows), samples=len(responses), failed=0,
        prompt_tokens=0, completion_tokens=0, seconds=0.0,
    )  # fmt: skip


def _responses(row: Imported, attempt: int) -> list[dict[str, Any]]:
    asked = request_row(row.request, row.shard, row.run_seed)
    made = [
        Completion(request_id=row.request.id, index=sample, text=text, finish_reason=IMPORTED)
        for sample, text in enumerate(row.texts)
    ]
    return [response_row(asked, completion, attempt) for completion in made]
