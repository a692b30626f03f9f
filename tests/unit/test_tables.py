"""Records as rows of Arrow tables, and back."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symoe_ray.core import Completion, Draft, Failure, Message, Question, Recruitment, Request, Sampling
from symoe_ray.tables import (
    ANSWERS,
    DRAFTS,
    FAILURE,
    QUESTIONS,
    RECRUITS,
    REQUESTS,
    RESPONSES,
    SKILLS,
    draft_of,
    failure_of,
    question_of,
    question_row,
    recruitment_row,
    request_of,
    request_row,
    response_row,
    table_of,
)

FULL = Question(
    id="q1", text="Which?", kind="choice", task="T", choices=("red", "", "(B) blue"), gold=("A", "C"), category="art"
)
BARE = Question(id="q2", text="2+2?\n∑ 𝛼", kind="integer", task="T")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


def through(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """A row as it comes back from a table of that schema."""
    (back,) = table_of([row], schema).to_pylist()
    assert isinstance(back, dict)
    return back


class TestQuestions:
    @pytest.mark.parametrize("question", [FULL, BARE])
    def test_come_back_equal(self, question: Question) -> None:
        row = question_row(question, "test", 3, 40)
        assert set(row) == set(QUESTIONS.names)
        back = through(row, QUESTIONS)
        assert question_of(back) == question
        assert (back["split"], back["shard"], back["position"]) == ("test", 3, 40)

    @settings(derandomize=True)
    @given(text=TEXT, choices=st.lists(TEXT, max_size=4), gold=st.lists(TEXT, max_size=2))
    def test_of_any_texts_come_back_equal(self, text: str, choices: list[str], gold: list[str]) -> None:
        question = Question(id="q", text=text, kind="choice", task="T", choices=tuple(choices), gold=tuple(gold))
        assert question_of(through(question_row(question, "test", 0, 0), QUESTIONS)) == question


class TestRequests:
    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        max_tokens=33,
        repetition_penalty=1.25,
        stop=("\n", "Question:"),
        min_p=0.05,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
    )

    def request(self, sampling: Sampling, n: int = 1) -> Request:
        messages = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
        return Request(
            id="r1", question_id="q1", expert="A", messages=messages, sampling=sampling, seed=2**31 - 1, n=n
        )  # fmt: skip

    @pytest.mark.parametrize("sampling", [Sampling(), sampling])
    def test_come_back_equal_with_the_expert_of_their_folder(self, sampling: Sampling) -> None:
        request = self.request(sampling, n=3)
        row = request_row(request, 4, 11)
        assert row.pop("expert") == "A"
        assert set(row) == set(REQUESTS.names)
        back = through(row, REQUESTS)
        assert request_of(back, "A", [0, 1, 2]) == request
        assert (back["shard"], back["run_seed"], back["n"]) == (4, 11, 3)

    @pytest.mark.parametrize("absent", [True, False], ids=["no such column", "null"])
    def test_of_a_file_from_before_some_sampling_keys_have_their_defaults(self, absent: bool) -> None:
        sampling = Sampling(temperature=0.5, stop=("x",))
        row = request_row(self.request(sampling), 0, 0)
        for name in ("min_p", "presence_penalty", "frequency_penalty"):
            row["sampling"] = {k: v for k, v in row["sampling"].items() if k != name} | ({} if absent else {name: None})
        assert request_of(row, "A", [0]).sampling == sampling

    def test_some_samples_are_a_request_for_these(self) -> None:
        row = through(
            {k: v for k, v in request_row(self.request(Sampling(), n=5), 0, 0).items() if k != "expert"}, REQUESTS
        )
        part = request_of(row, "A", [2, 3])
        assert (part.id, part.first_sample, part.n, part.seed) == ("r1", 2, 2, 2**31 - 1)

    def test_every_field_of_the_sampling_has_a_column(self) -> None:
        names = [f.name for f in REQUESTS.field("sampling").type]
        assert names == [f.name for f in fields(Sampling)]


ASKED = {"request_id": "r1", "question_id": "q1", "shard": 2, "run_seed": 5, "n": 3, "text": "not a column of both"}


class TestResponses:
    def test_a_completion_stands_beside_what_was_asked(self) -> None:
        done = Completion(
            request_id="r1", index=2, text="4", finish_reason="stop", prompt_tokens=10, completion_tokens=1
        )
        assert through(response_row(ASKED, done, attempt=2), RESPONSES) == {
            "request_id": "r1", "question_id": "q1", "shard": 2, "run_seed": 5, "sample": 2, "text": "4",
            "finish_reason": "stop", "prompt_tokens": 10, "completion_tokens": 1, "attempt": 2, "failure": None,
        }  # fmt: skip

    def test_a_failure_comes_back_equal(self) -> None:
        failure = Failure(boundary="engine", kind="prompt_too_long", message="9 > 8", retryable=True)
        row = through(response_row(ASKED, Completion(request_id="r1", index=0, failure=failure), 1), RESPONSES)
        assert failure_of(row["failure"]) == failure
        assert (row["text"], row["completion_tokens"]) == ("", 0)

    def test_no_failure_is_none(self) -> None:
        assert failure_of(None) is None

    def test_every_field_of_a_failure_has_a_column(self) -> None:
        assert [f.name for f in FAILURE] == [f.name for f in fields(Failure)]


class TestDrafts:
    @pytest.mark.parametrize("failure", [None, Failure(boundary="slot", kind="lost", message="gone")])
    def test_come_back_equal(self, failure: Failure | None) -> None:
        draft = Draft(question_id="q", expert="A", sample=1, text="t", answer="B", truncated=True, failure=failure)
        row = asdict(draft) | {
            "shard": 0, "correct": True, "unparsed": False, "reference_answer": "B", "reference_correct": True,
            "prompt_tokens": 1, "completion_tokens": 2,
        }  # fmt: skip
        assert set(row) == set(DRAFTS.names)
        assert draft_of(through(row, DRAFTS)) == draft


def test_a_recruitment_keeps_its_order_and_numbers() -> None:
    recruitment = Recruitment(
        question_id="q", skills=("x", "y"), mapped=("x", "z"), cosines=(1.0, 0.25), suitability={"A": 1.0},
        competence={"A": 1.0}, candidates=("B", "A"), weights=(0.75, 0.25), experts=("A", "B", "A"),
        fallback="no_skills",
    )  # fmt: skip
    assert through(recruitment_row(recruitment, 6, ("B", "B", "A")), RECRUITS) == {
        "question_id": "q", "shard": 6, "skills": ["x", "y"], "mapped": ["x", "z"], "cosines": [1.0, 0.25],
        "candidates": ["B", "A"], "weights": [0.75, 0.25], "experts": ["A", "B", "A"], "fallback": "no_skills",
        "random_experts": ["B", "B", "A"],
    }  # fmt: skip


@pytest.mark.parametrize("schema", [QUESTIONS, REQUESTS, RESPONSES, SKILLS, DRAFTS, ANSWERS, RECRUITS])
def test_no_rows_are_a_table_of_that_schema(schema: pa.Schema) -> None:
    assert table_of([], schema).schema == schema
    assert table_of([], schema).num_rows == 0


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        table_of([{"question_id": "q", "shard": "first"}], QUESTIONS)
