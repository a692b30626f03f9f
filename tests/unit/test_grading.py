from __future__ import annotations

import time
from typing import Any

import pytest

from symoe_ray.core import Question
from symoe_ray.grading import EXAMPLES, extract_choice, extract_integer, grade, grading_summary, strip_reasoning
from symoe_ray.reference_grading import reference_choice, reference_expression, reference_letters
from symoe_ray.tables import ANSWERS, table_of

TEN = "ABCDEFGHIJ"
CHOICE = Question(id="q", text="?", kind="choice", task="t", choices=("1", "2", "3", "4"), gold=("B",))
WIDE = Question(id="w", text="?", kind="choice", task="MMLU_Pro", choices=tuple("123456789x"), gold=("B",))
INTEGER = Question(id="i", text="?", kind="integer", task="AIME24", gold=("080", "081"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 1: explicit answers
        ("The answer is (B).", "B"),
        ("The answer is B. I am confident", "B"),
        ("The answer is B, I think.", "B"),
        ("The answer is B and I am sure.", "B"),
        ("The answer is B—because of the rest.", "B"),
        ("The answer is:\n\n(E)", "E"),
        ("The answer is (b).", "B"),
        ("The answer is A because it fits.", "A"),
        ("**Final Answer:** C", "C"),
        ("Therefore, the answer is **C) foo**", "C"),
        ("The correct option is **D**: foo", "D"),
        ("I believe the answer to this question is D", "D"),
        ("the answer is option C", "C"),
        ("ANSWER: D", "D"),
        ("Answer: Ｂ", "B"),
        ("the answer is （Ｂ）", "B"),
        ("The answer is 𝐁.", "B"),
        (r"\boxed{B}", "B"),
        (r"$\boxed{\text{(B)}}$", "B"),
        (r"\boxed{\textbf{(I)}}", "I"),
        (r"The answer is $\text{(B)}$", "B"),
        (r"The answer is \(B\)", "B"),
        (r"\boxed{B. 42 metres}", "B"),
        ("The answer is (B), not (A).", "B"),
        ("The answer is (B) and (A) is wrong", "B"),
        ("The answer isn't (A); the answer is (B)", "B"),
        ("The answer is (A). Wait, that's wrong. The answer is (C).", "C"),
        ("The answer is (A). Wait, actually it's (D).", "D"),
        (r"\boxed{A} is tempting, but the answer is (B)", "B"),
        ("Options (C) and (D) fail. The answer is (A). Compare (D).", "A"),
        # 2: verdicts
        ("(B) is the correct answer.", "B"),
        ("Option B is correct", "B"),
        ("I choose (C).", "C"),
        ("So B.", "B"),
        ("It should not be A. It should be C.", "C"),
        # 3: the letter alone
        ("B", "B"),
        ("I", "I"),
        ("Thinking aloud.\n\n**B**\n", "B"),
        # 4: a label
        ("B) 42", "B"),
        ("B. Paris", "B"),
        # 5: brackets
        ("I would say (B), and certainly not (A)", "B"),
        ("We say (B).\nIt is not (A).", "B"),
        ("Between (C) and (D), (D) is wrong", "C"),
    ],
)
def test_choices_are_read(text: str, expected: str) -> None:
    assert extract_choice(text, TEN) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I have no idea",
        "The answer is I think unclear",
        "Answer: A good conductor is copper",
        "Answer: I'd rather not say",
        "The answer is C-reactive protein",
        "Thus A must be larger than B",
        "The answer is (A) or (B).",
        "The answer is not (A).",
        "The wrong answer is (A).",
        "The answer is (K).",
        "The answer is (X).",
        r"\boxed{A, B}",
        r"\boxed{42}",
        "(A) foo\n(B) bar\n(C) baz",
        "I. Introduction to the problem",
        "P(A) = 0.5 and P(B) = 0.5",
    ],
)
def test_what_cannot_be_read_is_not_guessed(text: str) -> None:
    assert extract_choice(text, TEN) == ""


def test_only_offered_letters_count() -> None:
    assert extract_choice("The answer is (B). The answer is (E).", "ABCD") == "B"
    assert extract_choice("The answer is (B).", "") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{073}", "73"),
        (r"\boxed{000}", "0"),
        (r"\boxed{-5}", "-5"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{73^\circ}", "73"),
        (r"\boxed{73°}", "73"),
        (r"\boxed{73 \text{ degrees}}", "73"),
        (r"\boxed{\text{080}}", "80"),
        (r"\boxed{m+n = 33}", "33"),
        (r"\boxed{12}. Wait, that is wrong. The answer is 15.", "15"),
        ("The answer is 73.", "73"),
        ("The answer is -5.", "-5"),
        ("The answer is 1,234 in all.", "1234"),
        ("The answer is 73.0", "73"),
        ("The answer is ７３.", "73"),
        ("The answer is **73**.", "73"),
        ("The answer is $m + n = 33$", "33"),
        ("The answer is 2^5 = 32.", "32"),
        ("Adding up gives **73**", "73"),
        ("Some thoughts.\n73", "73"),
        ("x = 3.\nSo m+n = 73.", "73"),
        ("The answer is 3.5", ""),
        ("The answer is 80 or 81", ""),
        ("The answer is 5 times 7", ""),
        (r"\boxed{12} or rather \boxed{\frac{1}{2}}", ""),
        (r"\boxed{" + "9" * 5000 + "}", ""),
        ("x = 3 and y = 4", ""),
        ("", ""),
    ],
)
def test_integers_are_read(text: str, expected: str) -> None:
    assert extract_integer(text) == expected


