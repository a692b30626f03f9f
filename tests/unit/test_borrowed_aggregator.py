"""Whose benchmark decides about the aggregator of a run that takes its profiles from other runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench_aggregators import RESULT, aggregator_of, run_stage
from pipelines.profile import write_profiles
from pipelines.run import Run
from symoe_ray.core import Profile
from symoe_ray.storage import Storage
from tests.unit.conftest import MakeRun

ACCURACIES = {"Good": 3, "Better": 7, "Best": 9}


@pytest.fixture
def pool(tmp_path: Path) -> str:
    path = tmp_path / "pool.yaml"
    experts = "".join(f"\n  - {{name: {name}, model: org/{name.lower()}}}" for name in ACCURACIES)
    path.write_text(f"name: three\nexperts:{experts}\n")
    return f"pool={path}"


@pytest.fixture
def borrowing(make_run: MakeRun, tmp_path: Path, pool: str) -> MakeRun:
    """A run with the profiles of `tmp_path/a` and `tmp_path/b`, where Best is the best expert."""

    def make(*overrides: str) -> Run:
        run = make_run(pool, f"profiles={tmp_path}/a,{tmp_path}/b", *overrides)
        profiles = [
            Profile(expert=name, task="t", scores={"numbers": 1.0}, graded=10, correct=correct)
            for name, correct in ACCURACIES.items()
        ]
        write_profiles(run.storage, profiles)
        return run

    return make


def measured(folder: Path, chosen: str, **scores: tuple[int, int]) -> None:
    listed = {name: {"correct": correct, "graded": graded} for name, (correct, graded) in scores.items()}
    Storage(str(folder)).write_json(RESULT, {"chosen": chosen, "reason": "measured there", "scores": listed})


def test_benchmarks_of_the_runs_are_added_up(borrowing: MakeRun, tmp_path: Path) -> None:
    measured(tmp_path / "a", "Better", Better=(6, 10), Good=(5, 10))
    measured(tmp_path / "b", "Good", Better=(1, 10), Good=(9, 10))
    run = borrowing()
    run_stage(run)
    assert aggregator_of(run) == "Good"
    found = run.storage.read_json(RESULT)
    assert found["scores"] == {"Better": {"correct": 7, "graded": 20}, "Good": {"correct": 14, "graded": 20}}
    assert found["reason"] == "highest accuracy on the synthetic cases: 14 of 20"


def test_one_that_is_not_in_this_pool_writes_no_answers(borrowing: MakeRun, tmp_path: Path) -> None:
    measured(tmp_path / "a", "Stranger", Stranger=(10, 10), Good=(5, 10))
    run = borrowing()
    run_stage(run)
    assert aggregator_of(run) == "Good"


def test_one_that_was_named_there_is_taken_where_none_was_measured(borrowing: MakeRun, tmp_path: Path) -> None:
    measured(tmp_path / "a", "Stranger")
    measured(tmp_path / "b", "Good")
    run = borrowing()
    run_stage(run)
    assert aggregator_of(run) == "Good"
    assert run.storage.read_json(RESULT)["reason"] == f"the aggregator of {Storage(str(tmp_path / 'b')).uri}"


def test_without_any_benchmark_validation_accuracy_decides(borrowing: MakeRun, tmp_path: Path) -> None:
    run = borrowing()
    run_stage(run)
    assert aggregator_of(run) == "Best"


def test_the_settings_decide_before_all_of_them(borrowing: MakeRun, tmp_path: Path) -> None:
    measured(tmp_path / "a", "Good", Good=(10, 10))
    run = borrowing("aggregator=Better")
    run_stage(run)
    assert aggregator_of(run) == "Better"


def test_a_benchmark_that_has_changed_decides_anew(borrowing: MakeRun, tmp_path: Path) -> None:
    measured(tmp_path / "a", "Good", Good=(10, 10))
    run_stage(borrowing())
    measured(tmp_path / "a", "Better", Better=(10, 10))
    run = borrowing()
    run_stage(run)
    assert aggregator_of(run) == "Better"
