"""Our grader on the corpus of hard outputs, and the peers' rules that are measured beside it."""

from __future__ import annotations

import pytest

from benchmarks.graders import Item, agrees, lm_eval_reader, read_corpus, read_ours, read_reference
from symoe_ray.core import Question

CORPUS = read_corpus()


def item(text: str, expected: str | None, choices: tuple[str, ...] = ()) -> Item:
    question = Question(
        id="q", text="", kind="choice" if choices else "integer", choices=choices,
        task="MMLU_Pro" if len(choices) > 4 else "other",
    )  # fmt: skip
    return Item(question=question, text=text, expected=expected, category="", part="")


def test_ours_reads_99_percent_as_a_person_does() -> None:
    misread = [i.question.id for i in CORPUS if not agrees(i, read_ours(i))]
    assert len(misread) <= 0.01 * len(CORPUS), misread


def test_the_corpus_is_large_distinct_and_answerable() -> None:
    assert len(CORPUS) >= 400
    assert len({i.question.id for i in CORPUS}) == len(CORPUS)
    distinct = {(i.text, i.question.choices) for i in CORPUS if i.category != "variants"}
    assert len(distinct) >= 0.95 * len(CORPUS)
    for i in CORPUS:
        readable = i.question.letters if i.question.kind == "choice" else "-0123456789"
        assert i.expected is None or (i.expected and set(i.expected) <= set(readable)), i.question.id
    assert {len(i.question.choices) for i in CORPUS} == {0, 4, 10}


def test_no_text_is_expected_to_be_read_in_two_ways() -> None:
    expected: dict[object, str | None] = {}
    for i in CORPUS:
        key = (i.text, i.question.choices)
        assert expected.setdefault(key, i.expected) == i.expected, i.question.id


def test_agreement_takes_readings_of_nothing_offered_as_none() -> None:
    assert agrees(item("", None, ("x", "y")), "C")
    assert agrees(item("", None), r"\frac{1}{2}")
    assert not agrees(item("", None), "7")
    assert not agrees(item("", "7"), "")


def test_the_released_extractor_keeps_its_faults() -> None:
    assert read_reference(item("The answer is B. I am sure", "B", tuple("0123456789"))) == "I"


def test_lm_evals_own_rules_are_used() -> None:
    pytest.importorskip("lm_eval")
    read = lm_eval_reader()
    assert read(item("<think>(C)</think>So the answer is (B).", "B", ("w", "x", "y", "z"))) == "B"
    assert read(item("the answer is (J) since", "J", tuple("0123456789"))) == "J"
    assert read(item("the correct option is (J)", "J", tuple("0123456789"))) == "[INVALID]"
    assert read(item(r"so \boxed{073} follows; \boxed{73}", "73")) == "73"
    assert read(item("so 73 follows", None)) == ""
