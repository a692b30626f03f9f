"""Where weights are fetched from: the Hugging Face hub, or a folder on a filesystem of pyarrow (s3://, gs://, ...)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import BinaryIO, Protocol

from pyarrow import fs as pafs

from symoe_ray.core import ResourceError
from symoe_ray.fingerprints import digest
from symoe_ray.storage import Storage

CHECKSUMS = "checksums.json"
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
UNWANTED = ("original/*", "consolidated*", "onnx/*", "openvino/*", CHECKSUMS)
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT_S = 20.0
BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file of a model: its path in the folder, and what the source says of it ("": it does not).

    The hub knows the SHA-256 of large files, and git's SHA-1 of small ones.
    """

    path: str
    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""


class Source(Protocol):
    """The files of one version of a model. `version` is the hub's commit, else a digest of the listing."""

    @property
    def version(self) -> str: ...

    @property
    def files(self) -> tuple[SourceFile, ...]: ...

    def copy(self, file: SourceFile, sink: BinaryIO, offset: int) -> None:
        """Write the file's bytes from `offset` on; the sink is at that place. OSError where they cannot be had."""


def is_address(model: str) -> bool:
    """Whether a model is named by an address (s3://BUCKET/FOLDER), of which each node makes a copy on its disk."""
    return "://" in model


def split_revision(model: str, revision: str) -> tuple[str, str]:
    """A hub id and its revision, which may stand in the id: ORGANISATION/NAME@REVISION."""
    name, _, after = model.partition("@")
    return name, after or revision


def source_of(model: str, revision: str) -> Source:
    """The source of a model that is an address or a hub id; ResourceError where it does not answer or has none."""
    return _folder_source(model) if is_address(model) else _hub_source(*split_revision(model, revision))


def hub_commit(model: str, revision: str) -> str:
    """The commit that a hub id's revision ("": the default branch) is now; ResourceError where the hub cannot tell."""
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(model, revision=revision or None, timeout=HUB_TIMEOUT_S).sha)
    except Exception as error:  # the hub library's own errors, and those of the HTTP library that it uses
        raise _unreachable(model, revision, error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hub:
    model: str
    version: str
    files: tuple[SourceFile, ...]

    def copy(self, file: SourceFile, sink: BinaryIO, offset: int) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        disable_progress_bars()
        url = hf_hub_url(self.model, file.path, revision=self.version)
        try:
            http_get(url, sink, resume_size=offset, headers=build_hf_headers(), expected_size=file.size_bytes)
        except Exception as error:  # as above
            if isinstance(error, OSError) and error.errno:  # of the disk, or of a connection
                raise
            raise ResourceError(
                f"model {self.model}: {file.path} cannot be had from the Hugging Face hub ({_line(error)}); the same "
                "command goes on where this one stopped"
            ) from error


def _hub_source(model: str, revision: str) -> _Hub:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    commit = hub_commit(model, revision)
    try:
        entries = [e for e in HfApi().list_repo_tree(model, recursive=True, revision=commit) if isinstance(e, RepoFile)]
    except Exception as error:  # as above
        raise _unreachable(model, revision, error) from error
    files = tuple(
        SourceFile(
            path=e.path, size_bytes=e.size, sha256=e.lfs.sha256 if e.lfs else "", git_sha1="" if e.lfs else e.blob_id
        )
        for e in entries
        if _wanted(e.path)
    )
    return _Hub(model=model, version=commit, files=_with_weights(model, files))


def _unreachable(model: str, revision: str, error: Exception) -> ResourceError:
    at = f" --revision {revision}" if revision else ""
    return ResourceError(
        f"model {model}{at} is no local folder and cannot be had from the Hugging Face hub ({_line(error)}). Name a "
        f"folder, or run `hf download {model}{at}` where the hub is reached (HF_TOKEN for a gated model)"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    filesystem: pafs.FileSystem
    root: str
    version: str
    files: tuple[SourceFile, ...]

    def copy(self, file: SourceFile, sink: BinaryIO, offset: int) -> None:
        with self.filesystem.open_input_file(f"{self.root}/{file.path}") as stream:
            stream.seek(offset)
            while block := stream.read(BLOCK_BYTES):
                sink.write(block)


def _folder_source(address: str) -> _Folder:
    """A folder's files; with a checksums.json in it (as a staged model has one) their SHA-256 are known as well."""
    storage = Storage(address)
    filesystem, root = storage.filesystem, storage.root
    try:
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
        listed = {info.path.removeprefix(f"{root}/"): info for info in found if info.type == pafs.FileType.File}
        known = {}
        if CHECKSUMS in listed:
            with filesystem.open_input_stream(f"{root}/{CHECKSUMS}") as stream:
                known = {path: entry["sha256"] for path, entry in json.loads(stream.read())["files"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise ResourceError(f"model {address} cannot be read: {_line(error)}") from error
    names = [path for path in sorted(listed) if _wanted(path)]
    files = tuple(SourceFile(path=p, size_bytes=listed[p].size, sha256=known.get(p, "")) for p in names)
    version = digest([[f.path, f.size_bytes, f.sha256 or str(listed[f.path].mtime)] for f in files])
    return _Folder(filesystem=filesystem, root=root, version=version, files=_with_weights(address, files))


def _wanted(path: str) -> bool:
    """Whether an engine may need this file. A path that leads out of the folder is nothing that a model has."""
    if ".." in path.split("/") or path.startswith("/"):
        return False
    return any(fnmatch(path, p) for p in WANTED) and not any(fnmatch(path, p) for p in UNWANTED)


def _with_weights(model: str, files: tuple[SourceFile, ...]) -> tuple[SourceFile, ...]:
    if not any(file.path.endswith(".safetensors") for file in files):
        raise ResourceError(f"model {model} has no safetensors files, and other formats are not loaded")
    return files
