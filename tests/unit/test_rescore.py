"""`symoe rescore` on a run that was made without Ray and engines: blocks are mapped here, texts are the fake model's.

Two seeds, all baselines and skipped aggregations, so that there is every kind of graded table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines import questions, rescore
from pipelines.report import write_report
from pipelines.run import Run, open_manifest, save_config
from pipelines.signals import Signals
from pipelines.stage_commands import STAGES
from symoe_ray.config import load
from symoe_ray.core import Completion, InputError
from symoe_ray.ledger import Chunk, Commits, Part
from symoe_ray.ports import StageSummary
from symoe_ray.storage import Storage
from symoe_ray.tables import RESPONSES, request_of, response_row, table_of
from symoe_ray.testing import fake_embeddings, fake_text

SETTINGS = (
    "engine.kind=fake", "pool=small", "task.demo.validation=24", "task.demo.test=16", "k=2", "seeds=[0,1]",
    "baselines=all", "moa_layers=3", "aggregate.skip_on_consensus=unanimous",
)  # fmt: skip
UNREAD = {"answer": "", "correct": False, "unparsed": True, "reference_answer": "", "reference_correct": False}


class LocalPool:
    """Generates every chunk with the fake model and commits it."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.commits = storage, Commits(storage, 1)

    def generate(self, stage: str, chunks: Sequence[Chunk], *_: object) -> StageSummary:
        for chunk in chunks:
            rows = self.storage.read_table(chunk.path).to_pylist()[chunk.start : chunk.stop]
            made = [self._row(row, chunk, i) for row in rows for i in range(row["n"])]
            path = f"responses/{stage}/expert={chunk.expert}/part-{chunk.id}.parquet"
            self.storage.write_table(path, table_of(made, RESPONSES))
            part = Part(
                path=path, stage=stage, expert=chunk.expert, chunk=chunk.id, slot="0", requests=len(rows),
                shards=tuple({row["shard"] for row in rows}), samples=len(made), failed=0, prompt_tokens=0,
                completion_tokens=0, seconds=0.0,
            )  # fmt: skip
            self.commits.append([part])
        return StageSummary(rows=0, failed=0, prompt_tokens=0, completion_tokens=0, seconds=0.0)

    def _row(self, row: dict[str, Any], chunk: Chunk, sample: int) -> dict[str, Any]:
        request = request_of(row, chunk.expert, [sample])
        text = fake_text(chunk.expert, request.messages[0].content, request.seed + sample)
        done = Completion(request_id=request.id, index=sample, text=text, finish_reason="stop", prompt_tokens=9)
        return response_row(row, done, 1)


def map_here(
    storage: Storage, files: list[str], function: Callable[[pa.Table], pa.Table], folder: str, partition_by: str = ""
) -> list[str]:
    """`pipelines.ray_data.map_parquet` without Ray."""
    written = []
    for number, file in enumerate(files):
        table = function(storage.read_table(file))
        values = pc.unique(table[partition_by]).to_pylist() if partition_by else [""]
        for value in values:
            own = table.filter(pc.equal(table[partition_by], value)).drop_columns(partition_by) if value else table
            at = f"{folder}/{partition_by}={value}" if value else folder
            written.append(f"{at}/part-{number}.parquet")
            storage.write_table(written[-1], own)
    return written


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run."""
    folder = tmp_path_factory.mktemp("rescored") / "whole"
    storage, settings = Storage(str(folder)), load(SETTINGS)
    pool = LocalPool(storage)
    run = Run(
        settings=settings, storage=storage, manifest=open_manifest(storage, settings, restart=False), attempt=1,
        started=0.0, start_ray=lambda: None, pool=lambda: pool, embed=lambda texts: np.asarray(fake_embeddings(texts)),
        verify=None, say=lambda _: None, on_progress=lambda _: None,
    )  # fmt: skip
    save_config(storage, settings)
    with pytest.MonkeyPatch.context() as patch:
        ray_data = types.ModuleType("pipelines.ray_data")
        ray_data.map_parquet = map_here  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "pipelines.ray_data", ray_data)
        questions.run_stage(run)
        for stage in STAGES.values():
            stage(run)
    write_report(storage, settings)
    return folder


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    """The same run for a test to change."""
    shutil.copytree(original, tmp_path / "whole")
    return tmp_path / "whole"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [r for f in sorted(folder.glob("*.parquet")) for r in pq.read_table(f, partitioning=None).to_pylist()]


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def graded_files(run: Path) -> list[Path]:
    """All files of a run that hold grades."""
    names = ("profiles", "aggregators", "drafts", "answers")
    found = [f for name in names for f in run.rglob(f"{name}/part-*.parquet")]
    return sorted({*found, *run.rglob("baselines/*/part-*.parquet")})


def edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace a Parquet file's rows."""
    table = pq.read_table(file, partitioning=None)
    pq.write_table(pa.Table.from_pylist([change(row) for row in table.to_pylist()], schema=table.schema), file)


