"""Replays and a growing pool on copies of a finished run: what is there is never generated again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.local_cluster.conftest import FAKE, REPOSITORY, Command, RunFolder, Symoe

pytestmark = pytest.mark.real_ray
DERIVED = ("config.yaml", "status.json", "results.json", "samples_demo.jsonl", "report.html", "profiles", "aggregators",
           "seed=0", "seed=1", "skills", "requests")  # fmt: skip


def copied(symoe: Symoe, name: str) -> RunFolder:
    """A copy of the finished run under another name."""
    target = symoe.folder / "runs" / name
    shutil.copytree(symoe.folder / "runs" / "plain", target)
    return RunFolder(target)


def fingerprints(run: RunFolder) -> dict[str, str]:
    """The content of everything that a run has derived, by file."""
    files = [f for name in DERIVED for f in [run.path / name, *(run.path / name).rglob("*")] if f.is_file()]
    return {str(f.relative_to(run.path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_offline_with_the_run_s_own_settings_finds_its_own_result(finished: tuple[Symoe, Command]) -> None:
    symoe, command = finished
    run = copied(symoe, "own")
    replay = symoe("replay", "own", "--offline", "--json")
    assert replay.code == 0, replay.err
    (found,) = json.loads(replay.out)["replays"]
    methods = json.loads(command.out)["symoe"]["methods"]
    assert found["coverage"] == {"drafts": 1.0, "answers": 1.0, "oracle_pool": 1.0}
    for name in ("symoe", "majority", "oracle", "oracle_pool"):
        assert found["methods"][name]["accuracy"] == methods[name]["accuracy"], name
        assert found["methods"][name]["ci95"] == methods[name]["ci95"], name
    for cost in ("calls", "prompt_tokens", "completion_tokens"):
        assert found[cost] == methods["symoe"][cost], cost
    assert (found["vs_run"]["difference"], found["vs_run"]["mcnemar_p"]) == (0.0, 1.0)
    assert found["regret"] == pytest.approx(methods["oracle_pool"]["accuracy"] - methods["symoe"]["accuracy"])
    assert run.json(found["file"]) == found


def test_a_grid_generates_what_is_missing_once_and_disturbs_nothing(finished: tuple[Symoe, Command]) -> None:
    symoe, _ = finished
    run = copied(symoe, "grid")
    before, had = fingerprints(run), {stage: run.committed(stage) for stage in ("answer", "aggregate")}
    grid = ("k=1,4", "router=reference,paper")
    first = json.loads(symoe("replay", "grid", *grid, "--offline", "--json").out)["replays"]
    assert [row["changes"] for row in first] == [
        {"k": k, "router": router} for k in ("1", "4") for router in ("reference", "paper")
    ]
    assert all(row["coverage"]["answers"] < 1 for row in first)
    replay = symoe("replay", "grid", *grid, "--json")
    assert replay.code == 0, replay.err
    rows = json.loads(replay.out)["replays"]
    assert all(row["coverage"] == {"drafts": 1.0, "answers": 1.0, "oracle_pool": 1.0} for row in rows)
    assert fingerprints(run) == before
    assert {e["stage"] for e in run.events("generate") if e["attempt"] > 1} == {"replay"}
    for stage, samples in had.items():
        now = run.committed(stage)
        assert set(now.values()) == {1}, stage
        assert now.keys() > samples.keys(), stage
    again = symoe("replay", "grid", *grid, "--offline", "--json")
    offline = json.loads(again.out)["replays"]
    assert [r["methods"] for r in offline] == [r["methods"] for r in rows]
    # The run itself finds the replay's rows when it is given that setting.
    parts = {stage: run.parts(stage) for stage in ("answer", "aggregate")}
    command = symoe("run", *FAKE, "seeds=[0,1]", "k=4", "router=paper", "baselines=experts", "--run", "grid", "--json")
    assert command.code == 0, command.err
    assert {stage: run.parts(stage) for stage in parts} == parts
    accuracy = json.loads(command.out)["symoe"]["methods"]["symoe"]["accuracy"]
    assert accuracy == rows[-1]["methods"]["symoe"]["accuracy"]


def test_one_more_expert_is_profiled_alone(finished: tuple[Symoe, Command], tmp_path: Path) -> None:
    symoe, _ = finished
    run = copied(symoe, "grown")
    pool = yaml.safe_load((REPOSITORY / "conf" / "pool" / "small.yaml").read_text())
    pool["experts"].append({"name": "Newcomer", "model": "package:smollm2-135m-instruct"})
    file = tmp_path / "bigger.yaml"
    file.write_text(yaml.safe_dump(pool))
    before, profiles = run.committed("profile"), run.json("profiles/profiles.json")
    command = symoe("profile", "--run", "grown", f"pool={file}")
    assert command.code == 0, command.err
    added = run.committed("profile") - before
    assert len(added) == len(run.rows("questions/validation"))
    assert sum(p["requests"] for p in run.parts("profile") if p["expert"] == "Newcomer") == len(added)
    after = run.json("profiles/profiles.json")
    assert list(after) == [*profiles, "Newcomer"]
    assert {name: after[name] for name in profiles} == profiles


def test_a_question_is_routed_by_the_skills_that_the_annotator_names(finished: tuple[Symoe, Command]) -> None:
    symoe, _ = finished
    before = symoe.run_folder("plain").json("manifest.json")
    route = symoe("route", "What is 2 + 2?", "--run", "plain", "--json")
    assert route.code == 0, route.err
    found = json.loads(route.out)
    assert found["skills"]
    assert [row["skill"] for row in found["mapped"]] == found["skills"]
    assert len(found["experts"]) == 3
    assert symoe.run_folder("plain").json("manifest.json") == before
