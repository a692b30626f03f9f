"""`symoe rescore` on a run of a real Ray cluster with fake engines; the rescoring itself starts neither."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.local_cluster.conftest import FAKE, RunFolder, Symoe

pytestmark = pytest.mark.real_ray
SETTINGS = ("k=2", "seeds=[0,1]", "baselines=all", "moa_layers=3", "aggregate.skip_on_consensus=unanimous")
UNREAD = {"answer": "", "correct": False, "unparsed": True, "reference_answer": "", "reference_correct": False}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Symoe:
    """A run with every kind of graded table, two seeds, and aggregations that were skipped: `whole`."""
    symoe = Symoe(tmp_path_factory.mktemp("rescored"), [])
    command = symoe("run", *FAKE, *SETTINGS, "--limit", "16", "--run", "whole", "--json")
    assert command.code == 0, command.err
    return symoe


@pytest.fixture
def copied(original: Symoe, tmp_path: Path) -> Symoe:
    """The same run for a test to change."""
    shutil.copytree(original.run_folder("whole").path, tmp_path / "runs" / "whole")
    return Symoe(tmp_path, [])


def graded_files(run: RunFolder) -> list[Path]:
    """All files of a run that hold grades."""
    names = ("profiles", "aggregators", "drafts", "answers")
    found = [f for name in names for f in run.path.rglob(f"{name}/part-*.parquet")]
    return sorted([*found, *run.path.rglob("baselines/*/part-*.parquet")])


def edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace a Parquet file's rows."""
    table = pq.read_table(file, partitioning=None)
    pq.write_table(pa.Table.from_pylist([change(row) for row in table.to_pylist()], schema=table.schema), file)


def rescored(symoe: Symoe, *words: str) -> dict[str, Any]:
    command = symoe("rescore", "whole", *words, "--json")
    assert command.code == 0, command.err
    made: dict[str, Any] = json.loads(command.out)
    return made


def test_all_grades_come_back_and_nothing_is_generated(original: Symoe, copied: Symoe) -> None:
    before, run = original.run_folder("whole"), copied.run_folder("whole")
    files = graded_files(run)
    assert len({file.parent for file in files}) == 2 + 2 * 4  # validation; per seed drafts, answers, a layer, finals
    for file in files:
        edit(file, lambda row: row | UNREAD)
    texts = {file: pq.read_table(file, columns=["text"], partitioning=None) for file in files}
    made = rescored(copied)
    assert made["texts"] == sum(made["changed"].values()) == sum(table.num_rows for table in texts.values())
    for file in files:
        expected = pq.read_table(before.path / file.relative_to(run.path), partitioning=None)
        assert pq.read_table(file, partitioning=None).equals(expected), file
    assert any(row["skipped"] for row in run.rows("seed=0/answers"))
    assert run.json("results.json")["symoe"]["methods"] == before.json("results.json")["symoe"]["methods"]
    assert (run.path / "events.jsonl").read_bytes() == (before.path / "events.jsonl").read_bytes()
    assert run.json("status.json")["state"] == "finished"
    assert made["recruitments_that_would_differ"] == 0
    again = rescored(copied)
    assert sum(again["changed"].values()) == 0


def test_the_graders_are_compared_and_the_named_one_counts(copied: Symoe) -> None:
    run = copied.run_folder("whole")
    for file in (run.path / "responses" / "aggregate").rglob("part-*.parquet"):
        edit(file, lambda row: row | {"text": row["text"] + " Not (E)."})
    ours = rescored(copied)
    grading = run.json("results.json")["symoe"]["grading"]
    assert grading["readings_differ"] > 0
    assert grading["examples"]
    theirs = rescored(copied, "grader=reference")
    methods = run.json("results.json")["symoe"]["methods"]["symoe"]
    assert theirs["grader"] == "reference"
    assert theirs["accuracy"]["symoe"] == methods["accuracy"] == methods["accuracy_reference"]
    assert theirs["accuracy_before"] == ours["accuracy"]
    assert theirs["accuracy"]["majority"] == ours["accuracy"]["majority"]  # drafts are read alike by both


def test_other_profiles_are_reported_and_draw_nothing(copied: Symoe) -> None:
    run = copied.run_folder("whole")
    drawn, profiles = run.rows("seed=0/recruits"), run.json("profiles/profiles.json")
    best = max(profiles, key=lambda name: int(profiles[name]["correct"]))
    for file in (run.path / "responses" / "profile" / f"expert={best}").glob("part-*.parquet"):
        edit(file, lambda row: row | {"text": "I have no idea."})
    made = rescored(copied)
    assert made["changed"]["profiles"] > 0
    assert made["recruitments_that_would_differ"] > 0
    assert run.rows("seed=0/recruits") == drawn
    assert run.json("profiles/profiles.json") == profiles
    warnings = run.json("results.json")["symoe"]["notes"]["warnings"]
    assert [w for w in warnings if w.startswith(f"rescored: by these grades {made['recruitments_that_would_differ']} ")]


def test_bad_input_is_refused(copied: Symoe) -> None:
    for words, part in ((("whole", "k=3"), "only grader="), (("nothing",), "no finished run")):
        command = copied("rescore", *words)
        assert (command.code, part in command.err) == (2, True), command.err


def test_a_text_that_is_gone_is_an_error_that_names_it(copied: Symoe) -> None:
    run = copied.run_folder("whole")
    for file in (run.path / "commits" / "answer").glob("*.json"):
        file.write_text(json.dumps({"parts": []}))
    command = copied("rescore", "whole")
    assert (command.code, "responses/answer" in command.err) == (2, True), command.err
