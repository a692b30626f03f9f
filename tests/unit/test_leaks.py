from __future__ import annotations

import random

from symoe_ray.core import Question
from symoe_ray.leaks import Leak, find_leaks, shingles, summary, without_leaks
from symoe_ray.tasks import TaskData

LONG = " ".join(f"word{n}" for n in range(40))


def question(name: str, text: str, *choices: str) -> Question:
    return Question(id=name, text=text, kind="choice" if choices else "integer", task="t", choices=choices, gold=("A",))


def test_case_punctuation_spaces_and_the_order_of_options_do_not_count() -> None:
    validation = [question("v", "Which  gas is LIGHTEST?", "Helium", "Hydrogen", "ﬁre")]
    test = [question("t", "which gas is lightest", "hydrogen.", "fire", "helium")]
    assert find_leaks(validation, test) == [Leak(validation_id="v", test_id="t", similarity=1.0)]


def test_equal_texts_with_other_options_are_two_questions() -> None:
    assert find_leaks([question("v", "Which is true?", "a", "b")], [question("t", "Which is true?", "c", "d")]) == []


def test_a_changed_word_in_a_long_question_is_near() -> None:
    (leak,) = find_leaks([question("v", LONG)], [question("t", LONG + " more"), question("u", "word1 word2 word3")])
    assert (leak.test_id, leak.similarity) == ("t", 38 / 39)


def test_other_numbers_in_a_short_question_are_another_question() -> None:
    assert find_leaks([question("v", "What is 12 + 30?")], [question("t", "What is 12 + 31?")]) == []


def test_the_most_similar_test_question_is_named_in_the_order_of_validation() -> None:
    validation = [question("v1", LONG), question("v2", "Who was first?"), question("v3", LONG + " more")]
    leaks = find_leaks(validation, [question("t1", LONG + " more"), question("t2", LONG)])
    assert [(leak.validation_id, leak.test_id) for leak in leaks] == [("v1", "t2"), ("v3", "t1")]
    assert summary(leaks, 3).startswith("2 of 3 validation questions occur in the test set: 2 the same, 0 nearly")


def test_prefix_filtering_finds_what_comparing_all_pairs_finds() -> None:
    rng = random.Random(5)
    base = [[f"w{rng.randint(0, 60)}" for _ in range(rng.randint(3, 40))] for _ in range(60)]
    validation = [question(f"v{n}", " ".join(words)) for n, words in enumerate(base)]
    test = [
        question(f"t{n}", " ".join(w for w in rng.choice(base) if rng.random() > 0.02) or "none") for n in range(200)
    ]
    near = 0.8
    expected = set()
    for v in validation:
        for t in test:
            a, b = shingles(v), shingles(t)
            if len(a & b) / len(a | b) >= near:
                expected.add(v.id)
    assert expected
    assert {leak.validation_id for leak in find_leaks(validation, test, near)} == expected


def test_signs_and_texts_of_symbols_alone_count() -> None:
    options = ("+2", "\N{MINUS SIGN}2", "0")
    assert find_leaks([question("v", "Which?", *options)], [question("t", "Which?", "2", "1", "0")]) == []
    (same,) = find_leaks([question("v", "Which?", *options)], [question("t", "Which?", "+2", "-2", "0")])
    assert same.similarity == 1
    assert find_leaks([question("v", "\N{SNOWMAN}")], [question("t", "\N{SUN}")]) == []


def test_leaks_are_left_out_with_a_warning() -> None:
    data = TaskData(validation=(question("v", "A b c d?"), question("w", "Else?")), test=(question("t", "a B c d"),))
    kept = without_leaks(data)
    assert [q.id for q in kept.validation] == ["w"]
    assert kept.warnings[-1].endswith("left out")
    assert without_leaks(kept) == kept
