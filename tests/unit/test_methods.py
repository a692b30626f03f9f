"""Every method's answer and its cost, counted by hand from two questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symoe_ray.methods import best_in_hindsight, methods_of
from symoe_ray.outcomes import MethodOutcomes
from symoe_ray.seed_data import SeedData, read_seed_data
from symoe_ray.storage import Storage
from symoe_ray.tables import ANSWERS, DRAFTS, RECRUITS, SKILLS, table_of

Row = dict[str, Any]
FAILURE = {"boundary": "engine", "kind": "died", "message": "m", "retryable": True}


def graded(answer: str, gold: str, prompt: int, written: int, **changes: Any) -> Row:
    """A graded row; the reference grader reads the same unless told otherwise."""
    row = {
        "text": f"It is {answer}.", "answer": answer, "correct": answer == gold, "unparsed": not answer,
        "truncated": False, "reference_answer": answer, "reference_correct": answer == gold, "prompt_tokens": prompt,
        "completion_tokens": written, "failure": None,
    }  # fmt: skip
    return row | changes


def draft(question: str, expert: str, sample: int, row: Row) -> Row:
    return {"question_id": question, "shard": 0, "expert": expert, "sample": sample, **row}


def final(question: str, method: str, row: Row, skipped: str = "") -> Row:
    return {
        "question_id": question, "shard": 0, "method": method, "aggregator": "A", "skipped": skipped, "experts": [],
        "cut_drafts": 0, **row,
    }  # fmt: skip


def recruit(question: str, experts: str, random_experts: str) -> Row:
    row: Row = {name: [] for name in ("skills", "mapped", "cosines", "candidates", "weights")}
    seats = {"experts": list(experts), "random_experts": list(random_experts)}
    return row | seats | {"question_id": question, "shard": 0, "fallback": ""}


@dataclass
class Tables:
    """A seed's rows by question; `layers` are further proposers' drafts, `extra` the baselines' final answers."""

    recruits: dict[str, Row]
    drafts: dict[str, dict[tuple[str, int], Row]]
    answers: dict[str, dict[str, Row]]
    skills: dict[str, Row]
    layers: dict[str, list[Row]] = field(default_factory=dict)
    extra: list[Row] = field(default_factory=list)

    def write(self, storage: Storage, folder: str = "") -> None:
        """Lay the rows down as a run does."""
        drafts = [row for of_question in self.drafts.values() for row in of_question.values()]
        answers = [row for of_question in self.answers.values() for row in of_question.values()]
        for name, schema, rows in (
            ("recruits", RECRUITS, list(self.recruits.values())),
            ("drafts", DRAFTS, drafts),
            ("answers", ANSWERS, answers),
            *((f"baselines/{name}", DRAFTS, rows) for name, rows in self.layers.items()),
            ("baselines/answers", ANSWERS, self.extra),
        ):
            storage.write_table(f"{folder}{name}/part-0.parquet", table_of(rows, schema))


def tables() -> Tables:
    """q1 (gold B) with the seats A B A, q2 (gold 7) with the seats B A B; A is the best single expert by validation."""
    drafts: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
    for question, expert, sample, row in (
        ("q1", "A", 0, graded("B", "B", 10, 5)),
        ("q1", "A", 1, graded("C", "B", 10, 6)),
        ("q1", "A", 2, graded("B", "B", 10, 7)),
        ("q1", "B", 0, graded("C", "B", 20, 8)),
        ("q1", "B", 1, graded("B", "B", 20, 9)),
        ("q2", "A", 0, graded("6", "7", 11, 1)),
        ("q2", "A", 1, graded("", "7", 11, 2)),
        ("q2", "A", 2, graded("6", "7", 11, 3)),
        ("q2", "B", 0, graded("5", "7", 22, 4)),
        ("q2", "B", 1, graded("5", "7", 22, 5)),
    ):
        drafts[question][expert, sample] = draft(question, expert, sample, row)
    answers: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in (
        final("q1", "symoe", graded("B", "B", 100, 50)),
        final("q1", "random_experts", graded("C", "B", 110, 60)),
        final("q2", "symoe", graded("7", "7", 200, 70)),
        final("q2", "random_experts", graded("7", "7", 0, 0), skipped="unanimous"),
    ):
        answers[row["question_id"]][row["method"]] = row
    skills = {
        q: {
            "question_id": q, "split": "test", "samples": ["Keywords: x"] * n, "prompt_tokens": 30,
            "completion_tokens": 40,
        }
        for q, n in (("q1", 5), ("q2", 4))
    }  # fmt: skip
    recruits = {"q1": recruit("q1", "ABA", "BBA"), "q2": recruit("q2", "BAB", "ABB")}
    return Tables(recruits=recruits, drafts=drafts, answers=answers, skills=skills)


