"""The commits of a stage in one file, so that whoever reads them opens one instead of thousands.

The commits themselves stay and decide: what the index lacks is read from them, and what it holds counts only where its
commit does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def read_index(storage: Storage, stage: str, commits: Iterable[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The parts of these commits that the stage's index holds, in its order, some at a time: `columns` and `commit`."""
    if storage.exists(index_file(stage)):
        these = pa.array(commits, pa.string())
        for piece in storage.read_pieces(index_file(stage), ["commit", *columns], AT_ONCE):
            yield piece.filter(pc.is_in(piece["commit"], value_set=these))


def write_index(storage: Storage, stage: str, pieces: Iterable[pa.Table]) -> None:
    """Replace a stage's index. The rows that a part has finished (`done`) are not kept: nobody asks any more."""
    storage.write_tables(index_file(stage), INDEX, map(_without_rows, pieces))


def _without_rows(piece: pa.Table) -> pa.Table:
    short = [json.dumps(json.loads(part) | {"done": []}) for part in piece["part"].to_pylist()]
    return piece.set_column(INDEX.get_field_index("part"), "part", pa.array(short, pa.string()))


def index_file(stage: str) -> str:
    """Where a stage's index lies."""
    return f"{FOLDER}/{stage}.parquet"


def rows_of(commits: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[pa.Table]:
    """`INDEX` rows of commits, given as file name and content, some at a time."""
    rows = (
        {"commit": name, "part": json.dumps(part), **{key: part[key] for key in ("path", "expert", "shards")},
         "bytes": part.get("bytes", 0)}
        for name, content in commits for part in content["parts"]
    )  # fmt: skip
    while some := list(islice(rows, AT_ONCE)):
        yield pa.Table.from_pylist(some, schema=INDEX)
