"""`symoe compare` on run folders that are written here: what it compares, what it leaves out and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.compare import compare_sides
from pipelines.methods import write_methods
from pipelines.run import save_config
from symoe_ray.config import load
from symoe_ray.core import InputError, Question
from symoe_ray.outcomes import MethodOutcomes
from symoe_ray.storage import Storage
from symoe_ray.tables import QUESTIONS, question_row, table_of


def outcomes(method: str, marks: str, seed: int) -> MethodOutcomes:
    n, none = len(marks), np.zeros(len(marks), dtype=bool)
    right = np.array([mark == "1" for mark in marks])
    return MethodOutcomes(
        method=method, seed=seed, answer=np.full(n, "A", dtype=object), correct=right, correct_default=right,
        correct_reference=right, unparsed=none, truncated=none, failed=none, calls=np.ones(n, dtype=np.int64),
        prompt_tokens=np.ones(n, dtype=np.int64), completion_tokens=np.ones(n, dtype=np.int64),
        seconds=np.full(n, np.nan),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs lie below ./runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def write_run(
    name: str, marks: dict[str, str | list[str]], *, task: str = "demo", ids: Sequence[str] = (), gold: str = "A",
    text: str = "Which?", grader: str = "default",
) -> None:  # fmt: skip
    """A finished run: for each method a text of 1s and 0s, or one for each seed; the questions are q0, q1, ..."""
    by_seed = {method: [given] if isinstance(given, str) else given for method, given in marks.items()}
    seeds = range(len(next(iter(by_seed.values()))))
    ids = ids or [f"q{i}" for i in range(len(next(iter(by_seed.values()))[0]))]
    several = [f"seeds=[{','.join(map(str, seeds))}]"] if len(seeds) > 1 else []
    storage = Storage(f"runs/{name}")
    save_config(storage, load(["engine.kind=fake", f"task.name={task}", f"grader={grader}", *several]))
    rows = [
        question_row(
            Question(id=q, text=text, kind="choice", task=task, choices=("x", "y"), gold=(gold,)), "test", 0, position
        )
        for position, q in enumerate(ids)
    ]
    storage.write_table("questions/test/part-0.parquet", table_of(rows, QUESTIONS))
    for seed in seeds:
        made = [outcomes(method, given[seed], seed) for method, given in by_seed.items()]
        write_methods(storage, f"seed={seed}/" if len(seeds) > 1 else "", ids, made)


def compared(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["compare", *arguments, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["comparisons"]
    return rows


def test_two_runs_on_their_shared_questions(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("x", {"symoe": "11110000"}, ids=list("abcdefgh"))
    write_run("y", {"symoe": "1010"}, ids=list("hgaz"))  # h right, g wrong, a right; z is only here
    [row] = compared("x", "runs/y", capsys=capsys)
    assert (row["task"], row["a"], row["b"]) == ("demo", "x:symoe", "runs/y:symoe")
    assert (row["n"], row["only_in_a"], row["only_in_b"]) == (3, 5, 1)
    # h, g, a: x has 0, 0, 1 and y has 1, 0, 1.
    assert (row["accuracy_a"], row["accuracy_b"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (row["only_a"], row["only_b"], row["mcnemar_p"], row["mcnemar_p_holm"]) == (0, 1, 1.0, 1.0)


def test_two_methods_of_one_run_with_their_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("x", {"symoe": ["1111", "0000"], "expert:a.b": ["1000", "1000"], "self_consistency@3": ["0001"] * 2})
    [row] = compared("x", ":expert:a.b", capsys=capsys)
    assert (row["b"], row["seeds_a"], row["seeds_b"]) == ("x:expert:a.b", 2, 2)
    assert row["difference"] == pytest.approx(0.5 - 0.25)
    assert (row["only_a"], row["only_b"]) == (3, 0)  # the first seed
    [row] = compared("runs/x:self_consistency@3", "x:expert:a.b", capsys=capsys)
    assert row["difference"] == 0


def test_p_values_are_adjusted_over_tasks_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("gpqa", "aime24"):
        write_run(f"new-{task}", {"symoe": "1" * 10, "majority": "1" * 6 + "0" * 4}, task=task)
        write_run(f"old-{task}", {"symoe": "0" * 10, "majority": "0" * 10}, task=task)
    rows = compared("new-gpqa,new-aime24", "old-aime24,old-gpqa", "--methods", "symoe", "majority", capsys=capsys)
    assert [(r["task"], r["a"], r["b"]) for r in rows[::2]] == [
        ("gpqa", "new-gpqa:symoe", "old-gpqa:symoe"),
        ("aime24", "new-aime24:symoe", "old-aime24:symoe"),
    ]
    assert [r["mcnemar_p"] for r in rows] == pytest.approx([2 / 1024, 2 / 64] * 2)
    assert [r["mcnemar_p_holm"] for r in rows] == pytest.approx([8 / 1024, 4 / 64] * 2)


def test_the_table_says_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("x", {"symoe": "1100"})
    write_run("y", {"symoe": "110"})
    assert main(["compare", "x", "y"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:4] == ["demo", "x:symoe", "y:symoe", "3"]
    assert lines[3] == "demo: 1 questions are only in A and 0 only in B: left out"


def refused(a: str, b: str, methods: Sequence[str] = ()) -> str:
    with pytest.raises(InputError) as error:
        compare_sides(a, b, methods, load([]))
    return str(error.value)


def test_what_cannot_be_compared_is_refused_with_its_reason() -> None:
    write_run("x", {"symoe": "11", "oracle": "11"})
    write_run("other", {"symoe": "11"}, ids=["u", "v"])
    write_run("gold", {"symoe": "11"}, gold="B")
    write_run("theirs", {"symoe": "11"}, grader="reference")
    write_run("text", {"symoe": "11"}, text="What?")
    write_run("aime", {"symoe": "11"}, task="aime24")
    assert "no question in common" in refused("x", "other")
    assert "'q0' has the gold ['A'] in x and ['B'] in gold" in refused("x", "gold")
    assert "another text in x than in text" in refused("x", "text")
    assert "theirs:symoe with grader=reference: `symoe rescore theirs grader=default`" in refused("x", "theirs")
    assert "no run at" in refused("x", "nowhere")
    assert "no method 'moa'; it has oracle, symoe" in refused("x", "x:moa")
    assert "without a method of their own" in refused("x:oracle", "x", ["symoe"])
    assert "A has the tasks aime24, demo, B has demo" in refused("x,aime", "x")
    assert "each must have a task of its own: x (demo), other (demo)" in refused("x,other", "x,aime")


def test_a_run_that_was_evaluated_before_methods_were_kept_says_what_to_do(folder: Path) -> None:
    write_run("x", {"symoe": "11"})
    Storage(str(folder / "x")).delete("methods")
    assert "symoe evaluate --run" in refused("x", "x")


def test_a_mistake_on_the_command_line_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "nowhere", "x"]) == 2
    assert "no run at" in capsys.readouterr().err