@dataclass(frozen=True)
class Told:
    """One method's answer to one question."""

    answer: str
    correct: bool
    correct_default: bool
    correct_reference: bool
    unparsed: bool
    truncated: bool
    failed: bool
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


ReadData = Callable[..., SeedData]
Found = dict[tuple[str, str], Told]
RowsOf = Callable[..., Found]


@pytest.fixture
def read(tmp_path: Path) -> ReadData:
    """What is read of some tables after they were written to a run's folder."""

    def read_back(
        given: Tables, grader: str = "default", seconds: dict[tuple[str, str], float] | None = None
    ) -> SeedData:
        storage = Storage(str(tmp_path))
        given.write(storage)
        storage.write_table("skills/part-0.parquet", table_of(given.skills.values(), SKILLS))
        return read_seed_data(storage, "", 5, ["A", "B"], grader=grader, annotator="A", token_seconds=seconds or {})

    return read_back


@pytest.fixture
def rows_of(read: ReadData) -> RowsOf:
    """Every method's answers by (method, question)."""

    def found(given: Tables, ranking: str = "AB", k: int = 3, votes: int = 3, **reading: Any) -> Found:
        data = read(given, **reading)
        made = list(methods_of(data, ranking=list(ranking), k=k, votes=votes))
        made += best_in_hindsight(made)
        assert {outcome.seed for outcome in made} == {5}
        told = {key: value for outcome in made for key, value in _told(outcome, data.questions)}
        assert len(told) == len(made) * len(data.questions)
        return told

    return found


def _told(made: MethodOutcomes, questions: Sequence[str]) -> list[tuple[tuple[str, str], Told]]:
    names = Told.__dataclass_fields__
    return [
        (
            (made.method, q),
            Told(
                **{
                    name: np.asarray(getattr(made, name))[i].item() if name != "answer" else made.answer[i]
                    for name in names
                }
            ),
        )
        for i, q in enumerate(questions)
    ]


def methods(found: Found) -> set[str]:
    return {method for method, _ in found}


def told(row: Told) -> tuple[str, bool, int, int, int]:
    return row.answer, row.correct, row.calls, row.prompt_tokens, row.completion_tokens


class TestCosts:
    @pytest.mark.parametrize(
        ("method", "question", "expected"),
        [
            # Three seats, five lists of skills, one aggregation; A's prompt is read once for both of its seats.
            ("symoe", "q1", ("B", True, 3 + 5 + 1, 10 + 20 + 30 + 100, 5 + 8 + 6 + 40 + 50)),
            ("symoe", "q2", ("7", True, 3 + 4 + 1, 11 + 22 + 30 + 200, 4 + 1 + 5 + 40 + 70)),
            # B, C, C: two for C.
            ("majority", "q1", ("C", False, 3 + 5, 10 + 20 + 30, 5 + 8 + 6 + 40)),
            ("majority", "q2", ("5", False, 3 + 4, 11 + 22 + 30, 4 + 1 + 5 + 40)),
            ("oracle", "q1", ("B", True, 3 + 5, 10 + 20 + 30, 5 + 8 + 6 + 40)),
            ("oracle", "q2", ("5", False, 3 + 4, 11 + 22 + 30, 4 + 1 + 5 + 40)),
            # Nobody needs skills to draw at random; a skipped aggregator costs nothing.
            ("random_experts", "q1", ("C", False, 3 + 1, 20 + 10 + 110, 8 + 9 + 5 + 60)),
            ("random_experts", "q2", ("7", True, 3, 11 + 22, 1 + 4 + 5)),
            ("best_single", "q1", ("B", True, 1, 10, 5)),
            ("best_single", "q2", ("6", False, 1, 11, 1)),
            ("self_consistency", "q1", ("B", True, 3, 10, 5 + 6 + 7)),
            ("self_consistency", "q2", ("6", False, 3, 11, 1 + 2 + 3)),
            ("expert:A", "q1", ("B", True, 1, 10, 5)),
            ("expert:B", "q1", ("C", False, 1, 20, 8)),
            # A has one of two right, B none.
            ("best_single_test", "q1", ("B", True, 1, 10, 5)),
            ("oracle_pool", "q1", ("B", True, 2, 10 + 20, 5 + 8)),
        ],
    )
    def test_answer_calls_and_tokens(
        self, rows_of: RowsOf, method: str, question: str, expected: tuple[object, ...]
    ) -> None:
        assert told(rows_of(tables())[method, question]) == expected

    def test_a_question_without_annotation_costs_none(self, rows_of: RowsOf) -> None:
        given = tables()
        del given.skills["q1"]
        assert told(rows_of(given)["symoe", "q1"]) == ("B", True, 3 + 1, 10 + 20 + 100, 5 + 8 + 6 + 50)

    def test_an_aggregation_that_failed_is_a_failed_row_and_no_call(self, rows_of: RowsOf) -> None:
        given = tables()
        given.answers["q1"]["symoe"] |= graded("", "B", 0, 0, failure=FAILURE, unparsed=False)
        row = rows_of(given)["symoe", "q1"]
        assert (row.failed, row.unparsed, row.correct, row.calls, row.prompt_tokens) == (True, False, False, 8, 60)

    @pytest.mark.parametrize("sample", [0, 1])
    def test_a_failed_sample_does_not_hide_the_prompt_that_another_has_paid(self, rows_of: RowsOf, sample: int) -> None:
        given = tables()
        given.drafts["q1"]["A", sample] |= graded("", "B", 0, 0, failure=FAILURE)
        assert rows_of(given)["majority", "q1"].prompt_tokens == 10 + 20 + 30


