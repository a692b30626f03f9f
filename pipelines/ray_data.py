"""The one place that runs Ray Data. Imported when a stage first needs it: a run with nothing to do starts no Ray."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import ray
from ray.data.datasource import FilenameProvider

from symoe_ray.storage import Storage


class _PartNames(FilenameProvider):
    """part-<write>-<task>.parquet"""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{write_uuid}-{task_index:06d}.parquet"


def map_parquet(
    storage: Storage, files: list[str], function: Callable[[pa.Table], pa.Table], folder: str, partition_by: str = ""
) -> None:
    """Read Parquet files, a block each, map the blocks, and write what comes out to `folder`.

    With `partition_by` the rows go to one sub-folder per value of that column, which leaves the files (Hive
    partitions). Needs CPUs that no slot holds; slots take none.
    """
    dataset = ray.data.read_parquet(
        [storage.path(name) for name in files],
        filesystem=storage.filesystem,
        override_num_blocks=len(files),
        partitioning=None,
    )
    dataset.map_batches(function, batch_format="pyarrow", batch_size=None, zero_copy_batch=True).write_parquet(
        storage.path(folder),
        filesystem=storage.filesystem,
        filename_provider=_PartNames(file_format="parquet"),
        partition_cols=[partition_by] if partition_by else None,
    )
