"""results.json, its table and the sample lines, from a handful of rows counted by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from symoe_ray.core import Draft, Failure, InputError, Question
from symoe_ray.results import MethodRow, accuracy_table, best_single, build_results
from symoe_ray.samples import Sample, sample_lines
from symoe_ray.statistics import mcnemar_exact, wilson


def rows_of(method: str, outcomes: str, seed: int = 0, **changes: Any) -> list[MethodRow]:
    """One row a question, from a text of 1s and 0s."""
    return [
        MethodRow(
            method=method, question_id=f"q{i}", seed=seed, correct=mark == "1",
            correct_reference=changes.get("reference", outcomes)[i] == "1",
            graders_disagree=i in changes.get("disagree", ()), answer="A", calls=changes.get("calls", 1),
            prompt_tokens=10, completion_tokens=5, unparsed=i in changes.get("unparsed", ()),
            truncated=i in changes.get("truncated", ()), failed=i in changes.get("failed", ()),
        )
        for i, mark in enumerate(outcomes)
    ]  # fmt: skip


def build(rows: list[MethodRow], **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "task": "demo", "rows": rows, "engine": {"loads": {"x": 1}, "wall_s": 12.5}, "config": {"k": 3, "limit": 0},
        "versions": {"transformers": "5.0"}, "counts": {"test_questions": 9}, "notes": {"top": "x"}, "date": 1.5,
    }  # fmt: skip
    return build_results(**(given | changes))


def test_best_single_takes_the_highest_share_and_the_first_name_on_a_tie() -> None:
    assert best_single({"b": (3, 4), "c": (6, 8), "a": (7, 10), "d": (0, 0)}) == "b"
    assert best_single({"z": (0, 0), "y": (0, 5)}) == "y"
    with pytest.raises(InputError, match="validation"):
        best_single({})


def test_layout_is_lm_evals() -> None:
    results = build(rows_of("symoe", "1100", reference="1110"))
    # 2 of 4 right: sample variance 1/3, SE = sqrt(1/12). By the reference grader 3 of 4: sample variance 1/4, SE = 1/4.
    assert results["results"] == {
        "demo": {
            "alias": "demo",
            "acc,none": 0.5,
            "acc_stderr,none": pytest.approx((1 / 12) ** 0.5),
            "acc,reference": 0.75,
            "acc_stderr,reference": pytest.approx(0.25),
        }
    }
    assert results["n-samples"] == {"demo": {"original": 9, "effective": 4}}
    assert results["higher_is_better"] == {"demo": {"acc": True}}
    assert results["n-shot"] == {"demo": 0}
    assert results["configs"]["demo"]["task"] == "demo"
    assert results["config"]["model_args"] == {"k": 3, "limit": 0}
    assert results["config"]["limit"] is None
    assert (results["date"], results["git_hash"], results["transformers_version"]) == (1.5, None, "5.0")
    assert results["total_evaluation_time_seconds"] == "12.5"
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_methods_are_summed_up_and_ordered() -> None:
    rows = (
        rows_of("expert:b", "10")
        + rows_of("oracle", "11")
        + rows_of("symoe", "10", calls=4)
        + rows_of("expert:a", "00")
    )
    methods = build(rows)["symoe"]["methods"]
    assert list(methods) == ["symoe", "oracle", "expert:a", "expert:b"]
    assert methods["symoe"] == {
        "accuracy": 0.5,
        "ci95": list(wilson(1, 2)),
        "n": 2,
        "calls": 8,
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "accuracy_reference": 0.5,
    }
    assert methods["expert:a"]["accuracy"] == 0.0


def test_seeds_are_averaged_and_questions_counted_once() -> None:
    results = build(rows_of("symoe", "1100", seed=7, calls=4) + rows_of("symoe", "1110", seed=3, calls=5))
    symoe = results["symoe"]["methods"]["symoe"]
    # (2/4 + 3/4) / 2 right; (16 + 20) / 2 calls; 4 questions.
    assert (symoe["accuracy"], symoe["calls"], symoe["n"]) == (0.625, 18, 4)
    assert results["symoe"]["seeds"] == [7, 3]
    assert results["config"]["random_seed"] == 7
    odd = build(rows_of("symoe", "1", seed=0, calls=4) + rows_of("symoe", "1", seed=1, calls=5))
    assert odd["symoe"]["methods"]["symoe"]["calls"] == 4.5


def test_pairs_are_over_all_seeds_and_mcnemar_from_the_first() -> None:
    first = rows_of("symoe", "11111100", seed=1) + rows_of("best_single", "00000011", seed=1)
    second = rows_of("symoe", "00000000", seed=2) + rows_of("best_single", "11111111", seed=2)
    pair = build(first + second)["symoe"]["paired"]["symoe_vs_best_single"]
    # Means over seeds: ours 3/8, theirs 5/8. First seed: 6 only ours, 2 only theirs.
    assert pair["difference"] == pytest.approx(-0.25)
    assert pair["mcnemar_p"] == mcnemar_exact(6, 2) == pytest.approx(2 * (1 + 8 + 28) / 256)
    low, high = pair["ci95"]
    assert low < -0.25 < high


def test_every_other_method_is_paired_with_ours_and_absent_ones_are_absent() -> None:
    rows = rows_of("symoe", "10") + rows_of("majority", "01") + rows_of("expert:a", "11")
    results = build(rows)["symoe"]
    assert set(results["paired"]) == {"symoe_vs_majority", "symoe_vs_expert:a"}
    assert set(results["methods"]) == {"symoe", "majority", "expert:a"}


def test_two_questions_can_detect_nothing() -> None:
    paired = build(rows_of("symoe", "10") + rows_of("majority", "01"))["symoe"]["paired"]
    assert paired["symoe_vs_majority"]["smallest_detectable"] is None


def test_grading_counts_final_answers_of_ours_only() -> None:
    """Two of ours differ from the reference's verdict; but the graders disagree on those that say so: three."""
    ours = rows_of("symoe", "1000", reference="1011", disagree=(0, 2, 3), unparsed=(1,), truncated=(1, 2), failed=(3,))
    others = rows_of("majority", "0000", reference="1111", disagree=(1,), unparsed=(0, 1, 2, 3), failed=(0,))
    assert build(ours + others)["symoe"]["grading"] == {
        "unparsed": 1,
        "truncated": 2,
        "failed": 1,
        "grader_disagreement": 3,
    }