@pytest.mark.parametrize(
    ("text", "token", "expected"),
    [
        ("plain", "", ("plain", False)),
        ("<think>a</think>\n\nb", "", ("b", False)),
        ("a</think>b</think> c", "</think>", ("c", False)),
        ("<think>never ended", "", ("", True)),
        ("<think>a</think> b <think>c", "</think>", ("b", True)),
        ("[THINK]a[/THINK]b", "[/THINK]", ("b", False)),
        ("[THINK]a", "[/THINK]", ("", True)),
        ("[THINK]a", "", ("[THINK]a", False)),
        ("a<|done|>b", "<|done|>", ("b", False)),
    ],
)
def test_reasoning_is_cut(text: str, token: str, expected: tuple[str, bool]) -> None:
    assert strip_reasoning(text, token) == expected


def test_a_choice_is_graded() -> None:
    right = grade("<think>The answer is (A).</think>The answer is (B).", CHOICE)
    assert (right.answer, right.correct, right.unparsed, right.truncated) == ("B", True, False, False)
    wrong = grade("The answer is (A).", CHOICE)
    assert (wrong.answer, wrong.correct) == ("A", False)
    unread = grade("no idea", CHOICE)
    assert (unread.answer, unread.correct, unread.unparsed, unread.truncated) == ("", False, True, False)


def test_truncation() -> None:
    assert grade("<think>so far (B)", CHOICE).truncated
    assert grade("so far", CHOICE, finish_reason="length").truncated
    assert not grade("The answer is (B). And", CHOICE, finish_reason="length").truncated
    # The template opened the block, so the text alone does not show that it is still reasoning.
    open_block = grade("maybe the answer is (B)", CHOICE, think_end_token="</think>", finish_reason="length")
    assert (open_block.answer, open_block.truncated, open_block.unparsed) == ("", True, False)


def test_a_question_without_gold_is_read_but_never_correct() -> None:
    unknown = Question(id="u", text="?", kind="choice", task="t", choices=("1", "2"))
    result = grade("The answer is (B).", unknown)
    assert (result.answer, result.correct, result.reference_correct) == ("B", False, False)
    assert not grade("nothing", unknown).correct


@pytest.mark.parametrize("gold", [("80", "81"), ("080", "081"), ("080 or 081",)])
def test_any_gold_integer_counts(gold: tuple[str, ...]) -> None:
    asked = Question(id="i", text="?", kind="integer", task="t", gold=gold)
    for text, correct in ((r"\boxed{080}", True), ("The answer is 81.", True), (r"\boxed{82}", False)):
        result = grade(text, asked)
        assert (result.correct, result.reference_correct) == (correct, correct)


def test_only_a_box_that_is_no_integer_is_verified() -> None:
    calls: list[tuple[str, str]] = []

    def verify(content: str, gold: str) -> bool:
        calls.append((content, gold))
        return gold == "81"

    assert grade(r"\boxed{81}", INTEGER, verify=verify).correct
    assert grade("no box at all", INTEGER, verify=verify).unparsed
    assert calls == []
    result = grade(r"\boxed{3^4}", INTEGER, verify=verify)
    assert (result.answer, result.correct, result.reference_answer, result.reference_correct) == ("81", True) * 2
    assert calls == [("3^4", "80"), ("3^4", "81")]  # once each, though both graders ask


def test_a_box_that_nothing_verifies_is_a_wrong_answer() -> None:
    result = grade(r"\boxed{3^4}", INTEGER)
    assert (result.answer, result.correct, result.unparsed) == ("3^4", False, False)
    assert grade(r"\boxed{}", INTEGER, verify=lambda content, gold: True).unparsed


@pytest.mark.parametrize(
    ("text", "letters", "expected"),
    [
        ("The answer is B. I am confident", TEN, "I"),
        ("The answer is B. I am confident", "ABCD", "B"),
        ("The answer is B. Done", "ABCD", "D"),  # a capital inside a word
        ("The answer is (B). I am confident", TEN, "B"),
        ("The answer is **B** (see option A) above)", "ABCD", "A"),
        ("(A) seems right, but the answer is B", "ABCD", "A"),
        ("so f(|x|) follows", "ABCD", "|"),
        ("none", "ABCD", ""),
    ],
)
def test_the_released_choice_extractor_with_its_faults(text: str, letters: str, expected: str) -> None:
    assert reference_choice(text, letters) == expected


