"""How a slot starts its engines, and where they write."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors import slot as module
from actors.slot import Slot, SlotConfig, log_folder
from symoe_ray.core import ExpertSpec
from symoe_ray.settings import EngineSettings
from symoe_ray.storage import Storage

SMALL, LARGE = (ExpertSpec(name=n, model="org/m", tensor_parallel_size=s) for n, s in (("small", 1), ("large", 4)))


@pytest.mark.parametrize(
    ("gpus", "experts", "tiers"),
    [
        (1, [SMALL], ["fork", "spawn"]),
        (1, [SMALL, LARGE], ["fork", "spawn"]),  # the large one has slots of its own
        (4, [SMALL, LARGE], ["spawn"]),
        (0, [SMALL], ["fork", "spawn"]),
        (0, [SMALL, LARGE], ["spawn"]),
    ],
)
def test_only_a_slot_of_several_gpus_cannot_fork(
    gpus: int, experts: list[ExpertSpec], tiers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "visible_gpus", lambda: gpus)
    made: dict[str, Any] = {"id": "s", "index": 0, "slots": 1, "run_uri": str(tmp_path), "epoch": 1}
    slot = Slot(SlotConfig(experts=tuple(experts), engine=EngineSettings(), **made))
    assert [launcher.tier for launcher in slot._launchers()] == tiers


def test_engines_write_into_a_run_on_a_disk(tmp_path: Path) -> None:
    assert log_folder(Storage(str(tmp_path))) == tmp_path / "logs"


def test_no_other_user_or_run_writes_where_engines_of_a_run_elsewhere_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(uri: str, user: int) -> Path:
        monkeypatch.setattr(os, "getuid", lambda: user)
        return log_folder(cast(Storage, SimpleNamespace(is_local=False, uri=uri)))

    folders = [folder("s3://b/run", 1), folder("s3://b/another", 1), folder("s3://b/run", 2)]
    assert len(set(folders)) == 3
    assert folders[0].parent == folders[1].parent != folders[2].parent
