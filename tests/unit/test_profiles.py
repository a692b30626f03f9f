from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pipelines.profile import read_book, read_profiles, write_book
from pipelines.profile_drift import drift, drift_table
from pipelines.profiles_command import ACTIONS
from symoe_ray.core import ExpertSpec, InputError
from symoe_ray.profiles import (
    Book,
    Evidence,
    asked_of,
    differences,
    evidence_of,
    from_json,
    merged,
    profile_of,
    skill_accuracies,
    to_json,
)
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS, table_of

SPEC = ExpertSpec(name="a", model="org/a", revision="r1")
SKILLS = {"q1": ["algebra", "logic"], "q2": ["algebra"], "q3": ["logic", "logic"], "q4": ["law"]}


def evidence(correct: dict[str, bool], spec: ExpertSpec = SPEC, made: str = "2026-01-31", seed: int = 0) -> Evidence:
    return evidence_of(spec, SKILLS, correct, task="t", grader="default", seed=seed, made=made)


ONE = evidence({"q1": True, "q2": False, "q3": True})
TWO = evidence({"q4": True}, seed=1)
OLD = Evidence(task="u", scores={"law": -2, "art": 1}, graded=5, correct=2)


def test_evidence_counts_right_and_asked_by_skill() -> None:
    assert dict(ONE.scores) == {"algebra": 0, "logic": 2}
    assert dict(ONE.asked) == {"algebra": 2, "logic": 2}
    assert (ONE.graded, ONE.correct, ONE.model, ONE.revision) == (3, 2, "org/a", "r1")
    right, asked, (low, high) = skill_accuracies([ONE])["algebra"]
    # Wilson's 95 % interval of 1 of 2: centre 1/2, half-width 1.96 sqrt(1/8 + 0.06) / (1 + 1.92)
    assert (right, asked) == (1, 2)
    assert (low, high) == pytest.approx((0.0945, 0.9055), abs=1e-3)


def test_a_failed_answer_counts_against_accuracy_and_no_skill() -> None:
    made = evidence_of(
        SPEC, {"q1": ["x"], "q2": ["x"]}, {"q1": True}, task="t", grader="default", seed=0, made="", failed=3
    )
    whole = profile_of("a", [made, made])
    assert (whole.graded, whole.failed, whole.accuracy) == (2, 6, 0.25)
    assert whole.scores == {"x": 2}


def test_merging_is_a_union_in_any_order_and_grouping() -> None:
    books: list[Book] = [{"a": (ONE,)}, {"a": (TWO,), "b": (OLD,)}, {"b": (OLD,), "a": (ONE, OLD)}]
    whole = merged(books)
    assert profile_of("a", whole["a"]).graded == 3 + 1 + 5  # evidence that two books hold counts once
    for first, second, third in itertools.permutations(books):
        left, right = merged([merged([first, second]), third]), merged([first, merged([second, third])])
        assert {name: list(left[name]) for name in whole} == {name: list(whole[name]) for name in whole}
        assert {name: list(right[name]) for name in whole} == {name: list(whole[name]) for name in whole}


def test_the_same_profiling_on_another_day_is_the_same_evidence() -> None:
    later = evidence({"q1": True, "q2": False, "q3": True}, made="2026-03-01")
    assert merged([{"a": (later,)}, {"a": (ONE,)}]) == {"a": (ONE,)}
    assert evidence({"q1": True, "q2": False, "q3": False}).id != ONE.id


def test_scores_add_up_and_unknown_counts_stay_unknown() -> None:
    both = profile_of("a", (ONE, OLD))
    assert dict(both.scores) == {"algebra": 0, "logic": 2, "law": -2, "art": 1}
    assert (both.graded, both.correct, both.task) == (8, 4, "t+u")
    assert asked_of((ONE, TWO)) == {"algebra": 2, "logic": 2, "law": 1}
    assert asked_of((ONE, OLD)) == {}


def test_two_models_under_one_name_are_not_merged() -> None:
    other = evidence({"q4": True}, ExpertSpec(name="a", model="org/a", revision="r2"))
    with pytest.raises(InputError, match="profiles of a cannot be merged: revision"):
        merged([{"a": (ONE,)}, {"a": (other,)}])
    assert differences([ONE], [other]) == {"revision": (["r1"], ["r2"])}
    assert differences([ONE], [OLD]) == {}


