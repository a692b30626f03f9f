from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symoe_ray.core import InputError
from symoe_ray.replaying import Replayed, adjust, grid_of, replay_table, scores_of


def test_a_grid_is_every_combination_in_order() -> None:
    grid, machine = grid_of(["k=1,3", "router=paper", "seeds=[0,1],[2]", "engine.slots=2"])
    assert grid == [
        {"k": k, "router": "paper", "seeds": seeds} for k in ("1", "3") for seeds in ("[0,1]", "[2]")
    ]  # fmt: skip
    assert machine == ["engine.slots=2"]


def test_no_words_are_one_setting_and_profiles_are_a_list() -> None:
    assert grid_of([]) == ([{}], [])
    assert grid_of(["++profiles=a,b"]) == ([{"profiles": "a,b"}], [])


def test_what_decides_generated_rows_cannot_be_replayed() -> None:
    with pytest.raises(InputError, match="max_tokens cannot be replayed"):
        grid_of(["max_tokens=5"])


def replayed(**changes: Any) -> Replayed:
    columns = {name: np.zeros((4, 1)) for name in Replayed.__slots__}
    columns |= {name: np.array(values, dtype=float).reshape(4, -1) for name, values in changes.items()}
    return Replayed(**columns)


def test_scores_are_over_covered_questions_and_say_so() -> None:
    made = replayed(
        drafted=[1, 1, 1, 0], answered=[1, 1, 0, 0], correct=[1, 0, 0, 0], majority=[1, 0, 1, 0], oracle=[1, 1, 1, 0],
        best_possible=[1, 1, 1, float("nan")], calls=[9, 9, 0, 0], prompt_tokens=[5, 5, 0, 0],
    )  # fmt: skip
    found = scores_of(made, np.array([[1.0], [1.0], [0.0], [0.0]]))
    assert found["coverage"] == {"drafts": 0.75, "answers": 0.5, "oracle_pool": 0.5}
    assert {name: (own["accuracy"], own["n"]) for name, own in found["methods"].items()} == {
        "symoe": (0.5, 2), "majority": (pytest.approx(2 / 3), 3), "oracle": (1.0, 3), "oracle_pool": (1.0, 2),
    }  # fmt: skip
    assert (found["regret"], found["calls"], found["prompt_tokens"]) == (0.5, 18, 10)
    assert (found["vs_run"]["n"], found["vs_run"]["difference"], found["vs_run"]["mcnemar_p"]) == (2, -0.5, 1.0)


def test_a_question_counts_where_every_seed_covers_it() -> None:
    both = np.array([[1, 1], [1, 0], [1, 1], [0, 0]])
    made = replayed(drafted=both, answered=both, correct=[[1, 0], [1, 0], [1, 1], [0, 0]],
                    best_possible=np.ones((4, 2)), calls=np.ones((4, 2)))  # fmt: skip
    found = scores_of(made, None)
    assert (found["methods"]["symoe"]["accuracy"], found["methods"]["symoe"]["n"]) == (0.75, 2)
    assert (found["calls"], found["vs_run"]) == (2.0, None)


def test_p_values_are_adjusted_for_all_settings_of_a_call() -> None:
    rows: list[dict[str, Any]] = [{"vs_run": {"mcnemar_p": 0.01}}, {"vs_run": None}, {"vs_run": {"mcnemar_p": 0.03}}]
    adjust(rows)
    assert [row["vs_run"] and row["vs_run"]["mcnemar_p_holm"] for row in rows] == [0.02, None, 0.03]


def test_nothing_covered_has_no_score() -> None:
    found = scores_of(replayed(best_possible=np.full(4, np.nan)), np.zeros((4, 1)))
    assert (found["methods"]["symoe"]["accuracy"], found["regret"], found["vs_run"]) == (None, None, None)
    table = replay_table([found | {"changes": {"k": "5"}}])
    assert "k=5" in table
    assert "0/4" in table
    assert "over the questions that are covered" in table
