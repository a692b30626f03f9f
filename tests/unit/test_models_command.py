"""`symoe models` as a user calls it, with a pool of a hub model and a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.hub_server import Hub
from tests.unit.test_weights import FILES, MODEL, cache, hub  # noqa: F401  (the fixtures)

POOL = "pool=pool.yaml"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of expert B, in the working directory, beside the pool's file."""
    made = tmp_path / "folder"
    made.mkdir()
    for name in ("config.json", "model-2.safetensors"):
        (made / name).write_bytes(FILES[name])
    pool = {"name": "p", "experts": [{"name": "A", "model": MODEL}, {"name": "B", "model": str(made)}]}
    (tmp_path / "pool.yaml").write_text(json.dumps(pool))
    monkeypatch.chdir(tmp_path)
    return made


def test_pull_then_verify(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    commit = hub.add(MODEL, FILES)
    assert main(["models", "verify", "A", POOL]) == 4
    assert "symoe models pull" in capsys.readouterr().out
    assert main(["models", "pull", "A", "B", POOL, "--json"]) == 0
    a, b = json.loads(capsys.readouterr().out)
    assert (a["model"], a["version"], a["users"], a["problem"]) == (MODEL, commit, ["A"], "")
    assert a["fetched_bytes"] == a["size_bytes"] > 0 == b["fetched_bytes"]
    assert b["folder"] == str(folder)
    assert main(["models", "record", "folder"]) == 0
    assert main(["models", "pull", "A", POOL]) == 0
    assert "was there" in capsys.readouterr().out
    assert main(["models", "verify", POOL, "--json"]) == 0
    assert [m["checked"] for m in json.loads(capsys.readouterr().out)["models"]] == [3, 2]
    (Path(a["folder"]) / "config.json").write_bytes(b"{}")
    assert main(["models", "verify", POOL]) == 4
    told = capsys.readouterr().out
    assert "FAIL A: " in told
    assert "ok   B: " in told


def test_a_model_that_cannot_be_had_does_not_keep_the_others_away(
    hub: Hub,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "pull", "A", "B", POOL]) == 4
    told = capsys.readouterr()
    assert f"A: model {MODEL} is no local folder and cannot be had from the Hugging Face hub" in told.err
    assert "B: " in told.out
    assert main(["models", "pull", "Z", POOL]) == 2
    assert "the pool has no expert Z; there are A, B" in capsys.readouterr().err


def test_the_room_for_all_models_is_checked_before_the_first_comes(
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add(MODEL, FILES)
    monkeypatch.setattr("actors.node_cache.SPARE_BYTES", 1 << 60)
    assert main(["models", "pull", "A", "B", POOL]) == 4
    assert "set SYMOE_CACHE to a larger disk" in capsys.readouterr().err
    assert hub.requests == []
