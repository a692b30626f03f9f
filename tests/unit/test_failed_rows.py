"""How many rows of a run have failed: those of every table that holds failures, of all seeds."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipelines.evaluate import _failures, failed_rows
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, SKILLS, table_of
from tests.unit.conftest import MakeRun

FAILURE = {"boundary": "engine", "kind": "engine_died", "message": "it died", "retryable": True}


def put(storage: Storage, folder: str, schema: pa.Schema, failed: int, good: int = 2) -> None:
    rows: list[dict[str, Any]] = [{"question_id": "q", "failure": FAILURE}] * failed + [{"question_id": "q"}] * good
    storage.write_table(f"{folder}/part-0.parquet", table_of(rows, schema))


def test_a_run_that_has_written_nothing_has_no_failures(make_run: MakeRun) -> None:
    failures = _failures(make_run())
    assert failures == {"skills": 0, "profiles": 0, "aggregators": 0, "drafts": 0, "answers": 0, "baselines": 0}
    assert failed_rows({"symoe": {"failures": failures}}) == 0


def test_one_seed_has_its_tables_in_the_runs_own_folder(make_run: MakeRun) -> None:
    run = make_run()
    put(run.storage, "skills", SKILLS, 1)
    put(run.storage, "drafts", DRAFTS, 3)
    put(run.storage, "seed=0/drafts", DRAFTS, 50)  # of no seed of this run
    failures = _failures(run)
    assert failures == {"skills": 1, "profiles": 0, "aggregators": 0, "drafts": 3, "answers": 0, "baselines": 0}


def test_failures_of_all_seeds_are_added_up(make_run: MakeRun) -> None:
    run = make_run("seeds=[1,2]")
    for number, (folder, schema) in enumerate(
        (
            ("skills", SKILLS), ("profiles", DRAFTS), ("aggregators", DRAFTS), ("seed=1/drafts", DRAFTS),
            ("seed=2/drafts", DRAFTS), ("seed=1/answers", ANSWERS), ("seed=2/answers", ANSWERS),
            ("seed=1/baselines/layer-2", DRAFTS), ("seed=2/baselines/answers", ANSWERS),
        )
    ):  # fmt: skip
        put(run.storage, folder, schema, 2**number)
    failures = _failures(run)
    assert failures == {
        "skills": 1,
        "profiles": 2,
        "aggregators": 4,
        "drafts": 8 + 16,
        "answers": 32 + 64,
        "baselines": 384,
    }
    assert failed_rows({"symoe": {"failures": failures}}) == 511
