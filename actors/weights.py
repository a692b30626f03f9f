"""Copies of models on this node's disk: fetched once for all of the node's processes, resumed, and checked.

A staged model is the folder `weights/<name>/<version>/` of the cache ($SYMOE_CACHE), with the SHA-256 of its files in
checksums.json. It is fetched into `.<version>.partial` beside it, file by file in parallel, each under the name
`<file>.part` until its checksum is right; what an interrupted fetch has left there is gone on with. `refs/` notes the
version that a branch, or an address, was the last time.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from actors.model_recipes import sha256_of
from actors.node_cache import cache_folder, check_room, locked
from actors.weight_sources import CHECKSUMS, COMMIT, Source, SourceFile, is_address, source_of, split_revision
from symoe_ray.core import ResourceError
from symoe_ray.fingerprints import digest

PARALLEL_FILES = 8
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A model's folder on this node. `fetched_bytes` came from the source just now (0: all was here)."""

    folder: Path
    version: str
    size_bytes: int
    fetched_bytes: int = 0
    seconds: float = 0.0


class _Stopped(BaseException):
    """Another file of the model has failed, or a signal has come."""


def stage(model: str, revision: str = "", *, source: Source | None = None, on_bytes: OnBytes | None = None) -> Staged:
    """Have the version that an address or a hub id's revision is now, whole and checked.

    `source` is what `source_of` says, where that is known already. `on_bytes` is told, from several threads, how many
    more bytes have come. ResourceError where the source does not answer, the disk has no room, or a file is not what
    the source says; what is here by then stays for the next call.
    """
    started = time.monotonic()
    source = source or source_of(model, revision)
    folder = _place(model) / source.version
    fetched = 0
    if not (folder / CHECKSUMS).is_file():
        with locked(folder):
            if not (folder / CHECKSUMS).is_file():
                fetched = _fetch(model, source, folder, on_bytes or (lambda _: None))
    _note(model, revision, source.version)
    size = sum(file.size_bytes for file in source.files)
    seconds = time.monotonic() - started
    return Staged(folder=folder, version=source.version, size_bytes=size, fetched_bytes=fetched, seconds=seconds)


def staged(model: str, revision: str = "") -> Path | None:
    """The folder of the version that was staged last (of a commit: that commit's), without asking the source."""
    name, revision = (model, "") if is_address(model) else split_revision(model, revision)
    place = _place(name)
    version = revision
    if not COMMIT.fullmatch(revision):
        try:
            version = (place / "refs" / digest(revision)).read_text()
        except OSError:
            return None
    return place / version if (place / version / CHECKSUMS).is_file() else None


def missing_bytes(model: str, source: Source) -> int:
    """How many bytes of a source are not on this node yet."""
    folder = _place(model) / source.version
    if (folder / CHECKSUMS).is_file():
        return 0
    partial = _partial(folder)
    return sum(max(0, file.size_bytes - _have(partial, file)) for file in source.files)


def _place(model: str) -> Path:
    """Where all versions of a model lie."""
    name = model if is_address(model) else split_revision(model, "")[0]
    base = re.sub(r"[^A-Za-z0-9.-]+", "_", name.partition("?")[0].rstrip("/").rsplit("/", 1)[-1])
    return cache_folder() / "weights" / f"{base}-{digest(name, size=4)}"


def _partial(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.partial"


def _part(partial: Path, file: SourceFile) -> Path:
    return partial / f"{file.path}.part"


def _have(partial: Path, file: SourceFile) -> int:
    """Bytes of a file that are here."""
    for path in (partial / file.path, _part(partial, file)):
        if path.is_file():
            return path.stat().st_size
    return 0


def _note(model: str, revision: str, version: str) -> None:
    name, revision = (model, "") if is_address(model) else split_revision(model, revision)
    ref = _place(name) / "refs" / digest(revision)
    if not COMMIT.fullmatch(revision):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(version)


def _fetch(model: str, source: Source, folder: Path, on_bytes: OnBytes) -> int:
    """Fetch what is missing, then give the folder its name; returns the bytes fetched. The lock is held."""
    partial = _partial(folder)
    missing = missing_bytes(model, source)
    check_room(missing, f"model {model}")
    stop = threading.Event()
    sums: dict[str, str] = {}
    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="weights") as threads:
        try:
            biggest_first = sorted(source.files, key=lambda file: -file.size_bytes)
            futures = {threads.submit(_have_file, model, source, f, partial, on_bytes, stop): f for f in biggest_first}
            for future in as_completed(futures):
                sums[futures[future].path] = future.result()
        except BaseException:
            stop.set()
            threads.shutdown(cancel_futures=True)
            raise
    files = {f.path: {"bytes": f.size_bytes, "sha256": sums[f.path]} for f in source.files}
    record = {"source": model, "version": source.version, "files": files}
    (partial / CHECKSUMS).write_text(json.dumps(record, indent=1))
    partial.rename(folder)
    return missing


def _have_file(
    model: str, source: Source, file: SourceFile, partial: Path, on_bytes: OnBytes, stop: threading.Event
) -> str:
    """Have one file under its name; its SHA-256."""
    path, part = partial / file.path, _part(partial, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():  # an interrupted fetch had finished it; it is checked again
        path.rename(part)
    if part.is_file() and part.stat().st_size > file.size_bytes:
        part.unlink()
    with part.open("r+b" if part.exists() else "w+b") as sink:
        offset = sink.seek(0, 2)
        if offset < file.size_bytes:
            try:
                source.copy(file, cast(BinaryIO, _Sink(sink, on_bytes, stop)), offset)
            except OSError as error:
                raise ResourceError(f"model {model}: {file.path}: {error}") from error
    sha256, size = sha256_of(part), part.stat().st_size
    expected, found = (file.git_sha1, git_sha1_of(part)) if file.git_sha1 else (file.sha256 or sha256, sha256)
    if found != expected or size != file.size_bytes:
        part.unlink()
        raise ResourceError(
            f"model {model}: {file.path} came with {size} bytes and checksum {found}; the source says "
            f"{file.size_bytes} bytes and {expected}. It is deleted: the same command fetches it again"
        )
    part.rename(path)
    return sha256


def git_sha1_of(path: Path) -> str:
    """Hex SHA-1 by which git knows a file's content."""
    sha1 = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha1.update(block)
    return sha1.hexdigest()


class _Sink:
    """A file that counts what is written, and that ends the writing thread when it is told to."""

    def __init__(self, file: Any, on_bytes: OnBytes, stop: threading.Event) -> None:
        self._file, self._on_bytes, self._stop = file, on_bytes, stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise _Stopped
        self._on_bytes(len(data))
        return int(self._file.write(data))

    def truncate(self) -> int:
        """The source begins again: what was there does not count."""
        here = self._file.tell()
        self._on_bytes(here - self._file.seek(0, 2))
        self._file.seek(here)
        return int(self._file.truncate())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())
