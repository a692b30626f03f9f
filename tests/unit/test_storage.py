"""Whole-file writes, names and tables in a folder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from symoe_ray.core import InputError
from symoe_ray.storage import Storage, below, beside

SCHEMA = pa.schema([("name", pa.string()), ("count", pa.int32())])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def far(folder: Path) -> Storage:
    """A storage that does not count as local, as an object store does not; its folders must be there beforehand."""
    storage = Storage(str(folder))
    storage.filesystem = pafs.SubTreeFileSystem("", pafs.LocalFileSystem())
    assert not storage.is_local
    return storage


class TestWrites:
    def test_folders_are_made_on_the_way(self, storage: Storage, tmp_path: Path) -> None:
        storage.write_bytes("a/b/c.bin", b"\x00\xff")
        assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\x00\xff"
        assert storage.read_bytes("a/b/c.bin") == b"\x00\xff"

    def test_the_last_write_stays(self, storage: Storage) -> None:
        storage.write_bytes("x", b"a long old text")
        storage.write_bytes("x", b"new")
        assert storage.read_bytes("x") == b"new"

    def test_the_target_is_never_open_for_writing(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage.write_bytes("x", b"old")
        seen: list[bytes] = []
        sync = os.fsync

        def watched(handle: int) -> None:
            seen.append((tmp_path / "x").read_bytes())
            sync(handle)

        monkeypatch.setattr(os, "fsync", watched)
        storage.write_bytes("x", b"new")
        assert seen == [b"old"]  # flushed to the disk once, and before the rename

    def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage.write_bytes("x", b"old")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            storage.write_bytes("x", b"new")
        assert storage.read_bytes("x") == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_writers_at_once_leave_one_whole_file(self, storage: Storage, tmp_path: Path) -> None:
        with ThreadPoolExecutor(2) as threads:
            writers = [threads.submit(_write_often, str(tmp_path), mark) for mark in (b"a", b"b")]
        assert all(writer.exception() is None for writer in writers)
        assert storage.read_bytes("x") in {b"a" * 5000, b"b" * 5000}
        assert storage.names() == ["x"]

    def test_json_keeps_letters_and_makes_lists_of_tuples(self, storage: Storage) -> None:
        storage.write_json("x.json", {"é": (1, 2)})
        assert storage.read_json("x.json") == {"é": [1, 2]}
        assert storage.read_bytes("x.json").decode() == '{\n  "é": [\n    1,\n    2\n  ]\n}\n'

    def test_missing_json_is_the_default_or_an_error(self, storage: Storage) -> None:
        assert storage.read_json("x.json", {}) == {}
        with pytest.raises(FileNotFoundError):
            storage.read_json("x.json")


def _write_often(folder: str, mark: bytes) -> None:
    for _ in range(20):
        Storage(folder).write_bytes("x", mark * 5000)


class TestNames:
    def test_are_sorted_relative_and_of_all_depths(self, storage: Storage) -> None:
        for name in ("b/2.parquet", "b/1.parquet", "a.json", "b/c/3.parquet"):
            storage.write_bytes(name, b"")
        assert storage.names() == ["a.json", "b/1.parquet", "b/2.parquet", "b/c/3.parquet"]
        assert storage.names("b") == ["b/1.parquet", "b/2.parquet", "b/c/3.parquet"]
        assert storage.names(suffix=".json") == ["a.json"]
        assert storage.names("b/c", ".parquet") == ["b/c/3.parquet"]

    def test_of_no_folder_are_none(self, storage: Storage) -> None:
        assert storage.names("nothing") == []
        assert Storage(storage.path("nothing")).names() == []

    def test_leave_out_files_that_are_being_written(self, storage: Storage, tmp_path: Path) -> None:
        (tmp_path / ".x.parquet.0123").write_bytes(b"half")
        (tmp_path / ".lock").touch()
        assert storage.names() == []

    def test_a_child_is_a_folder_of_its_own(self, storage: Storage, tmp_path: Path) -> None:
        Storage(storage.path("a", "b")).write_bytes("x", b"1")
        assert storage.names() == ["a/b/x"]
        assert Storage(storage.path("a")).names() == ["b/x"]
        assert storage.path("a", "x") == f"{tmp_path}/a/x"


class TestExistence:
    def test_files_and_folders_exist_until_they_are_deleted(self, storage: Storage) -> None:
        storage.write_bytes("a/b/x", b"")
        storage.write_bytes("a/y", b"")
        assert all(storage.exists(name) for name in ("a", "a/b", "a/b/x"))
        storage.delete("a/b")
        storage.delete("a/y")
        assert storage.exists("a")
        assert not storage.exists("a/b")
        assert storage.names() == []

    def test_deleting_nothing_is_fine(self, storage: Storage) -> None:
        storage.delete("nothing")
        assert not storage.exists("nothing")


class TestTables:
    def test_of_no_files_are_empty_with_their_columns(self, storage: Storage) -> None:
        assert storage.read_tables([], SCHEMA).schema == SCHEMA
        assert storage.read_tables([], SCHEMA, ["count"]).schema == pa.schema([SCHEMA.field("count")])
        assert storage.read_tables([], SCHEMA).num_rows == 0

    def test_are_joined_in_the_order_given(self, storage: Storage) -> None:
        for name, count in (("a", 1), ("b", 2)):
            storage.write_table(f"{name}.parquet", pa.table({"name": [name], "count": [count]}, schema=SCHEMA))
        table = storage.read_tables(["b.parquet", "a.parquet"], SCHEMA)
        assert table.to_pylist() == [{"name": "b", "count": 2}, {"name": "a", "count": 1}]
        assert storage.read_tables(["b.parquet"], SCHEMA, ["name"]).to_pylist() == [{"name": "b"}]

    def test_have_the_schemas_types_whatever_the_file_has(self, storage: Storage) -> None:
        table = pa.table({"name": pa.array([None], pa.null()), "count": pa.array([5], pa.int64())})
        storage.write_table("x.parquet", table)
        assert storage.read_tables(["x.parquet"], SCHEMA).schema == SCHEMA

    def test_a_folder_called_like_a_partition_adds_no_column(self, storage: Storage) -> None:
        storage.write_table("expert=A/x.parquet", pa.table({"name": ["a"]}))
        assert storage.read_table("expert=A/x.parquet").column_names == ["name"]


class TestText:
    def test_nothing_yet_is_empty(self, storage: Storage) -> None:
        assert storage.read_text("events.jsonl") == ""

    def test_local_text_grows_in_one_file(self, storage: Storage, tmp_path: Path) -> None:
        storage.append_text("logs/events.jsonl", "ä\n")
        storage.append_text("logs/events.jsonl", "b\n")
        assert storage.read_text("logs/events.jsonl") == "ä\nb\n"
        assert (tmp_path / "logs" / "events.jsonl").read_bytes() == b"\xc3\xa4\nb\n"

    def test_elsewhere_it_grows_in_parts_that_are_read_in_order(self, tmp_path: Path) -> None:
        (tmp_path / "events.jsonl.parts").mkdir()
        storage = far(tmp_path)
        lines = [f"{number}\n" for number in range(11)]
        for line in lines:
            storage.append_text("events.jsonl", line)
        assert storage.read_text("events.jsonl") == "".join(lines)
        assert len(storage.names("events.jsonl.parts")) == 11


class TestAddresses:
    def test_a_path_and_a_file_address_are_the_same_folder(self, storage: Storage, tmp_path: Path) -> None:
        storage.write_bytes("x", b"1")
        other = Storage(f"file://{tmp_path}/")
        assert other.is_local
        assert (other.read_bytes("x"), other.names()) == (b"1", ["x"])

    def test_home_and_relative_paths_are_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert Storage("~/runs").root == Storage("runs/").root == str(tmp_path / "runs")

    def test_an_unknown_kind_of_address_is_refused(self) -> None:
        with pytest.raises(InputError, match="'nowhere://bucket/run' is no folder that can be used"):
            Storage("nowhere://bucket/run")


class TestCompactText:
    """On an object store: one file of the parts, in the order in which they were appended."""

    @pytest.fixture
    def parts(self, tmp_path: Path) -> Storage:
        (tmp_path / "log.parts").mkdir()
        return far(tmp_path)

    def test_what_is_appended_before_and_after_is_read_in_order(self, parts: Storage) -> None:
        for number in range(12):
            parts.append_text("log", f"{number}\n")
        parts.compact_text("log")
        assert parts.names() == ["log"]
        Storage.append_text(parts, "log", "12\n")
        later = far(Path(parts.root))
        later.append_text("log", "13\n")
        assert later.read_text("log").split() == [str(n) for n in range(14)]
        later.compact_text("log")
        assert later.read_text("log").split() == [str(n) for n in range(14)]
        assert later.names() == ["log"]

    def test_one_that_is_cut_off_repeats_nothing(self, parts: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        parts.append_text("log", "a\n")
        parts.append_text("log", "b\n")
        monkeypatch.setattr(parts, "delete", lambda _: None)
        parts.compact_text("log")
        assert parts.read_text("log") == "a\nb\n"

    def test_a_local_file_stays_as_it_is(self, storage: Storage) -> None:
        storage.append_text("log", "a\n")
        storage.compact_text("log")
        assert storage.read_text("log") == "a\n"


@pytest.mark.parametrize(
    ("address", "inside", "next_to_it"),
    [
        ("/runs/night", "/runs/night/x", "/runs/night-serving"),
        ("s3://b/runs/night/", "s3://b/runs/night/x", "s3://b/runs/night-serving"),
        ("s3://b/night?scheme=http&region=x", "s3://b/night/x?scheme=http&region=x",
         "s3://b/night-serving?scheme=http&region=x"),
        ("/runs/what?", "/runs/what?/x", "/runs/what?-serving"),
    ],
)  # fmt: skip
def test_an_address_keeps_its_options_behind_its_folder(address: str, inside: str, next_to_it: str) -> None:
    assert below(address, "x") == inside
    assert beside(address, "-serving") == next_to_it
