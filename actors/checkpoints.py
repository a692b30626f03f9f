"""What a model folder's files say without reading a tensor: configuration, weight files, and the tensors in them."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from symoe_ray.core import ResourceError

INDEX = "model.safetensors.index.json"
Header = Mapping[str, Mapping[str, Any]]  # tensor name -> dtype, shape, data_offsets


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no such file. ResourceError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResourceError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ResourceError(f"{path}: holds no JSON object")
    return value


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model: `text_config` of a multimodal one, else all."""
    nested = config.get("text_config") or config.get("llm_config")
    return nested if isinstance(nested, Mapping) else config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that vLLM loads: those of the index where there is one, else all.

    A repository may hold its weights a second time under other names, as Mistral's do. ResourceError where a file of
    the index is missing, as after a download that was cut off.
    """
    index = read_json(folder / INDEX)
    if not index:
        there = sorted(folder.glob("*.safetensors"))
        return [path for path in there if not path.name.startswith("consolidated")] or there
    files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    if missing := [path.name for path in files if not path.is_file()]:
        raise ResourceError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(files)} weight files are)")
    return files


def tensors(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Name -> dtype, shape and data_offsets of every tensor in a folder's weight files, from their headers alone."""
    return {name: tensor for path in weight_files(folder) for name, tensor in header(path).items()}


def header(path: Path) -> Header:
    """The header of a safetensors file, without its metadata; not read again while size and mtime stay.

    The format: 8 bytes little-endian header length, then the header as JSON.
    """
    stat = path.stat()
    return _header(path, stat.st_size, stat.st_mtime_ns)


def header_bytes(path: Path) -> bytes:
    """The beginning of a safetensors file, up to its first tensor."""
    with path.open("rb") as file:
        size = file.read(8)
        if len(size) < 8:
            raise ResourceError(f"{path}: is no safetensors file")
        (length,) = struct.unpack("<Q", size)
        text = file.read(min(length, path.stat().st_size))
    return size + text


@functools.lru_cache(maxsize=256)
def _header(path: Path, size: int, mtime_ns: int) -> Header:
    try:
        read = json.loads(header_bytes(path)[8:])
    except ValueError as error:
        raise ResourceError(f"{path}: is no safetensors file ({error})") from error
    return {name: tensor for name, tensor in read.items() if name != "__metadata__"}


def kept_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, kept while its size and mtime stay (a large tokenizer.json has 30 MB)."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
