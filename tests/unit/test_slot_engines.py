"""How a slot starts its engines, and where they write."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors import slot as module
from actors.engine_host import EngineHost, EnginePlan, LoadReport
from actors.protocol import LoadEngine
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


class Host:
    """An engine host that notes which engines it is to start beside the live one, and refuses each."""

    def __init__(self) -> None:
        self.key, self.report, self.asleep = "", None, list[str]()
        self.prepared: list[str] = []

    async def prepare(self, plan: EnginePlan, below: int) -> str:
        self.prepared.append(plan.key)
        return f"no room for {plan.key}"

    async def load(self, plan: EnginePlan) -> LoadReport:
        return LoadReport(tier="fork", seconds=0.1, start_s=0.1, pid=1, beside=False, max_num_seqs=8, max_model_len=64)


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slot:
    experts = tuple(ExpertSpec(name=n, model=f"org/{n}") for n in "AB")
    made: dict[str, Any] = {"id": "s", "index": 0, "slots": 1, "run_uri": str(tmp_path), "epoch": 1}
    slot = Slot(SlotConfig(experts=experts, engine=EngineSettings(kind="fake"), **made))
    slot._host = cast(EngineHost, Host())

    async def plan(spec: ExpertSpec) -> EnginePlan:
        return EnginePlan(key=spec.name, frame=LoadEngine(args={"dtype": "float32"}))

    monkeypatch.setattr(slot, "_plan", plan)
    return slot


def test_of_two_engines_to_come_the_one_named_last_is_started(slot: Slot) -> None:
    """The first one's files may still be read when others have taken its rows."""

    async def play() -> list[str]:
        async with slot._loading:
            first, last = asyncio.create_task(slot.prepare("A")), asyncio.create_task(slot.prepare("B"))
            await asyncio.sleep(0)
        await asyncio.gather(last, first)
        await cast("asyncio.Task[str]", slot._preparing)
        return cast(Host, slot._host).prepared

    assert asyncio.run(play()) == ["B"]


@pytest.mark.parametrize(("expert", "why"), [("A", "no room for A"), ("B", "")])
def test_a_load_says_why_that_engine_was_not_started_beside(slot: Slot, expert: str, why: str) -> None:
    async def play() -> str:
        await slot.prepare("A")
        await cast("asyncio.Task[str]", slot._preparing)
        loaded = await slot.load(expert)
        assert loaded.dtype == "float32"
        return loaded.not_beside

    assert asyncio.run(play()) == why
