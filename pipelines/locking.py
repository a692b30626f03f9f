"""One driver per run: by the kernel's file lock where the run's folder has one, by a claim on an object store."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from symoe_ray.claims import BEAT_S, Claim
from symoe_ray.core import InputError, ResourceError
from symoe_ray.storage import Storage


@dataclass(frozen=True, slots=True)
class Hold:
    """A run in the hands of this process. `token` is this attempt's own; `check` raises where the run is lost."""

    token: str
    check: Callable[[], None]


@contextmanager
def locked(storage: Storage, say: Callable[[str], None] = lambda _: None) -> Iterator[Hold]:
    """Hold the run; ResourceError where another process works on it, InputError where its folder cannot be written.

    The kernel releases a dead driver's file lock at once. On an object store its claim is waited out: `say` tells.
    """
    token = uuid.uuid4().hex[:8]
    with _file_lock(storage) if storage.is_local else _claimed(storage, token, say) as check:
        yield Hold(token, check)


@contextmanager
def _file_lock(storage: Storage) -> Iterator[Callable[[], None]]:
    try:
        Path(storage.root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run {storage.uri}: the folder cannot be made: {error.strerror or error}") from None
    try:
        descriptor = os.open(storage.path(".lock"), os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"run {storage.uri}: the folder cannot be written: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(f"run {storage.uri} is being worked on by another process") from None
        yield lambda: None
    finally:
        os.close(descriptor)


@contextmanager
def _claimed(storage: Storage, token: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    claim = Claim(storage, token, f"process {os.getpid()} on {socket.gethostname()}", say=say)
    claim.take()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError, ResourceError):  # `check` tells: also of a storage that was away for too long
                claim.renew()

    renewing = threading.Thread(target=renew, name="driver-claim", daemon=True)
    renewing.start()
    try:
        yield claim.check
    finally:
        ended.set()
        renewing.join()
        claim.release()