def test_files_are_read_back_and_older_ones_too(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    book: Book = {"z": (ONE, TWO), "a": (OLD,)}
    write_book(storage, book)
    assert list(read_book(storage)) == ["z", "a"]
    assert {name: list(own) for name, own in read_book(storage).items()} == {n: list(own) for n, own in book.items()}
    assert [p.expert for p in read_profiles(storage)] == ["z", "a"]
    first = {"a": {"task": "u", "graded": 5, "correct": 2, "scores": {"law": -2, "art": 1}}}
    assert from_json(first, "f") == {"a": (OLD,)}
    totals = to_json(book)["z"]
    assert (totals["graded"], totals["scores"]["logic"], totals["asked"]["law"]) == (4, 2, 1)


def test_a_file_of_a_later_format_or_without_sense_is_refused() -> None:
    with pytest.raises(InputError, match=r"f: the profile of a has format 9"):
        from_json({"a": {"format": 9}}, "f")
    with pytest.raises(InputError, match=r"f: the profile of a cannot be read"):
        from_json({"a": {"task": "t"}}, "f")


def profiled(folder: Path, answers: dict[str, dict[str, bool]], revision: str = "r1") -> Storage:
    """A run folder with profiles of these answers: expert -> question -> right."""
    storage = Storage(str(folder))
    spec = ExpertSpec(name="a", model="org/a", revision=revision)
    write_book(storage, {name: (evidence(own, spec),) for name, own in answers.items()})
    rows = [
        dict.fromkeys(DRAFTS.names) | {"question_id": q, "expert": name, "correct": right, "reference_correct": right}
        for name, own in answers.items()
        for q, right in own.items()
    ]
    storage.write_table("profiles/part-0.parquet", table_of(rows, DRAFTS))
    return storage


def test_drift_is_paired_by_question_and_adjusted_over_experts(tmp_path: Path) -> None:
    questions = [f"q{n}" for n in range(12)]
    before = {"a": dict.fromkeys(questions, True), "b": dict.fromkeys(questions[:4], True), "gone": {"q1": True}}
    after = {
        "a": {q: n >= 8 for n, q in enumerate(questions)},
        "b": dict.fromkeys(questions[2:6], True),
        "new": {"q1": True},
    }
    found = drift(profiled(tmp_path / "1", before), profiled(tmp_path / "2", after, revision="r2"))
    a, b = found["experts"]
    assert (a["shared"], a["lost"], a["gained"], a["accuracy_b"]) == (12, 8, 0, pytest.approx(4 / 12))
    assert a["mcnemar_p"] == pytest.approx(2 / 2**8)  # both tails of 8 of 8 fair coins
    assert a["mcnemar_p_holm"] == pytest.approx(2 * 2 / 2**8)
    assert (b["shared"], b["lost"], b["gained"], b["mcnemar_p"]) == (2, 0, 0, 1.0)
    assert a["changed"] == {"revision": {"a": ["r1"], "b": ["r2"]}}
    assert a["skills"][0] == {"skill": "algebra", "score_a": 2, "score_b": -2, "asked_a": 2, "asked_b": 2}
    assert (found["only_in_a"], found["only_in_b"]) == (["gone"], ["new"])
    assert "algebra +2 -> -2" in drift_table(found)
    assert "revision was r1, is r2" in drift_table(found)


def test_drift_needs_a_common_expert_and_says_when_questions_are_unknown(tmp_path: Path) -> None:
    one, two, three = (Storage(str(tmp_path / name)) for name in "abc")
    write_book(one, {"a": (OLD,)})
    write_book(two, {"b": (OLD,)})
    write_book(three, {"a": (TWO,)})
    with pytest.raises(InputError, match="no expert in common"):
        drift(one, two)
    (row,) = drift(one, three)["experts"]
    assert (row["shared"], row["mcnemar_p"], row["accuracy_a"], row["accuracy_b"]) == (0, None, 0.4, 1.0)


def test_every_action_says_how_many_runs_it_takes() -> None:
    assert {name: count for name, (count, _) in ACTIONS.items()} == {"show": 1, "diff": 2, "merge": 1, "leaks": 1}
