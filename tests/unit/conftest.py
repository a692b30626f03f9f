"""A run in the hands of a test: its folder is real, and to start Ray or a pool is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.run import Run, open_manifest
from symoe_ray.config import load
from symoe_ray.storage import Storage

MakeRun = Callable[..., Run]


def _nothing_is_started(*_: object) -> Any:
    raise AssertionError("a run without engines starts Ray or a pool")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """The next attempt at the run in `tmp_path/run`, with these settings and all that attempts before have left."""

    def make(*overrides: str, restart: bool = False, **changes: Any) -> Run:
        settings, storage = load(["engine.kind=fake", *overrides]), Storage(str(tmp_path / "run"))
        manifest = open_manifest(storage, settings, restart=restart)
        manifest["attempts"] += 1
        run = Run(
            settings=settings, storage=storage, manifest=manifest, attempt=manifest["attempts"], started=0.0,
            start_ray=_nothing_is_started, pool=_nothing_is_started, embed=_nothing_is_started, verify=None,
            say=lambda _: None, on_progress=lambda _: None, **changes,
        )  # fmt: skip
        run.save()
        return run

    return make
