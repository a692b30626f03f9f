"""Files that bear the number of the shard whose rows they hold, so that who wants a shard opens no other files.

`part-<shard>-<task>.parquet`: seven digits, then the task that wrote it. A file of another name may hold any shard.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

_NAMED = re.compile(r"part-(\d{7})[-.][^/]*$")


def shard_file(shard: int, task: int) -> str:
    """The name of a file with rows of one shard."""
    return f"part-{shard:07d}-{task:06d}.parquet"


def of_shards(names: Iterable[str], shards: Collection[int] | None) -> list[str]:
    """The files that may hold rows of these shards (None: of any)."""
    return [name for name in names if shards is None or _shard(name) is None or _shard(name) in shards]


def by_shard(table: pa.Table) -> list[tuple[int, pa.Table]]:
    """A table with a column `shard`, in one table for each."""
    return [(shard, table.filter(pc.equal(table["shard"], shard))) for shard in pc.unique(table["shard"]).to_pylist()]


def in_shards(shards: Collection[int]) -> pc.Expression:
    """The filter for rows of these shards."""
    return pc.field("shard").isin(pa.array(sorted(shards), pa.int32()))


def _shard(name: str) -> int | None:
    found = _NAMED.search(name)
    return int(found[1]) if found else None
