"""A run is in one driver's hands: by the kernel's lock on a disk, by claims where there are no locks."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipelines import locking
from pipelines.locking import locked
from symoe_ray import claims
from symoe_ray.core import InputError, ResourceError
from symoe_ray.storage import Storage


def put(storage: Storage, name: str, data: bytes) -> None:
    """Write an object as a store does: at once."""
    hidden = Path(storage.path(f".{threading.get_ident()}"))
    hidden.write_bytes(data)
    hidden.replace(storage.path(name))


@pytest.fixture(params=["disk", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "object store":
        monkeypatch.setattr(Storage, "is_local", False)
        monkeypatch.setattr(claims, "BEAT_S", 0.2)
        monkeypatch.setattr(claims, "DEAD_S", 1.0)
        monkeypatch.setattr(locking, "BEAT_S", 0.2)
        monkeypatch.setattr(Storage, "write_bytes", put)
        (tmp_path / "run" / claims.FOLDER).mkdir(parents=True)
    return Storage(str(tmp_path / "run"))


def test_a_second_driver_is_refused_until_the_first_is_through(storage: Storage) -> None:
    with locked(storage) as first:
        for _ in range(2):
            with pytest.raises(ResourceError, match="worked on by another process"), locked(storage):
                pass
        first.check()
    with locked(storage) as second:
        second.check()
        assert second.token != first.token
    assert storage.names(claims.FOLDER) == []


def test_a_run_that_fails_is_let_go(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), locked(storage):
        raise ZeroDivisionError
    with locked(storage) as hold:
        hold.check()


def test_a_driver_whose_claim_was_taken_away_may_write_no_more(storage: Storage) -> None:
    if storage.is_local:
        pytest.skip("nobody can take away a file lock")
    with locked(storage) as hold:
        for name in storage.names(claims.FOLDER):
            storage.delete(name)
        time.sleep(claims.DEAD_S)  # until it would be taken for dead
        with pytest.raises(ResourceError, match="taken over by another driver"):
            hold.check()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    storage, message = Storage(str(tmp_path / "file" / "run")), r"run .*/file/run: the folder cannot be made: Not a"
    with pytest.raises(InputError, match=message), locked(storage):
        pass