class TestVotes:
    @pytest.fixture
    def vote(self, rows_of: RowsOf) -> Callable[..., Told]:
        def vote_of(*answers: str) -> Told:
            given = tables()
            for sample, answer in enumerate(answers):
                given.drafts["q1"]["A", sample] |= graded(answer, "B", 10, 1, truncated=answer == "C")
            return rows_of(given)["self_consistency", "q1"]

        return vote_of

    def test_ties_go_to_the_earliest(self, vote: Callable[..., Told]) -> None:
        assert (vote("A", "B", "C").answer, vote("C", "B", "B").answer) == ("A", "B")

    def test_answers_that_cannot_be_read_do_not_vote(self, vote: Callable[..., Told]) -> None:
        row = vote("", "", "B")
        assert (row.answer, row.correct, row.unparsed) == ("B", True, False)

    def test_no_vote_at_all_is_unparsed(self, vote: Callable[..., Told]) -> None:
        row = vote("", "", "")
        assert (row.answer, row.correct, row.unparsed) == ("", False, True)

    def test_the_row_is_that_of_the_winners_draft(self, vote: Callable[..., Told]) -> None:
        assert vote("C", "C", "B").truncated
        assert not vote("B", "C", "B").truncated


class TestCompleteness:
    EVERY = frozenset(
        {
            "symoe", "majority", "oracle", "random_experts", "best_single", "self_consistency", "expert:A", "expert:B",
            "best_single_test", "oracle_pool",
        }
    )  # fmt: skip

    def test_all_methods_are_there_where_all_was_generated(self, rows_of: RowsOf) -> None:
        assert methods(rows_of(tables())) == self.EVERY

    @pytest.mark.parametrize(
        ("without", "absent"),
        [
            (lambda t: t.drafts["q2"].pop(("A", 2)), {"self_consistency"}),
            (lambda t: t.answers["q2"].pop("random_experts"), {"random_experts"}),
        ],
        ids=["a sample", "a random draw"],
    )
    def test_a_method_that_lacks_one_question_is_absent(
        self, rows_of: RowsOf, without: Callable[[Tables], object], absent: set[str]
    ) -> None:
        given = tables()
        without(given)
        assert methods(rows_of(given)) == self.EVERY - absent

    def test_an_expert_that_was_not_asked_everything_is_absent_with_what_needs_all(self, rows_of: RowsOf) -> None:
        given = tables()
        del given.drafts["q2"]["B", 0]
        given.recruits["q2"]["experts"] = ["A", "A", "A"]
        given.recruits["q2"]["random_experts"] = ["A", "A", "A"]
        assert methods(rows_of(given)) == self.EVERY - {"expert:B", "best_single_test", "oracle_pool"}

    def test_without_the_best_experts_answers_there_is_no_best_single(self, rows_of: RowsOf) -> None:
        given = tables()
        del given.drafts["q2"]["B", 0]
        given.recruits["q2"]["experts"] = given.recruits["q2"]["random_experts"] = ["A", "A", "A"]
        absent = {"best_single", "self_consistency", "expert:B", "best_single_test", "oracle_pool"}
        assert methods(rows_of(given, ranking="BA")) == self.EVERY - absent

    def test_only_the_recruited_answered(self, rows_of: RowsOf) -> None:
        given = tables()
        given.recruits["q1"]["experts"] = given.recruits["q2"]["experts"] = ["B"]
        for question in ("q1", "q2"):
            given.drafts[question] = {("B", 0): given.drafts[question]["B", 0]}
            del given.answers[question]["random_experts"]
        assert methods(rows_of(given)) == {"symoe", "majority", "oracle", "expert:B"}


