"""The requests of the answer stage on tables that are written here: whom is asked, in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import answer
from pipelines.answer import due_work
from pipelines.profile import LENGTHS, _lengths, read_lengths, write_profiles
from symoe_ray.core import Profile, Question
from symoe_ray.length_guesses import relative_length
from symoe_ray.shard_files import shard_file
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, SKILLED_SEATS, SKILLS, question_row, table_of
from tests.unit.conftest import MakeRun

SHORT, LONG = "arithmetic", "proofs"


def graded(question: str, expert: str, tokens: int, **changes: Any) -> dict[str, Any]:
    return {
        "question_id": question, "shard": 0, "expert": expert, "sample": 0, "text": "t", "answer": "A",
        "correct": True, "unparsed": False, "truncated": False, "reference_answer": "A", "reference_correct": True,
        "prompt_tokens": 1, "completion_tokens": tokens, "failure": None,
    } | changes  # fmt: skip


def skilled(question: str, split: str, *skills: str) -> dict[str, Any]:
    return {"question_id": question, "split": split, "skills": list(skills), "samples": [], "failure": None}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A run whose expert Algebra writes much where something is to be proved, and failed once; Words was not asked."""
    made = Storage(str(tmp_path / "run"))
    failed = {"boundary": "engine", "kind": "died", "message": "m", "retryable": False, "attempt": 1}
    drafts = [
        graded("v1", "Algebra", 10), graded("v2", "Algebra", 1000), graded("v3", "Algebra", 10),
        graded("v3", "Algebra", 10**6, sample=1, failure=failed),
    ]  # fmt: skip
    made.write_table("profiles/part-0.parquet", table_of(drafts, DRAFTS))
    rows = [skilled("v1", "validation", SHORT), skilled("v2", "validation", LONG), skilled("v3", "validation", SHORT)]
    made.write_table("skills/part-0.parquet", table_of([*rows, skilled("t0", "test", "anything")], SKILLS))
    return made


def test_an_experts_own_validation_answers_say_how_long_it_writes(storage: Storage) -> None:
    guesses = _lengths(storage)
    assert guesses.keys() == {"Algebra"}
    assert relative_length(guesses["Algebra"], [LONG]) > 1.9 > 1 > relative_length(guesses["Algebra"], [SHORT])


def test_a_run_that_profiles_nothing_guesses_nothing(tmp_path: Path) -> None:
    assert read_lengths(Storage(str(tmp_path))) == {}


def test_requests_come_longest_first_and_where_nothing_is_known_in_the_order_of_the_questions(
    storage: Storage, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "aggregator_of", lambda _: "")
    run = make_run("pool=demo", "baselines=minimal")
    pool = [e.name for e in run.settings.pool.experts][:2]
    storage.write_json(LENGTHS, {pool[0]: _lengths(storage)["Algebra"]})
    write_profiles(storage, [Profile(expert=name, task="t", scores={}, graded=2, correct=1) for name in pool])
    asked = {"t0": [SHORT], "t1": [LONG], "t2": ["unheard of"], "t3": [LONG]}
    seats = [
        {"question_id": q, "shard": 0, "mapped": skills, "experts": pool, "random_experts": []}
        for q, skills in asked.items()
    ]
    storage.write_table(f"seats/{shard_file(0, 0)}", table_of(seats, SKILLED_SEATS))
    for stage in ("questions", "recruit"):
        run.done(stage, "x")
    work = due_work(run)
    assert work is not None
    questions = [
        question_row(Question(id=q, text=q, kind="choice", task="t", choices=("x", "y"), gold=("A",)), "test", 0, i)
        for i, q in enumerate(asked)
    ]
    rows = list(work.build(storage, questions))
    of_first = [r["question_id"] for r in rows if r["expert"] == pool[0]]
    assert of_first == ["t1", "t3", "t2", "t0"]
    other = {r["question_id"]: r["relative_length"] for r in rows if r["expert"] == pool[1]}
    assert other == dict.fromkeys(asked, 1.0)
    assert [r["question_id"] for r in rows if r["expert"] == pool[1]] == list(asked)
