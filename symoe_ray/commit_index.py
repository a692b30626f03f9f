"""The commits of a stage in one file, so that whoever reads them opens one instead of thousands.

The commits themselves stay and decide: what the index lacks is read from them, and what it holds counts only where its
commit does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from symoe_ray.storage import Storage

FOLDER = "commits/index"
AT_ONCE = 4096
INDEX = pa.schema(
    [
        ("commit", pa.string()),
        ("path", pa.string()),
        ("expert", pa.string()),
        ("shards", pa.list_(pa.int32())),
        ("bytes", pa.int64()),
        ("part", pa.string()),
    ]
)
"""A committed part: its commit's file, what readers look for, and the whole of it as JSON."""


def read_index(storage: Storage, stage: str, commits: list[str], columns: Sequence[str] = INDEX.names) -> pa.Table:
    """The parts of these commits that the stage's index holds; of `columns`, one of which is `commit`."""
    name = index_file(stage)
    if not storage.exists(name):
        return INDEX.empty_table().select(columns)
    table = storage.read_table(name, list(columns))
    return table.filter(pc.is_in(table["commit"], value_set=pa.array(commits, pa.string())))


def write_index(storage: Storage, stage: str, table: pa.Table) -> None:
    """Replace a stage's index. The rows that a part has finished (`done`) are not kept: nobody asks any more."""
    pieces = [
        pa.array([json.dumps(json.loads(part) | {"done": []}) for part in batch["part"].to_pylist()], pa.string())
        for batch in table.to_batches(max_chunksize=AT_ONCE)
    ]
    column = pa.chunked_array(pieces, pa.string())
    storage.write_table(index_file(stage), table.set_column(INDEX.get_field_index("part"), "part", column))


def index_file(stage: str) -> str:
    """Where a stage's index lies."""
    return f"{FOLDER}/{stage}.parquet"


def rows_of(commits: Iterable[tuple[str, Mapping[str, Any]]]) -> pa.Table:
    """`INDEX` rows of commits, given as file name and content. Only some of them are Python objects at a time."""
    rows = (
        {"commit": name, "part": json.dumps(part), **{key: part[key] for key in ("path", "expert", "shards")},
         "bytes": part.get("bytes", 0)}
        for name, content in commits for part in content["parts"]
    )  # fmt: skip
    batches = []
    while some := list(islice(rows, AT_ONCE)):
        batches.append(pa.RecordBatch.from_pylist(some, schema=INDEX))
    return pa.Table.from_batches(batches, schema=INDEX)
