"""What the demo's experts learn from: right answers in the form that the prompts ask for, of training contents only."""

from __future__ import annotations

from itertools import islice

import pytest

from symoe_ray.demo.items import split_of
from symoe_ray.demo_task import FAMILIES, generate
from symoe_ray.grading import grade
from symoe_ray.prompts import aggregate_messages, annotate_messages, answer_messages
from symoe_ray.settings import DemoTask
from symoe_ray.skills import parse_keywords
from training.examples import aggregated, annotated, answered, fixed_texts, question_of, training_items


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reply_is_right_and_integers_are_so_by_both_graders(family: str) -> None:
    for name, item in islice(training_items("test", [family]), 200):
        question = question_of(name, item)
        for example in (answered(question, item), aggregated(question, item, ["one", "two", "three"])):
            graded = grade(example.reply, question)
            assert graded.correct, example.reply
            assert graded.reference_correct or question.choices, example.reply


def test_prompts_are_those_of_a_run() -> None:
    ((family, item),) = islice(training_items("test", list(FAMILIES)), 1)
    question = question_of(family, item)
    assert answered(question, item).prompt == answer_messages(question)[0].content
    assert annotated(question, item).prompt == annotate_messages(question)[0].content
    assert aggregated(question, item, ["x", "y"]).prompt == aggregate_messages(question, ["x", "y"])[0].content


def test_an_annotation_is_read_as_the_skills_of_the_item() -> None:
    for family, item in islice(training_items("test", list(FAMILIES)), 100):
        assert tuple(parse_keywords(annotated(question_of(family, item), item).reply)) == item.skills


def test_training_meets_no_question_of_any_seeds_validation_or_test() -> None:
    asked = {q.text for seed in range(3) for split in generate(DemoTask(seed=seed)) for q in split}
    for family, item in islice(training_items("test", list(FAMILIES)), 4000):
        assert not item.content or split_of(item.content) == "training", family
        assert item.text not in asked


def test_the_fixed_texts_hold_all_that_prompts_say_besides_question_and_drafts() -> None:
    for family, item in islice(training_items("test", list(FAMILIES)), 100):
        question = question_of(family, item)
        for example in (answered(question, item), annotated(question, item), aggregated(question, item, ["", "", ""])):
            rest = example.prompt
            for text in fixed_texts():
                rest = rest.replace(text, "")
            for own in (
                item.text,
                *(f"({letter}) {c}" for letter, c in zip(question.letters, item.choices, strict=True)),
            ):
                rest = rest.replace(own, "", 1)
            assert not rest.strip(), rest
