"""The questions stage: which shard a question is in, and that it stays there when a run grows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines import questions
from pipelines.questions import SPLIT_SHARDS, read_questions, run_stage
from pipelines.run import Run
from symoe_ray.fingerprints import uniform
from symoe_ray.storage import Storage
from tests.unit.conftest import MakeRun

COUNTS = {"validation": 30, "test": 50}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A task of `COUNTS` questions, as settings; ten questions are a shard."""
    monkeypatch.setattr(questions, "SHARD_ROWS", 10)
    for split, count in COUNTS.items():
        rows = [{"id": f"{split}-{i}", "question": f"{split} {i}?", "gold_answer": str(i)} for i in range(count)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    return f"task.validation={tmp_path / 'validation.json'}", f"task.test={tmp_path / 'test.json'}"


def shards(storage: Storage, split: str) -> dict[str, int]:
    return {question.id: shard for question, shard in read_questions(storage, split)}


def made(run: Run) -> dict[str, dict[str, int]]:
    run_stage(run)
    return {split: shards(run.storage, split) for split in COUNTS}


def test_a_shard_follows_from_the_id_and_the_number_of_shards(make_run: MakeRun, files: tuple[str, str]) -> None:
    run = make_run(*files)
    found = made(run)
    assert found == {
        "validation": {f"validation-{i}": int(uniform("shard", f"validation-{i}") * 3) for i in range(30)},
        "test": {f"test-{i}": SPLIT_SHARDS + int(uniform("shard", f"test-{i}") * 5) for i in range(50)},
    }
    assert run.manifest["shards"] == {"validation": 3, "test": 5}
    assert set(found["test"].values()) == {SPLIT_SHARDS + i for i in range(5)}
    assert max(Counter(found["test"].values()).values()) < 25
    assert run.storage.names("questions/test") == [f"questions/test/part-{SPLIT_SHARDS + i}.parquet" for i in range(5)]


def test_questions_come_back_in_file_order(make_run: MakeRun, files: tuple[str, str]) -> None:
    for split, found in made(make_run(*files)).items():
        assert list(found) == [f"{split}-{i}" for i in range(COUNTS[split])]


@pytest.mark.parametrize("limit", [1, 15, 29])
def test_a_larger_limit_leaves_each_question_in_its_shard(
    limit: int, make_run: MakeRun, files: tuple[str, str]
) -> None:
    few = made(make_run(*files, f"limit={limit}"))
    later = make_run(*files)
    assert later.manifest["shards"] == dict.fromkeys(COUNTS, -(-limit // 10))
    all_of_them = made(later)
    for split, count in COUNTS.items():
        assert (len(few[split]), len(all_of_them[split])) == (limit, count)
        assert few[split].items() <= all_of_them[split].items()
    assert len(set(all_of_them["test"].values())) == -(-limit // 10)


def test_a_smaller_limit_leaves_them_too_and_no_question_beyond_it(make_run: MakeRun, files: tuple[str, str]) -> None:
    all_of_them = made(make_run(*files))
    few = made(make_run(*files, "limit=12"))
    for split in COUNTS:
        assert len(few[split]) == 12
        assert few[split].items() <= all_of_them[split].items()


def test_a_question_that_is_moved_within_its_file_stays_in_its_shard(
    make_run: MakeRun, files: tuple[str, str], tmp_path: Path
) -> None:
    before = made(make_run(*files))["test"]
    file = tmp_path / "test.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    after = made(make_run(*files))["test"]
    assert list(after) == list(before)[::-1]
    assert after == before


def test_the_same_questions_are_not_written_again(make_run: MakeRun, files: tuple[str, str]) -> None:
    run = make_run(*files)
    run_stage(run)
    run.storage.delete("questions")
    run_stage(make_run(*files))
    assert run.storage.names("questions") == []
