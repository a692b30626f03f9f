"""The checker of the chaos runs finds what is lost, there twice or different, and lets fenced commits be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults.checking import verdict
from symoe_ray.ledger import Commits, Part
from symoe_ray.storage import Storage
from tests.unit.test_ledger import STAGE, put_part, put_requests, response


def made(folder: Path, text: str = "fine") -> tuple[Storage, Part]:
    """A run of two requests in one committed part."""
    storage = Storage(str(folder))
    put_requests(storage, {"a": 1, "b": 1})
    part = put_part(storage, "part-0", [response(("a", 0), text=text), response(("b", 0))])
    first = Commits(storage, epoch=1, token="x")
    first.fence()
    first.append([part])
    return storage, part


@pytest.fixture
def base(tmp_path: Path) -> Path:
    made(tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


def test_a_run_like_the_undisturbed_one_is_fine(base: Path, tmp_path: Path) -> None:
    storage, _ = made(tmp_path / "run")
    Commits(storage, epoch=2, token="y").fence()
    storage.write_bytes(
        f"commits/{STAGE}/000001x-000001.json", storage.read_bytes(f"commits/{STAGE}/000001x-000000.json")
    )
    found = verdict(tmp_path / "run", base)
    assert (found.lost, found.duplicated, found.different) == (0, 0, ())


def test_a_sample_that_is_committed_twice_is_counted(base: Path, tmp_path: Path) -> None:
    storage, part = made(tmp_path / "run")
    second = Commits(storage, epoch=2, token="y")
    second.fence()
    second.append([replace(part, chunk="again")])
    assert verdict(tmp_path / "run", base).duplicated == 2


def test_samples_that_are_missing_are_counted(base: Path, tmp_path: Path) -> None:
    storage, _ = made(tmp_path / "run")
    storage.delete(f"commits/{STAGE}")
    assert verdict(tmp_path / "run", base).lost == 2


def test_another_text_is_a_difference(base: Path, tmp_path: Path) -> None:
    made(tmp_path / "run", text="other")
    assert verdict(tmp_path / "run", base).different == (f"rows of {STAGE}",)
    assert verdict(tmp_path / "run", base, same_texts=False).different == ()


def test_samples_that_nobody_asked_for_are_a_difference(base: Path, tmp_path: Path) -> None:
    storage, _ = made(tmp_path / "run")
    stranger = put_part(storage, "part-1", [response(("c", 0))])
    second = Commits(storage, epoch=2, token="y")
    second.append([stranger])
    assert "samples that nobody asked for: 1" in verdict(tmp_path / "run", base).different
