"""results.json, its table and the sample lines, from a handful of rows counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from symoe_ray.core import Draft, Failure, InputError, Question
from symoe_ray.outcomes import MethodOutcomes
from symoe_ray.results import accuracy_table, build_results, ranked
from symoe_ray.samples import Sample, sample_lines
from symoe_ray.statistics import mcnemar_exact, smallest_detectable, wilson


def made(method: str, marks: str, seed: int = 0, **changes: Any) -> MethodOutcomes:
    """A method's outcomes from a text of 1s and 0s."""
    n, none = len(marks), np.zeros(len(marks), dtype=bool)

    def flags(text: str) -> np.ndarray:
        return np.array([mark == "1" for mark in text])

    return MethodOutcomes(
        method=method, seed=seed, answer=np.full(n, "A", dtype=object), correct=flags(marks),
        correct_default=flags(marks), correct_reference=flags(changes.get("reference", marks)), unparsed=none,
        truncated=none, failed=none,
        calls=np.full(n, changes.get("calls", 1)), prompt_tokens=np.full(n, 10), completion_tokens=np.full(n, 5),
        seconds=np.full(n, changes.get("seconds", 0.25)),
    )  # fmt: skip


def build(*methods: MethodOutcomes, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "task": "demo", "methods": methods, "grading": {"failed": 0}, "engine": {"loads": {"x": 1}, "wall_s": 12.5},
        "config": {"k": 3, "limit": 0}, "versions": {"transformers": "5.0"},
        "counts": {"test_questions_in_all": 9}, "notes": {"top": "x"}, "date": 1.5,
    }  # fmt: skip
    return build_results(**(given | changes))


def test_experts_are_ranked_by_share_and_by_name_on_a_tie() -> None:
    assert ranked({"b": (3, 4), "c": (6, 8), "a": (7, 10), "d": (0, 0)}) == ["b", "c", "a", "d"]
    assert ranked({"z": (0, 0), "y": (0, 5)}) == ["y", "z"]
    with pytest.raises(InputError, match="validation"):
        ranked({})


