"""Whether a model's files on this node are what they were when they came: checksums, and whole weight files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from actors.checkpoints import header, header_bytes, weight_files
from actors.model_recipes import sha256_of
from actors.models import PACKAGE, found
from actors.weight_sources import CHECKSUMS
from actors.weights import git_sha1_of
from symoe_ray.core import ResourceError

PARALLEL_FILES = 4
SHA256, GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A checked folder. `checked` of its `files` had a checksum to compare with; `problems` is empty if all is well."""

    folder: str
    files: int
    checked: int
    size_bytes: int
    problems: tuple[str, ...] = ()


def verify(model: str, revision: str = "") -> Verified:
    """Compare a model that is here with its checksums, and the length of its weight files with their headers.

    Checksums are those of `checksums.json` in the folder (a staged or prepared model has one, `record` makes one), or
    in the hub's own cache the names of the blobs. ResourceError where the model is not here.
    """
    folder = found(model, revision)
    if folder is None:
        how = "python -m actors.models prepare" if model.startswith(PACKAGE) else "symoe models pull"
        raise ResourceError(f"model {model}: not on this node ({how} has it)")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    known = _checksums(folder, files)
    with ThreadPoolExecutor(PARALLEL_FILES) as threads:
        problems = list(threads.map(_problem, [folder / path for path in known], known.values()))
    return Verified(
        folder=str(folder), files=len(files), checked=len(known), size_bytes=sum(p.stat().st_size for p in files),
        problems=tuple(problem for problem in [*problems, *_lengths(folder)] if problem),
    )  # fmt: skip


def record(folder: Path) -> int:
    """Write a folder's checksums.json, by which it, and copies made of it, are verified from then on; its files."""
    problems = _lengths(folder)
    if problems:
        raise ResourceError("; ".join(problems))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    with ThreadPoolExecutor(PARALLEL_FILES) as threads:
        sums = list(threads.map(sha256_of, files))
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, sums, strict=True)
    }
    (folder / CHECKSUMS).write_text(json.dumps({"files": entries}, indent=1))
    return len(files)


def _checksums(folder: Path, files: list[Path]) -> Mapping[str, str]:
    """Path -> hex SHA-256 or git's SHA-1, of the files for which one is known."""
    try:
        record = json.loads((folder / CHECKSUMS).read_text())
        return {path: entry["sha256"] for path, entry in record["files"].items()}
    except FileNotFoundError:
        # the hub's cache: snapshots/<commit>/<path> is a link to blobs/<checksum>
        return {str(p.relative_to(folder)): p.resolve().name for p in files if p.is_symlink()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResourceError(f"{folder / CHECKSUMS}: is no list of checksums ({error})") from error


def _problem(path: Path, expected: str) -> str:
    """What is wrong with a file, "" if nothing is."""
    try:
        if SHA256.fullmatch(expected):
            return "" if sha256_of(path) == expected else f"{path}: SHA-256 is not {expected}"
        if GIT_SHA1.fullmatch(expected):
            return "" if git_sha1_of(path) == expected else f"{path}: git's SHA-1 is not {expected}"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return f"{path}: {expected} is no checksum"


def _lengths(folder: Path) -> list[str]:
    """Weight files that are missing, cut off, or longer than their headers say."""
    try:
        paths = weight_files(folder)
    except ResourceError as error:
        return [str(error)]
    problems = [] if paths else [f"{folder}: there are no safetensors files"]
    for path in paths:
        try:
            end = max((tensor["data_offsets"][1] for tensor in header(path).values()), default=0)
            expected = len(header_bytes(path)) + end
        except (OSError, ResourceError) as error:
            problems.append(str(error))
            continue
        if path.stat().st_size != expected:
            problems.append(f"{path}: has {path.stat().st_size} bytes where its header says {expected}")
    return problems
