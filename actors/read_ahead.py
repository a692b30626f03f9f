"""Reads a model's files into the page cache, so that the engine that loads them next finds them in memory."""

from __future__ import annotations

from pathlib import Path

from actors.checkpoints import weight_files

BLOCK_BYTES = 16 << 20


def read_ahead(folder: Path) -> int:
    """Read what an engine loads of a folder: weights, tokenizer, settings; how many bytes.

    Blocks; costs little where they are cached. ResourceError where weights are missing.

    Plain reads: the kernel takes advice about a whole file (POSIX_FADV_WILLNEED) only up to its read-ahead window, and
    a network file system may ignore it.
    """
    buffer, total = bytearray(BLOCK_BYTES), 0
    small = (p for p in folder.iterdir() if p.suffix in (".json", ".model") and p.is_file())
    for path in (*weight_files(folder), *sorted(small)):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total
