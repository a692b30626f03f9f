"""The one place that runs Ray Data. Imported when a stage first needs it: a run with nothing to do starts no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult

from symoe_ray.shard_files import by_shard, shard_file
from symoe_ray.storage import Storage


class ShardSink(Datasink[list[str]]):
    """Writes the rows of each shard to a file of its own; `written` are the files once all are there.

    Names follow from the shard and the task alone, so that a task which runs twice, as one does whose node is lost,
    replaces what it wrote. A table without a column `shard` gets a file for each task.
    """

    def __init__(self, uri: str, folder: str, partition_by: str) -> None:
        self._uri, self._folder, self._partition_by = uri, folder, partition_by
        self.written: list[str] = []

    def write(self, blocks: Iterable[Block], ctx: object) -> list[str]:
        """On a node: write what a task has made."""
        tables = [t for t in (BlockAccessor.for_block(block).to_arrow() for block in blocks) if len(t)]
        task: int = ctx.task_idx  # type: ignore[attr-defined]
        storage, names = Storage(self._uri), []
        for folder, rows in self._partitions(pa.concat_tables(tables)) if tables else ():
            for name, own in _files(rows, task):
                names.append(f"{self._folder}/{folder}{name}")
                storage.write_table(names[-1], own)
        return names

    def on_write_complete(self, write_result: WriteResult[list[str]]) -> None:
        """In the driver: note the files."""
        self.written = [name for names in write_result.write_returns for name in names]

    def _partitions(self, table: pa.Table) -> list[tuple[str, pa.Table]]:
        """Hive partitions: the rows of each value go to a folder of that name, which leaves the files."""
        if not self._partition_by:
            return [("", table)]
        column = table[self._partition_by]
        rest = table.drop_columns(self._partition_by)
        values = sorted(pc.unique(column).to_pylist())
        return [(f"{self._partition_by}={v}/", rest.filter(pc.equal(column, v))) for v in values]


def _files(table: pa.Table, task: int) -> list[tuple[str, pa.Table]]:
    if "shard" not in table.column_names:
        return [(f"part-{task:06d}.parquet", table)]
    return [(shard_file(shard, task), rows) for shard, rows in by_shard(table)]


def map_parquet(
    storage: Storage, files: list[str], function: Callable[[pa.Table], pa.Table], folder: str, partition_by: str = ""
) -> list[str]:
    """Map Parquet files, one task each, and write what comes out to `folder`; returns the files.

    With `partition_by` the rows go to one sub-folder per value of that column. Rows go from node to storage and never
    through the driver. Needs CPUs that no slot holds; slots take none. Tasks read their files themselves:
    `ray.data.read_parquet` has actors look at all files first (Ray 2.60), and an execution ends with an error when the
    node of one is lost, where a lost task is run again.
    """
    names = ray.data.from_items([{"file": name} for name in files], override_num_blocks=len(files))
    sink = ShardSink(storage.uri, folder, partition_by)
    mapped = partial(_mapped, storage.uri, function)
    names.map_batches(mapped, batch_format="pyarrow", batch_size=None, zero_copy_batch=True).write_datasink(sink)
    return sorted(sink.written)


def _mapped(uri: str, function: Callable[[pa.Table], pa.Table], batch: pa.Table) -> Iterator[pa.Table]:
    storage = Storage(uri)
    for name in batch["file"].to_pylist():
        yield function(storage.read_table(name))
