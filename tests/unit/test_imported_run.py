"""A run from the released code's whole folder: its stored outputs stand in for every stage, and come out again."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from symoe_ray.storage import Storage
from tests.released_code import ReleasedFolder


@dataclass(frozen=True)
class Imported:
    """The folder, and the run that was made of it and then carried to its end."""

    released: ReleasedFolder
    folder: Path
    run: Path
    said: str

    def json(self, name: str) -> Any:
        """A JSON file of the run."""
        return json.loads((self.run / name).read_text())

    def rows(self, folder: str) -> list[dict[str, Any]]:
        """All rows of a table of the run."""
        files = sorted((self.run / folder).glob("*.parquet"))
        return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def in_this_process(
    storage: Storage, files: list[str], function: Callable[[pa.Table], pa.Table], folder: str, partition_by: str = ""
) -> list[str]:
    """What `pipelines.ray_data.map_parquet` does, without Ray."""
    written = []
    for number, file in enumerate(files):
        table = function(storage.read_table(file))
        for value in sorted(set(table[partition_by].to_pylist())) if partition_by else [None]:
            own = table if value is None else table.filter(pc.field(partition_by) == value).drop([partition_by])
            place = folder if value is None else f"{folder}/{partition_by}={value}"
            written.append(f"{place}/part-{number:06d}.parquet")
            storage.write_table(written[-1], own)
    return written


def symoe(*arguments: str) -> None:
    assert main(list(arguments)) == 0


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    """Ray Data's part is done in this process, and a pool that starts is an error: nothing is to be generated."""
    root, released, said = tmp_path_factory.mktemp("imported"), ReleasedFolder(), io.StringIO()
    folder, run = released.write(root), root / "theirs"
    ray_data = types.SimpleNamespace(map_parquet=in_this_process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pipelines.ray_data", ray_data)
        patch.setattr("actors.cluster.connected", lambda *_: contextlib.nullcontext())
        patch.setattr("actors.pool_client.pool", lambda *_: pytest.fail("a pool is started"))
        with contextlib.redirect_stdout(said):
            symoe("import-reference", str(folder), "--run", str(run), "engine.kind=fake")
            symoe("run", "--run", str(run))
        yield Imported(released, folder, run, said.getvalue())


def test_all_that_the_stages_ask_for_is_imported(imported: Imported) -> None:
    for stage, samples in (("profile", 4 * 12), ("answer", 2 * 9 * 3), ("aggregate", 2 * 9)):
        (commit,) = (imported.run / "commits" / stage).glob("*.json")
        parts = json.loads(commit.read_text())["parts"]
        assert {part["slot"] for part in parts} == {"imported"}
        assert sum(part["samples"] for part in parts) == samples
    assert not (imported.run / "events.jsonl").exists()


def test_the_stored_recruits_are_those_that_we_would_draw(imported: Imported) -> None:
    assert imported.json("manifest.json")["imported"]["recruits"] == {"0": 9, "1": 9}
    for seed in imported.released.seeds:
        with (imported.folder / f"round0_seed{seed}.csv").open(newline="") as file:
            stored = [row["solvers"] for row in csv.DictReader(file)]
        assert [str(row["experts"]) for row in imported.rows(f"seed={seed}/recruits")] == stored


def test_the_results_are_those_of_the_stored_answers(imported: Imported) -> None:
    ours = imported.json("results.json")["symoe"]
    assert ours["imported"] == imported.json("manifest.json")["imported"]
    accuracies = [imported.released.files[f"accuracy {seed}"] for seed in imported.released.seeds]
    assert ours["methods"]["symoe"]["accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
    assert ours["methods"]["symoe"]["accuracy_reference"] == ours["methods"]["symoe"]["accuracy"]


def test_the_stored_grades_are_kept_beside_ours(imported: Imported) -> None:
    grades = imported.rows("imported")
    assert len(grades) == 4 * 12
    assert all(row["released_correct"] == row["reference_correct"] == row["correct"] for row in grades)
    assert "of 48 stored grades 0 differ from grader=reference" in imported.said


def test_an_export_is_the_folder_again(imported: Imported) -> None:
    out = imported.run.parent / "out"
    symoe("export", str(imported.run), "--format", "reference", "--to", str(out))
    again = out / "skills" / imported.released.task
    assert sorted(path.name for path in again.iterdir()) == sorted(
        path.name for path in imported.folder.iterdir() if "_as_aggr_" not in path.name
    )
    for path in again.iterdir():
        assert content(path) == content(imported.folder / path.name), path.name


def content(path: Path) -> Any:
    """A file's content, less what its spelling leaves open: spaces in JSON, the order of a CSV's columns."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        return [dict(sorted(row.items())) for row in csv.DictReader(file)]


def test_lm_evals_own_code_reads_the_other_export(imported: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    out = imported.run.parent / "lm"
    symoe("export", str(imported.run), "--format", "lm-eval", "--to", str(out))
    read_by_lm_eval(out, imported.json("results.json"), monkeypatch)


def read_by_lm_eval(folder: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As lm-eval tabulates a results file, loads both files, and describes a repository that holds them."""
    import datasets
    import huggingface_hub
    from lm_eval import utils
    from lm_eval.loggers import EvaluationTracker

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / "cache")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json*"))
    (results_file,), (samples_file,) = utils.get_results_filenames(files), utils.get_sample_results_filenames(files)
    accuracy = results["symoe"]["methods"]["symoe"]["accuracy"]
    table = utils.make_table(json.loads((folder / results_file).read_text()))
    assert f"|{accuracy:.4f}|" in table.replace(" ", "")

    samples = datasets.load_dataset("json", data_files=str(folder / samples_file), split="train")
    assert sum(samples["acc"]) / len(samples) == pytest.approx(accuracy)
    assert {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash"} <= set(samples.column_names)

    tracker = EvaluationTracker()
    tracker.api = types.SimpleNamespace(list_repo_files=lambda **_: files)
    tracker.public_repo, tracker.details_repo = True, "us/results"
    cards: list[str] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, filename, **__: str(folder / filename))
    monkeypatch.setattr(huggingface_hub.DatasetCard, "push_to_hub", lambda card, *_, **__: cards.append(str(card)))
    tracker.recreate_metadata_card()
    (card,) = cards
    assert "symoe__MedMCQA" in card
    assert f'"acc,none": {accuracy}' in card