def test_a_row_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="two rows for method symoe, question q0, seed 0"):
        build(rows_of("symoe", "1") + rows_of("symoe", "0"))


def test_without_our_rows_there_is_no_metric_and_no_pair() -> None:
    results = build(rows_of("majority", "10"))
    assert results["results"] == {"demo": {"alias": "demo"}}
    assert results["symoe"]["paired"] == {}
    assert list(results["symoe"]["methods"]) == ["majority"]


def test_table_is_aligned_and_ours_comes_first() -> None:
    rows = rows_of("best_single", "0000001111") + rows_of("symoe", "1111111110", calls=1000)
    table = accuracy_table(build(rows)).splitlines()
    assert table[0].split()[:2] == ["method", "accuracy"]
    assert table[2].split() == ["symoe", "90.0%", "59.6-98.2", "10", "10,000", "150"]
    # 6 only ours, 1 only theirs: p = 2 (1 + 7) / 128.
    assert table[3].split()[-2:] == ["+50.0", "0.125"]
    assert table[2].index("90.0%") == table[3].index("40.0%")
    assert accuracy_table(build([])) == ""


def test_sample_lines_have_lm_evals_keys() -> None:
    question = Question(id="x7", text="What is 2?", kind="integer", task="demo", gold=("080", "81"))
    drafts = (
        Draft(question_id="x7", expert="a", sample=0, text="long", answer="80"),
        Draft(
            question_id="x7",
            expert="b",
            sample=1,
            text="",
            failure=Failure(boundary="engine", kind="died", message="m"),
        ),
    )
    sample = Sample(
        question=question,
        prompt="ask",
        text="It is 80",
        value="80",
        correct=True,
        correct_reference=False,
        drafts=drafts,
    )
    first, second = sample_lines([sample, sample])
    assert (first["doc_id"], second["doc_id"]) == (0, 1)
    assert first["target"] == "080 or 81"
    assert (first["resps"], first["filtered_resps"], first["acc"]) == ([["It is 80"]], ["80"], 1.0)
    assert first["arguments"] == {"gen_args_0": {"arg_0": "ask"}}
    # printf ask | sha256sum
    assert first["prompt_hash"].startswith("2f2fc7f2e9ce13b0")
    assert first["doc_hash"] == second["doc_hash"]
    assert first["symoe"]["drafts"][1] == {
        "expert": "b",
        "sample": 1,
        "answer": "",
        "truncated": False,
        "failure": "died",
    }
    assert json.loads(json.dumps(first)) == first