def test_the_released_code_looks_for_ten_letters_on_mmlu_pro_only() -> None:
    few = Question(id="f", text="?", kind="choice", task="MMLU_Pro", choices=("1", "2", "3"))
    assert [reference_letters(q) for q in (WIDE, few, CHOICE)] == [TEN, TEN, "ABCD"]


def test_both_graders_are_reported() -> None:
    result = grade("The answer is B. I am confident", WIDE)
    assert (result.answer, result.correct, result.reference_answer, result.reference_correct) == ("B", True, "I", False)
    # The released code reads reasoning too.
    assert grade("<think>(A)</think>The answer is B", CHOICE).reference_answer == "A"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{7}", r"\fbox{7}"),
        (r"\boxed{7", r"\boxed{7"),
        ("it is 7", "it is 7"),
    ],
)
def test_the_released_box_reader(text: str, expected: str) -> None:
    assert reference_expression(text) == expected


def test_the_released_integer_reader_takes_the_last_number_without_a_box() -> None:
    result = grade("80 is too small, 82 too large", INTEGER)
    assert (result.answer, result.reference_answer, result.reference_correct) == ("", "82", False)
    assert grade("neither", INTEGER).reference_answer == ""


@pytest.mark.parametrize(
    "unit",
    ["the answer is ", "(A) ", "answer: a=1 ", "so the ", "1,", "\\boxed{", "**1", "actually is ", "A\n", "A and B, "],
)
def test_long_degenerate_texts_are_read_in_linear_time(unit: str) -> None:
    text = unit * (30_000 // len(unit))
    start = time.process_time()
    extract_choice(text, TEN)
    extract_integer(text)
    assert time.process_time() - start < 5  # takes about 0.2 s; quadratic backtracking takes minutes


def test_option_texts_are_read_where_they_are_exactly_one_options() -> None:
    sugars = ("Glucose", "Fructose", "Vitamin B", "12")
    for text, letter in (
        ("The answer is fructose.", "B"),
        (r"\boxed{12}", "D"),
        ("The answer is 12.5", ""),
        ("The answer is Vitamin B.", "C"),
        ("The answer is Glucose or Fructose.", ""),
        ("The answer is (A) Fructose.", "A"),
        ("The answer is galactose.", ""),
    ):
        assert extract_choice(text, "ABCD", sugars) == letter, text
    assert extract_choice("The answer is Same.", "AB", ("Same", "same")) == ""


def test_an_answer_far_before_the_end_is_found() -> None:
    explanation = "Option (A) would be a monosaccharide, which reduces.\n" * 100
    assert extract_choice(f"The answer is (C).\n{explanation}", "ABCD") == "C"
    assert extract_integer(f"The answer is 73.\n{explanation}") == "73"


def graded_row(question: str, answer: str, reference: str, **changes: Any) -> dict[str, Any]:
    return {
        "question_id": question, "shard": 0, "method": "symoe", "aggregator": "a", "skipped": "", "experts": [],
        "cut_drafts": 0, "text": "x" * 500 + answer, "answer": answer, "correct": answer == "B",
        "unparsed": not answer, "truncated": False, "reference_answer": reference,
        "reference_correct": reference == "B", "prompt_tokens": 0, "completion_tokens": 0, "failure": None, **changes,
    }  # fmt: skip


def test_the_summary_counts_everything_apart_and_shows_where_graders_disagree() -> None:
    failure = {"boundary": "engine", "kind": "died", "message": "", "retryable": True}
    rows = [
        graded_row("a", "B", "B"), graded_row("b", "B", "I"), graded_row("c", "A", "C"), graded_row("d", "", "B"),
        graded_row("e", "", "", truncated=True, unparsed=False),
        graded_row("f", "", "", unparsed=False, failure=failure),
    ]  # fmt: skip
    summary = grading_summary(table_of(rows, ANSWERS), {"b": ("B",)})
    counts = {k: summary[k] for k in ("graded", "unparsed", "truncated", "failed")}
    assert counts == {"graded": 6, "unparsed": 1, "truncated": 1, "failed": 1}
    assert (summary["grader_disagreement"], summary["readings_differ"]) == (2, 3)
    assert [e["question_id"] for e in summary["examples"]] == ["b", "d"]
    assert summary["examples"][0]["gold"] == ["B"]
    assert len(summary["examples"][0]["text_end"]) == 200


def test_examples_are_few_and_spread_over_the_table() -> None:
    table = table_of([graded_row(str(i), "B", "C") for i in range(95)], ANSWERS)
    shown = [int(e["question_id"]) for e in grading_summary(table, {})["examples"]]
    assert len(shown) <= EXAMPLES
    assert shown[-1] >= 80
    assert grading_summary(table.slice(0, 0), {})["examples"] == []
    same = table_of([graded_row("a", "A", "C"), graded_row("b", "A", "A")], ANSWERS)
    assert [e["question_id"] for e in grading_summary(same, {})["examples"]] == ["a"]