class TestGraders:
    def test_the_reference_grader_decides_answer_vote_and_oracle(self, rows_of: RowsOf) -> None:
        given = tables()
        for seat, read in ((("A", 0), "I"), (("B", 0), "B"), (("A", 1), "B")):
            given.drafts["q1"][seat] |= {"reference_answer": read, "reference_correct": read == "B"}
        default, reference = rows_of(given), rows_of(given, grader="reference")
        assert (default["expert:A", "q1"].answer, default["expert:A", "q1"].correct) == ("B", True)
        assert not default["expert:A", "q1"].correct_reference
        assert (reference["expert:A", "q1"].answer, reference["expert:A", "q1"].correct) == ("I", False)
        assert (default["majority", "q1"].answer, reference["majority", "q1"].answer) == ("C", "B")
        assert reference["majority", "q1"].correct
        assert reference["oracle", "q1"].answer == "B"
        for method in ("majority", "oracle", "oracle_pool"):  # each grader's column is its own choice
            assert default[method, "q1"].correct_reference == reference[method, "q1"].correct
            assert reference[method, "q1"].correct_default == default[method, "q1"].correct

    @pytest.mark.parametrize("grader", ["default", "reference"])
    def test_both_verdicts_are_there_whichever_grader_decides(self, rows_of: RowsOf, grader: str) -> None:
        given = tables()
        given.drafts["q1"]["A", 0] |= {"reference_answer": "I", "reference_correct": False}  # ours: B, right
        given.drafts["q2"]["B", 0] |= {"reference_answer": "7", "reference_correct": True}  # ours: 5, wrong
        found = rows_of(given, grader=grader)
        verdicts = {
            key: (row.correct, row.correct_default, row.correct_reference)
            for key, row in found.items()
            if key[0].startswith("expert:")
        }
        ours = grader == "default"
        assert verdicts == {
            ("expert:A", "q1"): (ours, True, False),
            ("expert:A", "q2"): (False, False, False),
            ("expert:B", "q1"): (False, False, False),
            ("expert:B", "q2"): (not ours, False, True),
        }


class TestBounds:
    def test_the_best_in_hindsight_is_one_expert_for_all_seeds(self, read: ReadData) -> None:
        data = read(tables())
        first = list(methods_of(data, ranking=["A", "B"], k=3, votes=3))
        marks = {("expert:A", 5): (1, 0), ("expert:B", 5): (0, 1), ("expert:A", 6): (0, 0), ("expert:B", 6): (1, 0)}
        seeds = [
            replace(made, seed=seed, correct=np.array(marks.get((made.method, seed), (1, 1)), dtype=bool))
            for seed in (5, 6)
            for made in first
        ]
        found = best_in_hindsight(seeds)
        assert [(made.method, made.seed, made.correct.tolist()) for made in found] == [
            ("best_single_test", 5, [False, True]), ("best_single_test", 6, [True, False]),
        ]  # fmt: skip

    def test_the_first_name_wins_a_tie(self, read: ReadData) -> None:
        right = np.ones(2, dtype=bool)
        made = [replace(m, correct=right) for m in methods_of(read(tables()), ranking=["B", "A"], k=3, votes=3)]
        answers = {m.method: m.answer.tolist() for m in made}
        assert [m.answer.tolist() for m in best_in_hindsight(made)] == [answers["expert:A"]]

    def test_no_judge_of_the_pool_is_below_one_of_the_recruited(self, rows_of: RowsOf) -> None:
        given = tables()  # A sits twice in q1, and only its second sample is right
        for seat, answer in ((("A", 0), "C"), (("B", 0), "C"), (("A", 1), "B")):
            given.drafts["q1"][seat] |= graded(answer, "B", 10, 1)
        found = rows_of(given)
        assert found["oracle", "q1"].correct
        assert found["oracle_pool", "q1"].correct