@pytest.fixture
def rescored(copied: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """`symoe rescore` on the copy; what it prints."""
    signals = Signals()

    def call(*words: str) -> dict[str, Any]:
        options = argparse.Namespace(run=str(copied), json=True)
        assert rescore.run_command(options, list(words), signals) == 0
        made: dict[str, Any] = json.loads(capsys.readouterr().out)
        return made

    yield call
    signals.close()


Rescored = Callable[..., dict[str, Any]]


def test_all_grades_come_back_and_nothing_is_generated(original: Path, copied: Path, rescored: Rescored) -> None:
    files = graded_files(copied)
    assert len({file.parent for file in files}) == 2 + 2 * 4  # validation; per seed drafts, answers, a layer, finals
    for file in files:
        edit(file, lambda row: row | UNREAD)
    texts = {file: pq.read_table(file, columns=["text"], partitioning=None) for file in files}
    made = rescored()
    assert made["texts"] == sum(made["changed"].values()) == sum(table.num_rows for table in texts.values())
    for file in files:
        expected = pq.read_table(original / file.relative_to(copied), partitioning=None)
        assert pq.read_table(file, partitioning=None).equals(expected), file
    assert any(row["skipped"] for row in rows_of(copied / "seed=0" / "answers"))
    results = [read_json(run / "results.json")["symoe"]["methods"] for run in (original, copied)]
    assert results[0] == results[1]
    assert read_json(copied / "status.json")["state"] == "finished"
    assert made["recruitments_that_would_differ"] == 0
    again = rescored()
    assert sum(again["changed"].values()) == 0


def test_the_graders_are_compared_and_the_named_one_counts(copied: Path, rescored: Rescored) -> None:
    for file in (copied / "responses" / "aggregate").rglob("part-*.parquet"):
        edit(file, lambda row: row | {"text": row["text"] + " Not (A), nor 7."})
    ours = rescored()
    grading = read_json(copied / "results.json")["symoe"]["grading"]
    assert grading["readings_differ"] > 0
    assert grading["examples"]
    theirs = rescored("grader=reference")
    methods = read_json(copied / "results.json")["symoe"]["methods"]["symoe"]
    assert theirs["grader"] == "reference"
    assert theirs["accuracy"]["symoe"] == methods["accuracy"] == methods["accuracy_reference"]
    assert theirs["accuracy_before"] == ours["accuracy"]
    assert theirs["accuracy"]["majority"] == ours["accuracy"]["majority"]  # drafts are read alike by both


def test_other_profiles_are_reported_and_draw_nothing(copied: Path, rescored: Rescored) -> None:
    told = read_json(copied / "results.json")
    told["symoe"]["notes"]["warnings"] = ["mind the gap", "rescored: by these grades 1 "]
    (copied / "results.json").write_text(json.dumps(told))
    drawn, profiles = rows_of(copied / "seed=0" / "recruits"), read_json(copied / "profiles" / "profiles.json")
    best = max(profiles, key=lambda name: int(profiles[name]["correct"]))
    for file in (copied / "responses" / "profile" / f"expert={best}").glob("part-*.parquet"):
        edit(file, lambda row: row | {"text": "I have no idea."})
    made = rescored()
    assert made["changed"]["profiles"] > 0
    assert made["recruitments_that_would_differ"] > 0
    assert rows_of(copied / "seed=0" / "recruits") == drawn
    assert read_json(copied / "profiles" / "profiles.json") == profiles
    warnings = read_json(copied / "results.json")["symoe"]["notes"]["warnings"]
    assert "mind the gap" in warnings
    told_now = [warning for warning in warnings if warning.startswith("rescored:")]
    assert len(told_now) == 1
    assert f"by these grades {made['recruitments_that_would_differ']} recruitments" in told_now[0]


def test_bad_input_is_refused(copied: Path, rescored: Rescored) -> None:
    with pytest.raises(InputError, match="only grader="):
        rescored("k=3")
    (copied / "results.json").unlink()
    with pytest.raises(InputError, match="no finished run"):
        rescored()


def test_a_text_that_is_gone_is_an_error_that_says_where(copied: Path, rescored: Rescored) -> None:
    for file in (copied / "commits" / "answer").glob("*.json"):
        file.write_text(json.dumps({"parts": []}))
    with pytest.raises(InputError, match="not in responses/answer"):
        rescored()


def test_many_shards_are_graded_by_processes_of_their_own(copied: Path, rescored: Rescored) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.regrading.FEW_SHARDS", 0)
        for file in graded_files(copied):
            edit(file, lambda row: row | UNREAD)
        made = rescored()
    assert made["texts"] == sum(made["changed"].values()) > 0
