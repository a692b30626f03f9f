from __future__ import annotations

from symoe_ray.core import Question
from symoe_ray.prompts import aggregate_messages, annotate_messages, answer_messages, fit_responses, render_question

CHOICE = Question(id="q", text="Which is even? ", kind="choice", task="t", choices=("1", "2 ", "3"), gold=("B",))
INTEGER = Question(id="i", text="Find n.", kind="integer", task="t", gold=("73",))


def test_options_follow_the_text_in_letter_order() -> None:
    assert render_question(CHOICE) == "Which is even?\n(A) 1\n(B) 2\n(C) 3"
    assert render_question(INTEGER) == "Find n."


def test_every_prompt_is_one_user_message_that_holds_the_question() -> None:
    for messages in (annotate_messages(CHOICE), answer_messages(CHOICE), aggregate_messages(CHOICE, ["x"])):
        (message,) = messages
        assert message.role == "user"
        assert render_question(CHOICE) in message.content


def test_prompts_end_with_the_form_of_the_reply() -> None:
    assert annotate_messages(CHOICE)[0].content.splitlines()[-1].startswith("Keywords:")
    for messages in (answer_messages(CHOICE), aggregate_messages(CHOICE, ["x"])):
        assert "(A to C)" in messages[0].content
        assert messages[0].content.endswith("The answer is (X).")
    for messages in (answer_messages(INTEGER), aggregate_messages(INTEGER, ["x"])):
        assert "\\boxed{}" in messages[0].content
        assert messages[0].content.endswith("The answer is N.")


def test_responses_are_numbered_in_seat_order() -> None:
    content = aggregate_messages(CHOICE, ["first one", " second one "])[0].content
    assert "### Response 1\nfirst one\n\n### Response 2\nsecond one\n\n### Question" in content


def test_only_the_longest_responses_are_cut() -> None:
    # 10 + 50 + 90 characters into 110: the short one stays, the other two share the remaining 100 equally.
    texts = ["a" * 10, "b" * 50, "c" * 45 + "d" * 45]
    fitted, cut = fit_responses(texts, 110)
    assert cut == 1
    assert fitted[:2] == texts[:2]
    assert len(fitted[2]) == 50
    assert fitted[2].startswith("ccc")
    assert fitted[2].endswith("ddd")
    assert "[...]" in fitted[2]


def test_what_fits_is_not_cut() -> None:
    assert fit_responses(["abc", "de"], 5) == (["abc", "de"], 0)
    assert fit_responses(["abc", "de"], 0) == (["abc", "de"], 0)
    assert fit_responses([], 5) == ([], 0)


def test_a_very_small_room_keeps_the_end() -> None:
    assert fit_responses(["0123456789"], 3) == (["789"], 1)
    fitted, cut = fit_responses(["x" * 9] * 4, 2)
    assert (sum(map(len, fitted)), cut) == (0, 4)
