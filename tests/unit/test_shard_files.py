"""Files that name their shard, and addresses of folders."""

from __future__ import annotations

import pyarrow as pa
import pytest

from symoe_ray.core import InputError
from symoe_ray.shard_files import by_shard, of_shards, shard_file
from symoe_ray.storage import Storage, below


def test_only_files_that_may_hold_a_shard_are_opened() -> None:
    files = [f"drafts/{shard_file(1_000_003, 7)}", "questions/test/part-1000004.parquet", "part-imported.parquet"]
    files += ["recruits/part-00003.parquet", "skills/part-000003.parquet"]
    assert of_shards(files, {1_000_003}) == [files[0], *files[2:]]
    assert of_shards(files, {1_000_004}) == files[1:]
    assert of_shards(files, None) == files


def test_a_table_falls_into_its_shards() -> None:
    table = pa.table({"shard": pa.array([2, 1, 2], pa.int32()), "x": ["a", "b", "c"]})
    assert {shard: rows["x"].to_pylist() for shard, rows in by_shard(table)} == {1: ["b"], 2: ["a", "c"]}


@pytest.mark.parametrize(
    ("address", "root", "kind"),
    [
        ("s3://bucket/runs/?endpoint_override=127.0.0.1:9000&scheme=http", "bucket/runs", "s3"),
        ("gs://anonymous@bucket/runs", "bucket/runs", "gcs"),
        ("abfs://container@account.dfs.core.windows.net/runs", "container/runs", "abfs"),
    ],
)
def test_addresses_of_object_stores_and_of_runs_in_them(address: str, root: str, kind: str) -> None:
    storage = Storage(address)
    assert (storage.root, storage.filesystem.type_name, storage.is_local) == (root, kind, False)
    run = Storage(below(address, "r"))
    assert run.root == f"{root}/r"
    assert Storage(run.uri).uri == run.uri


def test_a_run_in_a_local_folder() -> None:
    assert below("runs/", "r") == below("runs", "r") == "runs/r"


@pytest.mark.parametrize("address", ["az://container/runs", "nope://x"])
def test_an_address_of_no_known_filesystem_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="no folder that can be used"):
        Storage(address)
