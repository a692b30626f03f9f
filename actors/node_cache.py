"""What this project keeps on a node between runs, and the locks by which the node's processes share it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from symoe_ray.core import ResourceError

SPARE_BYTES = 1 << 30
"""What a download leaves free on its disk."""


def cache_folder() -> Path:
    """What this project keeps between runs: $SYMOE_CACHE, else ~/.cache/symoe-ray."""
    return Path(os.environ.get("SYMOE_CACHE") or Path.home() / ".cache" / "symoe-ray")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is being made; the kernel releases it with the process, however that ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_room(needed_bytes: int, what: str) -> None:
    """ResourceError where the cache folder's disk has no room for so many more bytes."""
    folder = cache_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed_bytes and needed_bytes + SPARE_BYTES > free:
        raise ResourceError(
            f"{what}: {needed_bytes / 1e9:.1f} GB are to be fetched into {folder}, whose disk has {free / 1e9:.1f} GB "
            f"free ({SPARE_BYTES / 1e9:.1f} GB of it stay free): make room, or set SYMOE_CACHE to a larger disk"
        )
