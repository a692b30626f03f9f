"""`symoe report` and `symoe show` on a small run whose folder is written here: two questions answered, one not yet."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.cli import main
from pipelines.profile import write_profiles
from pipelines.question_records import question_records
from pipelines.report import write_report
from pipelines.run import Run, save_config
from pipelines.signals import DONE, USAGE
from symoe_ray.core import Profile, Question
from symoe_ray.reporting.questions import marks_of
from symoe_ray.tables import ANSWERS, DRAFTS, QUESTIONS, RECRUITS, question_row, table_of

Row = dict[str, Any]
MakeRun = Callable[..., Run]
SUMMARY = {
    "accuracy": 0.5, "ci95": [0.1, 0.9], "n": 2, "calls": 8, "prompt_tokens": 80, "completion_tokens": 40,
    "accuracy_reference": 0.5, "seconds": None,
}  # fmt: skip
DIED = {"boundary": "engine", "kind": "died", "message": "the engine died", "retryable": True}


def graded(text: str, answer: str, gold: str, **changes: Any) -> Row:
    row = {
        "text": text, "answer": answer, "correct": answer == gold, "unparsed": not answer, "truncated": False,
        "reference_answer": answer, "reference_correct": answer == gold, "prompt_tokens": 10, "completion_tokens": 5,
        "failure": None,
    }  # fmt: skip
    return row | changes


def draft(question: str, expert: str, sample: int, **row: Any) -> Row:
    return {"question_id": question, "shard": 0, "expert": expert, "sample": sample, **row}


def answer(question: str, method: str, **row: Any) -> Row:
    base = {"aggregator": "Bob", "skipped": "", "experts": [], "cut_drafts": 0}
    return {"question_id": question, "shard": 0, "method": method, **base, **row}


def recruit(question: str, experts: list[str], **changes: Any) -> Row:
    row = {
        "question_id": question, "shard": 0, "skills": ["sums"], "mapped": ["numbers"], "cosines": [0.61234567],
        "candidates": ["Ann", "Bob"], "weights": [0.7500001, 0.2499999], "experts": experts, "fallback": "",
        "random_experts": [],
    }  # fmt: skip
    return row | changes


QUESTION_ROWS = [
    question_row(
        Question(id=name, text=f"Question {name}?", kind="choice", task="t", choices=("x", "y"), gold=gold),
        split="test",
        shard=0,
        position=position,
    )
    for position, (name, gold) in enumerate([("q1", ("B",)), ("q 2", ("A",)), ("q3", ())])
]
DRAFT_ROWS = [
    draft("q1", "Ann", 0, **graded("first of Ann", "B", "B")),
    draft("q1", "Ann", 1, **graded("second of Ann", "A", "B", reference_answer="B", reference_correct=True)),
    draft("q1", "Ann", 2, **graded("an unseated sample", "A", "B")),
    draft("q1", "Bob", 0, **graded("an unseated expert", "A", "B")),
    draft("q 2", "Bob", 0, **graded("", "", "A", failure=DIED)),
    draft("q 2", "Ann", 0, **graded("Ann on two " + "long " * 40, "A", "A")),
]
ANSWER_ROWS = [
    answer("q1", "random_experts", **graded("another method's", "B", "B")),
    answer("q1", "symoe", **graded("so it is A", "A", "B")),
    answer("q 2", "symoe", **graded("so it is A", "A", "A"), skipped="unanimous"),
]
RECRUIT_ROWS = [recruit("q1", ["Ann", "Ann"]), recruit("q 2", ["Bob", "Ann"], cosines=[None], fallback="none_positive")]


@pytest.fixture
def make_finished(make_run: MakeRun) -> Callable[..., Run]:
    """A run with those rows, of its only or first seed."""

    def make(*overrides: str) -> Run:
        run = make_run(*overrides)
        folder = run.seed_folder(run.settings.all_seeds[0])

        def write(name: str, rows: list[Row], schema: pa.Schema) -> None:
            """The rows in two files, the later ones first: readers must not lean on the order of files."""
            half = len(rows) // 2
            run.storage.write_table(f"{name}/part-1.parquet", table_of(rows[:half], schema))
            run.storage.write_table(f"{name}/part-0.parquet", table_of(rows[half:], schema))

        write("questions/test", QUESTION_ROWS, QUESTIONS)
        write(f"{folder}drafts", DRAFT_ROWS, DRAFTS)
        write(f"{folder}answers", ANSWER_ROWS, ANSWERS)
        write(f"{folder}recruits", RECRUIT_ROWS, RECRUITS)
        experts = [
            Profile(expert=name, task="t", scores={"numbers": 2.0}, graded=4, correct=3) for name in ("Ann", "Bob")
        ]
        write_profiles(run.storage, experts)
        scores = {"Bob": {"correct": 3, "graded": 4}}
        run.storage.write_json("aggregators/aggregators.json", {"chosen": "Bob", "reason": "best", "scores": scores})
        run.storage.write_json("results.json", results())
        event = {"event": "generate", "stage": "answer", "slot": "slot-0", "expert": "Ann", "t": 9, "seconds": 4}
        run.storage.append_text("events.jsonl", json.dumps(event) + "\n")
        span = ["slot-0", "generate", "Ann+Bob", 0.0, 3.0]
        run.manifest["plan"] = [{"stage": "answer", "seconds": 3.0, "spans": [span]}]
        run.manifest["stages"] = {
            "questions": {"test": 3},
            "annotate": {"questions": 3, "without_skills": 1},
            "recruit": {"seeds": {"0": {"trimmed": ["Cid"], "counts": {"no_skills": 1}}}},
            "aggregate": {"aggregator": "Bob"},
        }
        run.save()
        save_config(run.storage, run.settings)
        return run

    return make


def results() -> dict[str, Any]:
    return {
        "results": {"t": {}}, "date": 0.0,
        "symoe": {
            "methods": {"symoe": SUMMARY}, "paired": {}, "engine": {}, "seeds": [0], "counts": {}, "versions": {},
            "grading": {"unparsed": 0, "truncated": 0, "failed": 0, "grader_disagreement": 0},
            "notes": {"best_single": "Ann", "warnings": []},
        },
    }  # fmt: skip


def questions_in(page: str) -> list[dict[str, Any]]:
    blocks = re.findall(r'class="question-block">([^<]*)<', page)
    lines = "\n".join(zlib.decompress(base64.b64decode(block)).decode() for block in blocks)
    return [json.loads(line) for line in lines.splitlines()]


def test_a_question_has_the_drafts_of_its_seats_and_our_answer(make_finished: Callable[..., Run]) -> None:
    run = make_finished()
    first, second = question_records(run.storage, run.settings)  # the third has no answer yet
    assert [(d["expert"], d["sample"], d["text"]) for d in first["drafts"]] == [
        ("Ann", 0, "first of Ann"),
        ("Ann", 1, "second of Ann"),
    ]
    assert (first["final"]["text"], first["final"]["aggregator"]) == ("so it is A", "Bob")
    assert (first["cosines"], first["weights"]) == ([0.6123], [0.75, 0.25])
    assert marks_of(first, "default") == ["wrong", "missed", "draft_disagree"]
    assert [d["failure"] for d in second["drafts"]] == ["the engine died", ""]
    assert marks_of(second, "default") == ["right", "fallback"]


def test_the_first_seed_is_shown(make_finished: Callable[..., Run]) -> None:
    run = make_finished("seeds=[7,8]")
    assert [q["id"] for q in question_records(run.storage, run.settings)] == ["q1", "q 2"]


def test_right_and_wrong_are_by_the_grader_that_counts(make_finished: Callable[..., Run]) -> None:
    run = make_finished()
    changed = [answer("q1", "symoe", **graded("so it is A", "A", "B", reference_answer="B", reference_correct=True))]
    run.storage.delete("answers")
    run.storage.write_table("answers/part-0.parquet", table_of(changed, ANSWERS))
    (record,) = question_records(run.storage, run.settings)
    assert marks_of(record, "default") == ["wrong", "missed", "disagree", "draft_disagree"]
    assert marks_of(record, "reference") == ["right", "disagree", "draft_disagree"]


def test_report_writes_page_and_table(make_finished: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_finished()
    assert main(["report", run.storage.uri, "--json"]) == DONE
    made = json.loads(capsys.readouterr().out)
    page, table = Path(made["report"]).read_text(), Path(made["table"]).read_text()
    assert [q["id"] for q in questions_in(page)] == ["q1", "q 2"]
    assert questions_in(page) == json.loads(json.dumps(list(question_records(run.storage, run.settings))))
    for part in ("predicted: Ann+Bob: generate, 3 s", "trimmed from the pool for too few seats: Cid", "Bob: best"):
        assert part in page
    assert "| **Symbolic-MoE** | **50.0 (10.0–90.0)**" in table
    assert main(["report", run.storage.uri, "--format", "markdown"]) == DONE
    assert capsys.readouterr().out == table


def test_report_keeps_to_its_limits(make_finished: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_finished()
    assert main(["report", run.storage.uri, "--questions", "2", "--characters", "20"]) == DONE
    page = Path(run.storage.path("report.html")).read_text()
    long = questions_in(page)[1]["drafts"][1]["text"]
    assert long == "Ann on two\n\n[... 191 characters left out ...]\n\nlong long "
    assert "2 of 3 questions are in this page" in page
    assert main(["report", run.storage.uri, "--questions", "-1"]) == USAGE
    assert "--questions" in capsys.readouterr().err


def test_report_of_a_run_that_kept_little(make_finished: Callable[..., Run]) -> None:
    """No plan, no events, no recruits: still a page."""
    run = make_finished()
    del run.manifest["plan"]
    run.save()
    for name in ("events.jsonl", "recruits", "drafts", "answers"):
        run.storage.delete(name)
    page = Path(write_report(run.storage, run.settings)).read_text()
    assert 'id="engines"' not in page
    assert 'id="routing"' not in page
    assert 'id="question-list"' not in page


def test_show_says_all_of_a_question(make_finished: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_finished()
    assert main(["show", run.storage.uri, "q1"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "== question q1",
        "Question q1?",
        "  B) y",
        "gold: B",
        "filters: Wrong, Wrong, though a draft was right, Graders disagree on a draft",
        "  sums -> numbers (cosine 0.612)",
        "  Ann   75.0%  **",
        "  Bob   25.0%",
        "== draft of Ann, sample 1",
        "second of Ann",
        "-- ours: A (wrong); released grader: B (right); THEY DISAGREE; 10 + 5 tokens",
        "== final answer, aggregated by Bob",
        "-- ours: A (wrong); released grader: A (wrong); 10 + 5 tokens",
    ):
        assert line in lines, line
    assert main(["show", run.storage.uri, "q 2"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert "failed: the engine died" in lines
    assert "fallback: none_positive" in lines
    assert "  sums -> numbers" in lines
    assert "== final answer, no aggregator: unanimous" in lines


def test_show_as_json_is_the_record(make_finished: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_finished()
    assert main(["show", run.storage.uri, "q1", "--json"]) == DONE
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("filters") == ["wrong", "missed", "draft_disagree"]
    assert [shown] == json.loads(json.dumps(list(question_records(run.storage, run.settings, question_id="q1"))))


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        ("q11", "no test question 'q11'; it has, for instance, 'q1'"),
        ("zzzzzz", "it has, for instance, 'q"),
        ("q3", "has not answered question 'q3'"),
    ],
)
def test_show_says_what_there_is_instead(
    make_finished: Callable[..., Run], capsys: pytest.CaptureFixture[str], identity: str, says: str
) -> None:
    assert main(["show", make_finished().storage.uri, identity]) == USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", [["report"], ["show", "q1"]])
def test_a_run_that_is_not_there_or_not_finished_is_refused(
    make_finished: Callable[..., Run], capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    run = make_finished()
    name, *rest = command
    assert main([name, run.storage.uri + "-nowhere", *rest]) == USAGE
    assert "there is no run" in capsys.readouterr().err
    run.storage.delete("results.json")
    assert main([name, run.storage.uri, *rest]) == USAGE
    assert "finish it with `symoe run` first" in capsys.readouterr().err
