"""Panels on tables that are written here: who reads what, what is shared with another stage, and what fails."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.panels import Layer, Panel, panel_answers, panel_drafts, panel_requests
from symoe_ray.core import Completion, ExpertSpec, Failure, Question
from symoe_ray.ledger import Commits, Part
from symoe_ray.settings import AggregateSettings
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, RECRUITS, REQUESTS, RESPONSES, question_row, response_row, table_of

A, B = ExpertSpec(name="A", model="m/a"), ExpertSpec(name="B", model="m/b")
QUESTION = Question(id="q", text="Which?", kind="choice", task="t", choices=("x", "y"), gold=("B",))
ROWS = [question_row(QUESTION, "test", 0, 0)]
FAILED = asdict(Failure(boundary="engine", kind="died", message="m"))


def draft(expert: str, sample: int, answer: str, **changes: Any) -> dict[str, Any]:
    right = answer == "B"
    return {
        "question_id": "q", "shard": 0, "expert": expert, "sample": sample, "text": f"{expert}{sample} says {answer}",
        "answer": answer, "correct": right, "unparsed": False, "truncated": False, "reference_answer": answer,
        "reference_correct": right, "prompt_tokens": 1, "completion_tokens": 1, "failure": None,
    } | changes  # fmt: skip


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A run whose question has the seats A A, random seats B A, and two samples of A."""
    made = Storage(str(tmp_path))
    recruit = {"question_id": "q", "shard": 0, "experts": ["A", "A"], "random_experts": ["B", "A"]}
    made.write_table("recruits/part-0.parquet", table_of([recruit], RECRUITS))
    drafts = [draft("A", 0, "A"), draft("A", 1, "B"), draft("B", 0, "B")]
    made.write_table("drafts/part-0.parquet", table_of(drafts, DRAFTS))
    return made


def layer(*panels: Panel, **changes: Any) -> Layer:
    base = Layer(stage="panel", panels=panels, rules=AggregateSettings(), grader="default", max_tokens=0)
    return replace(base, **changes)


def requests(given: Layer, storage: Storage) -> list[dict[str, Any]]:
    return list(panel_requests(given, {0: ""}, storage, ROWS))


def generate(storage: Storage, stage: str, rows: list[dict[str, Any]], text: str) -> None:
    """Have a stage's requests answered and committed."""
    for row in rows:
        folder = f"{stage}/expert={row['expert']}"
        plain = {name: row[name] for name in REQUESTS.names}
        storage.write_table(f"requests/{folder}/{row['request_id']}.parquet", table_of([plain], REQUESTS))
        done = Completion(request_id=row["request_id"], index=0, text=text, finish_reason="stop", completion_tokens=3)
        path = f"responses/{folder}/part-{row['request_id']}.parquet"
        storage.write_table(path, table_of([response_row(row, done, 1)], RESPONSES))
        part = Part(
            path=path, stage=stage, expert=row["expert"], chunk="c", slot="s", shards=(0,), requests=1, samples=1,
            failed=0, prompt_tokens=1, completion_tokens=3, seconds=1.0,
        )  # fmt: skip
        Commits(storage, epoch=len(storage.names("commits", ".json"))).append([part])


def test_seats_are_those_of_a_column_or_the_same_for_every_question(storage: Storage) -> None:
    rows = requests(
        layer(
            Panel(method="symoe", writer=B, seats="experts"),
            Panel(method="random_experts", writer=B, seats="random_experts"),
            Panel(method="self_moa", writer=A, seats=(("A", 0), ("A", 1))),
        ),
        storage,
    )
    prompts = [row["messages"][0]["content"] for row in rows]
    assert [row["expert"] for row in rows] == ["B", "B", "A"]
    assert "A0 says A\n\n### Response 2\nA1 says B" in prompts[0]
    assert "B0 says B\n\n### Response 2\nA0 says A" in prompts[1]
    assert prompts[2] == prompts[0]


def test_equal_requests_are_made_once_and_serve_both(storage: Storage) -> None:
    given = layer(
        Panel(method="symoe", writer=B, seats="experts"), Panel(method="self_moa", writer=B, seats=(("A", 0), ("A", 1)))
    )
    rows = requests(given, storage)
    assert len(rows) == 1
    generate(storage, "panel", rows, "The answer is (B).")
    answers = list(panel_answers(given, 0, "", None, storage, ROWS))
    assert [(a["method"], a["answer"], a["correct"], a["experts"]) for a in answers] == [
        ("symoe", "B", True, ("A", "A")),
        ("self_moa", "B", True, ("A", "A")),
    ]
    assert pa.Table.from_pylist(answers, schema=ANSWERS).num_rows == 2


def test_what_another_stage_has_generated_is_read_from_there(storage: Storage) -> None:
    first = layer(Panel(method="symoe", writer=B, seats="experts"))
    generate(storage, "panel", requests(first, storage), "The answer is (B).")
    later = layer(
        Panel(method="self_moa", writer=B, seats=(("A", 0), ("A", 1))),
        stage="baselines-answers",
        shared=("other", "panel"),
    )
    assert requests(later, storage) == []
    assert [a["answer"] for a in panel_answers(later, 0, "", None, storage, ROWS)] == ["B"]


def test_a_layer_of_proposers_leaves_drafts_for_the_next(storage: Storage) -> None:
    seats = (("A", 0), ("B", 0))
    proposers = layer(*(Panel(method="layer-2", writer=spec, seats=seats) for spec in (A, B)), stage="layer-2")
    rows = requests(proposers, storage)
    assert {row["expert"] for row in rows} == {"A", "B"}
    generate(storage, "layer-2", rows, "We agree. The answer is (B).")
    drafts = list(panel_drafts(proposers, 0, "", None, storage, ROWS))
    assert [(d["expert"], d["sample"], d["answer"]) for d in drafts] == [("A", 0, "B"), ("B", 0, "B")]
    storage.write_table("baselines/layer-2/part-0.parquet", table_of(drafts, DRAFTS))
    [last] = requests(layer(Panel(method="moa", writer=B, seats=seats, source="baselines/layer-2")), storage)
    assert last["messages"][0]["content"].count("We agree.") == 2


def test_too_few_usable_drafts_are_a_failed_row_and_no_request(storage: Storage) -> None:
    drafts = [draft("A", 0, "", text=" "), draft("A", 1, "", failure=FAILED), draft("B", 0, "B")]
    storage.write_table("drafts/part-0.parquet", table_of(drafts, DRAFTS))
    given = layer(Panel(method="symoe", writer=B, seats="experts"))
    assert requests(given, storage) == []
    [answer] = panel_answers(given, 0, "", None, storage, ROWS)
    assert (answer["failure"]["kind"], answer["correct"], answer["completion_tokens"]) == ("too_few_drafts", False, 0)
    [draft_row] = panel_drafts(given, 0, "", None, storage, ROWS)
    assert draft_row["failure"]["kind"] == "too_few_drafts"


def test_consensus_of_distinct_experts_skips_the_writer(storage: Storage) -> None:
    rules = AggregateSettings(skip_on_consensus="unanimous")
    seats = (("A", 1), ("B", 0))
    given = layer(Panel(method="top_k", writer=A, seats=seats), rules=rules)
    assert requests(given, storage) == []
    [answer] = panel_answers(given, 0, "", None, storage, ROWS)
    assert (answer["skipped"], answer["answer"], answer["prompt_tokens"]) == ("unanimous", "B", 0)
    assert (
        len(requests(layer(Panel(method="self_moa", writer=A, seats=(("A", 1), ("A", 1))), rules=rules), storage)) == 1
    )