class TestBaselines:
    """q1's proposers A and B; the second layer of proposers, and what each aggregator made of the drafts."""

    @staticmethod
    def given() -> Tables:
        given = tables()
        layer = {"q1": (("A", "C", 31, 3), ("B", "B", 32, 4)), "q2": (("A", "7", 33, 5), ("B", "7", 34, 6))}
        gold = {"q1": "B", "q2": "7"}
        given.layers["layer-2"] = [
            draft(q, expert, 0, graded(answer, gold[q], prompt, written))
            for q, seats in layer.items()
            for expert, answer, prompt, written in seats
        ]
        given.extra = [
            final(q, method, graded(gold[q], gold[q], prompt, written))
            for q in gold
            for method, prompt, written in (("top_k", 100, 7), ("moa", 200, 8), ("self_moa", 300, 9))
        ]
        return given

    @pytest.mark.parametrize(
        ("method", "question", "expected"),
        [
            ("top_k", "q1", ("B", True, 2 + 1, 10 + 20 + 100, 5 + 8 + 7)),
            # Two layers of two proposers, then the aggregator: a proposer's second prompt is another one.
            ("moa", "q1", ("B", True, 4 + 1, 10 + 20 + 31 + 32 + 200, 5 + 8 + 3 + 4 + 8)),
            # The best expert's two samples share a prompt; its own aggregation is another.
            ("self_moa", "q1", ("B", True, 2 + 1, 10 + 300, 5 + 6 + 9)),
            # C against B: the first proposer wins the tie.
            ("debate", "q1", ("C", False, 4, 10 + 20 + 31 + 32, 5 + 8 + 3 + 4)),
            ("debate", "q2", ("7", True, 4, 11 + 22 + 33 + 34, 1 + 4 + 5 + 6)),
        ],
    )
    def test_answer_calls_and_tokens(
        self, rows_of: RowsOf, method: str, question: str, expected: tuple[object, ...]
    ) -> None:
        assert told(rows_of(self.given(), k=2)[method, question]) == expected

    def test_self_consistency_at_equal_calls_and_at_k(self, rows_of: RowsOf) -> None:
        found = rows_of(self.given(), k=2, votes=3)
        assert told(found["self_consistency", "q1"]) == ("B", True, 3, 10, 5 + 6 + 7)
        assert told(found["self_consistency@2", "q1"]) == ("B", True, 2, 10, 5 + 6)
        assert "self_consistency" not in methods(rows_of(self.given(), k=2, votes=4))

    def test_nothing_asked_for_is_nothing_shown(self, rows_of: RowsOf) -> None:
        assert not {"top_k", "moa", "self_moa", "debate"} & methods(rows_of(tables()))


class TestSeconds:
    def test_they_are_the_tokens_written_at_each_stages_and_experts_rate(self, rows_of: RowsOf) -> None:
        rates = {("answer", "A"): 1.0, ("answer", "B"): 10.0, ("aggregate", "A"): 100.0, ("annotate", "A"): 1000.0}
        found = rows_of(tables(), seconds=rates)
        assert found["expert:B", "q1"].seconds == 8 * 10
        assert found["symoe", "q1"].seconds == (5 + 6) * 1 + 8 * 10 + 50 * 100 + 40 * 1000
        assert found["random_experts", "q1"].seconds == 5 * 1 + (8 + 9) * 10 + 60 * 100

    def test_a_stage_without_a_rate_makes_them_unknown(self, rows_of: RowsOf) -> None:
        found = rows_of(tables(), seconds={("answer", "A"): 1.0})
        assert found["expert:A", "q1"].seconds == 5
        assert np.isnan(found["expert:B", "q1"].seconds)


def test_a_seed_is_read_from_its_own_folder(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for seed, question in ((1, "q1"), (2, "q2")):
        own = tables()
        for rows in (own.recruits, own.drafts, own.answers):
            rows.pop({"q1": "q2", "q2": "q1"}[question])
        own.write(storage, f"seed={seed}/")
    skills = [
        {"question_id": q, "split": split, "samples": [split], "prompt_tokens": len(split), "completion_tokens": 0}
        for q in ("q1", "q2")
        for split in ("validation", "test")
    ]
    storage.write_table("skills/part-00000.parquet", table_of(skills, SKILLS))
    read = read_seed_data(storage, "seed=1/", 1, ["A", "B"], grader="default", annotator="A", token_seconds={})
    assert read.questions == ("q1",)
    assert len(read.texts.writer) == 5 + 2
    assert {name: values.tolist() for name, values in read.annotation.items() if name != "seconds"} == {
        "calls": [1], "prompt_tokens": [4], "completion_tokens": [0],
    }  # fmt: skip
