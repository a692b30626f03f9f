from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.profile import write_book
from pipelines.run import MANIFEST, save_config
from symoe_ray.config import load
from symoe_ray.profiles import Evidence
from symoe_ray.storage import Storage


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with profiles of three experts, the last of which its trimming has dropped."""
    storage = Storage(str(tmp_path / "run"))
    save_config(storage, load(["engine.kind=fake"]))
    scores = {"SmolLM2": {"algebra": 3, "law": 1}, "SmolLM2Greedy": {"algebra": 1}, "Gemma3": {"law": 9}}
    write_book(storage, {n: (Evidence(task="t", scores=s, graded=9, correct=6),) for n, s in scores.items()})
    kept = {"0": {"kept": ["SmolLM2", "SmolLM2Greedy"], "trimmed": ["Gemma3"], "counts": {}}}
    storage.write_json(MANIFEST, {"stages": {"recruit": {"seeds": kept}}})
    return str(tmp_path / "run")


def routed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["route", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_explains_skills_mapping_numbers_and_seats(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = routed(capsys, "What is 2 + 2?", "--run", run, "--skills", "Algebra , unheard of")
    assert found["skills"] == ["algebra", "unheard of"]
    assert found["mapped"][0] == {"skill": "algebra", "mapped": "algebra", "cosine": 1.0}
    assert found["mapped"][1]["mapped"] in {"algebra", "law"}
    rows = {row["expert"]: row for row in found["candidates"]}
    assert sum(row["probability"] for row in rows.values()) == pytest.approx(1)
    assert (rows["Gemma3"]["probability"], rows["Gemma3"]["kept"]) == (0.0, False)
    # t = 4, 1 and 9: gamma = 16, 1 and 81 of 98
    assert rows["SmolLM2"]["competence"] == pytest.approx(16 / 98)
    assert len(found["experts"]) == 3
    assert "Gemma3" not in found["experts"]


def test_the_same_question_gets_the_same_seats_and_another_k_its_own(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("What is 2 + 2?", "--run", run, "--skills", "algebra")
    first = routed(capsys, *words)
    assert routed(capsys, *words) == first
    assert routed(capsys, *words, "k=5")["experts"][:3] == first["experts"]


def test_profiles_alone_are_enough_and_a_question_may_hold_an_equals_sign(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = routed(capsys, f"profiles={run}", "engine.kind=fake", "If 2x = 4, what is x?", "--skills", "law")
    assert found["question"] == "If 2x = 4, what is x?"
    assert {row["expert"] for row in found["candidates"]} == {"SmolLM2", "SmolLM2Greedy", "Gemma3"}


def test_options_in_the_text_make_a_choice_question(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Which is even? The options are: (A) 1 (B) 2"
    assert routed(capsys, text, "--run", run, "--skills", "algebra")["question"] == "Which is even?"


def test_explain_is_a_table_for_people(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "What is 2 + 2?", "--run", run, "--skills", "algebra", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "algebra -> algebra (cosine 1.000)" in out
    assert "probability" in out
    assert "trimmed" in out
    assert main(["route", "What is 2 + 2?", "--run", run, "--skills", ""]) == 0
    assert len(capsys.readouterr().out.strip().split(", ")) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "RUN"], "takes one question"),
        (["What?"], "name a run that has profiles"),
        (["What?", "--run", "/nowhere/at/all"], "there is no run"),
    ],
)
def test_what_is_missing_is_said(words: list[str], message: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "--skills", "law", *(run if word == "RUN" else word for word in words)]) == 2
    assert message in capsys.readouterr().err
