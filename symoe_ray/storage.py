"""A folder on any pyarrow filesystem, with whole-file writes that are either there or not.

A local write goes to a temporary name, is flushed to the disk and renamed; on an object store one PUT is atomic
already. An address may carry the filesystem's options, which travel with it to every node:
`s3://bucket/runs?endpoint_override=127.0.0.1:9000&scheme=http`. Keys belong into each node's environment or role.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from symoe_ray.core import InputError

READERS = 16


def below(address: str, name: str) -> str:
    """The address of something in a folder: a local path, or an address with or without options."""
    return beside(address, f"/{name}")


def beside(address: str, ending: str) -> str:
    """The address of a folder whose name has this ending more; options stay where they are."""
    folder, mark, options = address.partition("?") if "://" in address else (address, "", "")
    return f"{folder.rstrip('/')}{ending}{mark}{options}"


class Storage:
    """The folder at `uri`: a local path, s3://, gs://, abfs://, ... Paths given to its methods are relative to it."""

    def __init__(self, uri: str) -> None:
        self.uri = below(uri, "").replace("/?", "?").rstrip("/") if "://" in uri else _local(uri)
        self._appended: dict[str, int] = {}
        try:
            if "://" in uri:
                self.filesystem, self.root = pafs.FileSystem.from_uri(self.uri)
            else:
                self.filesystem, self.root = pafs.LocalFileSystem(), self.uri
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError, OSError) as error:
            raise InputError(f"{uri!r} is no folder that can be used: {error}") from error

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's own filesystem."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, *names: str) -> str:
        """The filesystem's own path of something in this folder."""
        return "/".join((self.root, *names))

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is there."""
        return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def names(self, folder: str = "", suffix: str = "") -> list[str]:
        """The files below `folder` (relative to this storage), sorted; empty where there is no such folder."""
        selector = pafs.FileSelector(self.path(folder) if folder else self.root, recursive=True, allow_not_found=True)
        found = (i.path for i in self.filesystem.get_file_info(selector) if i.type == pafs.FileType.File)
        cut = len(self.root.rstrip("/")) + 1
        return sorted(p[cut:] for p in found if p.endswith(suffix) and not p.rsplit("/", 1)[-1].startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        """The files below `folder` with their sizes in bytes."""
        selector = pafs.FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        cut = len(self.root.rstrip("/")) + 1
        found = self.filesystem.get_file_info(selector)
        return {i.path[cut:]: i.size for i in found if i.type == pafs.FileType.File}

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; nothing happens where there is none."""
        kind = self.filesystem.get_file_info(self.path(name)).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif kind != pafs.FileType.NotFound:
            self.filesystem.delete_file(self.path(name))

    def read_bytes(self, name: str) -> bytes:
        """The whole file; FileNotFoundError where there is none."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """The whole files, in that order; on an object store `READERS` at a time."""
        if self.is_local:
            yield from map(self.read_bytes, names)
            return
        with ThreadPoolExecutor(READERS) as readers:
            yield from readers.map(self.read_bytes, names)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the whole file at once: readers see the old one or the new one, never a part."""
        target = self.path(name)
        if not self.is_local:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        folder = Path(target).parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{Path(target).name}.{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def read_json(self, name: str, default: Any = None) -> Any:
        """The parsed file, or `default` where there is none."""
        if default is not None and not self.exists(name):
            return default
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: object) -> None:
        """Write `value` as indented JSON."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=list)
        self.write_bytes(name, (text + "\n").encode())

    def append_text(self, name: str, text: str) -> None:
        """Append to a local text file; on an object store a new part is written beside it (`<name>.parts/`)."""
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        count = self._appended.get(name)
        if count is None:
            parts = self.names(f"{name}.parts")
            count = int(parts[-1].rsplit("/", 1)[1].split("-")[0]) + 1 if parts else 0
        self._appended[name] = count + 1
        self.write_bytes(f"{name}.parts/{count:06d}-{uuid.uuid4().hex[:8]}", text.encode())

    def read_text(self, name: str) -> str:
        """What `append_text` has written so far; "" where nothing was."""
        text = self.read_bytes(name).decode() if self.exists(name) else ""
        if self.is_local:
            return text
        parts = (part.decode() for part in self.read_many(self.names(f"{name}.parts")))
        return text + "".join(part for part in parts if part not in text)  # which a cut-off `compact_text` has left

    def compact_text(self, name: str) -> None:
        """Make one file of the parts that `append_text` has written; nobody else may append meanwhile."""
        parts = [] if self.is_local else self.names(f"{name}.parts")
        if parts:
            self.write_bytes(name, self.read_text(name).encode())
            for part in parts:
                self.delete(part)

    def write_table(self, name: str, table: pa.Table) -> int:
        """Write a Parquet file at once; returns its size in bytes."""
        return self.write_tables(name, table.schema, [table])

    def write_tables(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
        """Write one Parquet file of several tables, of which one is in memory at a time; returns its size in bytes."""
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        self.write_bytes(name, data)
        return len(data)

    def read_table(self, name: str, columns: list[str] | None = None, filters: pc.Expression | None = None) -> pa.Table:
        """Read one Parquet file: all of it, or these columns, and the rows that a filter lets through."""
        return pq.read_table(
            self.path(name), filesystem=self.filesystem, columns=columns, filters=filters, partitioning=None
        )

    def read_pieces(self, name: str, columns: list[str], rows: int) -> Iterator[pa.Table]:
        """Read one Parquet file, so many rows at a time."""
        with self.filesystem.open_input_file(self.path(name)) as file:
            for batch in pq.ParquetFile(file).iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])

    def read_tables(self, names: list[str], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """Read several Parquet files as one table (empty, of that schema, where there are none)."""
        wanted = pa.schema([schema.field(c) for c in columns]) if columns else schema
        tables = [self.read_table(name, columns).cast(wanted) for name in names]
        return pa.concat_tables(tables) if tables else wanted.empty_table()


def _local(path: str) -> str:
    return str(Path(path).expanduser().resolve())