def test_layout_is_lm_evals() -> None:
    results = build(made("symoe", "1100", reference="1110"))
    # 2 of 4 right: sample variance 1/3, SE = sqrt(1/12). By the reference grader 3 of 4: sample variance 1/4, SE = 1/4.
    assert results["results"] == {
        "demo": {
            "alias": "demo",
            "acc,none": 0.5,
            "acc_stderr,none": pytest.approx((1 / 12) ** 0.5),
            "acc,default": 0.5,
            "acc_stderr,default": pytest.approx((1 / 12) ** 0.5),
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
    given = [
        made(name, "10", calls=4)
        for name in ("expert:b", "oracle", "self_consistency@3", "moa", "symoe", "expert:a", "self_consistency")
    ]
    methods = build(*given)["symoe"]["methods"]
    order = ["symoe", "self_consistency", "self_consistency@3", "moa", "oracle", "expert:a", "expert:b"]
    assert list(methods) == order
    assert methods["symoe"] == {
        "accuracy": 0.5,
        "ci95": list(wilson(1, 2)),
        "n": 2,
        "calls": 8,
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "seconds": 0.5,
        "accuracy_default": 0.5,
        "accuracy_reference": 0.5,
    }


def test_seeds_are_averaged_and_questions_counted_once() -> None:
    results = build(made("symoe", "1100", seed=7, calls=4), made("symoe", "1110", seed=3, calls=5, seconds=0.75))
    symoe = results["symoe"]["methods"]["symoe"]
    # (2/4 + 3/4) / 2 right; (16 + 20) / 2 calls; (1 + 3) / 2 seconds; 4 questions.
    assert (symoe["accuracy"], symoe["calls"], symoe["seconds"], symoe["n"]) == (0.625, 18, 2.0, 4)
    assert results["symoe"]["seeds"] == [7, 3]
    assert results["config"]["random_seed"] == 7
    odd = build(made("symoe", "1", seed=0, calls=4), made("symoe", "1", seed=1, calls=5))
    assert odd["symoe"]["methods"]["symoe"]["calls"] == 4.5


def test_seconds_that_nobody_knows_are_null() -> None:
    results = build(made("symoe", "10", seconds=float("nan")))
    assert results["symoe"]["methods"]["symoe"]["seconds"] is None
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert "nan" not in accuracy_table(results)


def test_pairs_are_over_all_seeds_and_mcnemar_from_the_first() -> None:
    first = made("symoe", "11111100", seed=1), made("best_single", "00000011", seed=1)
    second = made("symoe", "00000000", seed=2), made("best_single", "11111111", seed=2)
    pair = build(*first, *second)["symoe"]["paired"]["symoe_vs_best_single"]
    # Means over seeds: ours 3/8, theirs 5/8. First seed: 6 only ours, 2 only theirs.
    assert pair["difference"] == pytest.approx(-0.25)
    assert pair["mcnemar_p"] == mcnemar_exact(6, 2) == pytest.approx(2 * (1 + 8 + 28) / 256)
    # Question means differ by 0 six times and by -1 twice: variance (6/16 + 2 * 9/16) / 7.
    assert pair["stderr"] == pytest.approx((1.5 / 7 / 8) ** 0.5)
    low, high = pair["ci95"]
    assert low < -0.25 < high


def test_p_values_are_adjusted_for_all_other_methods() -> None:
    ours, none, half = "1" * 10, "0" * 10, "0" * 6 + "1" * 4
    paired = build(made("symoe", ours), made("majority", none), made("oracle", half))["symoe"]["paired"]
    assert [pair["mcnemar_p"] for pair in paired.values()] == pytest.approx([2 / 1024, 2 / 64])
    assert [pair["mcnemar_p_holm"] for pair in paired.values()] == pytest.approx([4 / 1024, 2 / 64])


def test_every_other_method_is_paired_with_ours_and_absent_ones_are_absent() -> None:
    results = build(made("symoe", "10"), made("majority", "01"), made("expert:a", "11"))["symoe"]
    assert set(results["paired"]) == {"symoe_vs_majority", "symoe_vs_expert:a"}
    assert set(results["methods"]) == {"symoe", "majority", "expert:a"}


def test_a_method_that_lacks_a_seed_is_left_out() -> None:
    results = build(made("symoe", "10"), made("symoe", "10", seed=1), made("expert:a", "11", seed=1))["symoe"]
    assert list(results["methods"]) == ["symoe"]
    assert results["paired"] == {}


def test_two_questions_can_detect_nothing() -> None:
    paired = build(made("symoe", "10"), made("majority", "01"))["symoe"]["paired"]
    assert paired["symoe_vs_majority"]["smallest_detectable"] is None


def test_a_method_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="method symoe is there twice with seed 0"):
        build(made("symoe", "1"), made("symoe", "0"))


def test_without_ours_there_is_no_metric_and_no_pair() -> None:
    results = build(made("majority", "10"))
    assert results["results"] == {"demo": {"alias": "demo"}}
    assert results["symoe"]["paired"] == {}
    assert list(results["symoe"]["methods"]) == ["majority"]


def test_table_is_aligned_and_ours_comes_first() -> None:
    table = accuracy_table(
        build(made("best_single", "0000001111"), made("symoe", "1111111110", calls=1000))
    ).splitlines()
    assert table[0].split()[:2] == ["method", "accuracy"]
    assert table[2].split() == ["symoe", "90.0%", "59.6-98.2", "10", "10,000", "150", "2.5"]
    # 6 only ours, 1 only theirs: p = 2 (1 + 7) / 128; 7 of 10 are discordant.
    assert table[3].split()[-4:] == ["+50.0", "0.125", "0.125", f"{100 * smallest_detectable(10, 0.7):.1f}"]
    assert table[2].index("90.0%") == table[3].index("40.0%")
    assert accuracy_table(build()) == ""


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
