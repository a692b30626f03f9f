"""What the editor learns from: drafts that the trained experts write for training questions, and made-up ones."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from symoe_ray.aggregators import majority
from symoe_ray.core import Question
from symoe_ray.demo.items import Dice, Item, draw
from symoe_ray.demo_task import FAMILIES
from symoe_ray.fingerprints import seed_of
from symoe_ray.grading import grade
from training.examples import Example, aggregated, answered, question_of, worked_answer
from training.replying import Writer, write_replies

_SEATS = 3
_OUTSIDERS = 2  # drafts of each question by experts that never learned its family
_MADE_UP = 0.4  # share of the examples
_SIGN = re.compile(r"\d|[A-Z](?![a-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One expert's reply to a question; `insider`: the expert has learned the question's family."""

    text: str
    right: bool
    insider: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """A training question with its drafts: two of every insider, one each of a few outsiders."""

    question: Question
    item: Item
    drafts: tuple[Draft, ...]


def write_drafts(
    writers: Mapping[str, Writer], families: Mapping[str, Sequence[str]], asked: Sequence[tuple[Question, Item]]
) -> list[Drafted]:
    """The drafts of all questions; `families` are those that each writer has learned."""
    dice = Dice("drafting")
    seats: dict[str, list[int]] = {name: [] for name in writers}
    for index, (question, _) in enumerate(asked):
        insiders = [name for name in writers if question.category in families[name]]
        outsiders = dice.shuffled([name for name in writers if name not in insiders])[:_OUTSIDERS]
        for name in [*insiders, *insiders, *outsiders]:
            seats[name].append(index)
    drafts: list[list[Draft]] = [[] for _ in asked]
    for name, writer in writers.items():
        prompts = [answered(*asked[index]).prompt for index in seats[name]]
        for index, text in zip(seats[name], write_replies(writer, prompts, seed=seed_of("draft", name)), strict=True):
            question, _ = asked[index]
            insider = question.category in families[name]
            drafts[index].append(Draft(text=text, right=grade(text, question).correct, insider=insider))
    return [
        Drafted(question=question, item=item, drafts=tuple(found))
        for (question, item), found in zip(asked, drafts, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One aggregation whose outcome can be graded, and how it would end without an aggregator."""

    question: Question
    example: Example
    majority: bool
    any_right: bool


def editing_examples(drafted: Sequence[Drafted], seed: str) -> Iterator[Example]:
    """Aggregations without end."""
    dice = Dice("editing", seed)
    while True:
        if dice.chance(_MADE_UP):
            yield made_up(dice)
        else:
            case = dice.pick(drafted)
            shown = _as_recruited(case, dice) if dice.chance(0.5) else _one_right(case, dice)
            yield aggregated(case.question, case.item, [draft.text for draft in shown])


def made_up(dice: Dice) -> Example:
    """Right drafts as in training, and wrong ones: with a sign changed, or the worked answer to another question."""
    family = dice.pick(list(FAMILIES))
    item = draw(FAMILIES[family], dice, "training")
    question = question_of(family, item)
    answer = worked_answer(question, item)
    drafts = [answer] * dice.pick((0, 1, 1, 1, 2, 2, 2, 3))
    while len(drafts) < _SEATS:
        drafts.append(_altered(answer, dice) if dice.chance(0.5) else _to_another_question(family, dice))
    return aggregated(question, item, dice.shuffled(drafts))


def recruited(drafted: Sequence[Drafted]) -> list[Case]:
    """Cases of drafts as recruiting brings them."""
    dice = Dice("recruited")
    return [_case(case, _as_recruited(case, dice)) for case in drafted]


def contested(drafted: Sequence[Drafted]) -> list[Case]:
    """Cases of one right and two wrong drafts, of the questions that have them."""
    dice = Dice("contested")
    shown = [(case, _one_right(case, dice)) for case in drafted]
    return [_case(case, drafts) for case, drafts in shown if sum(draft.right for draft in drafts) == 1]


def _case(case: Drafted, shown: Sequence[Draft]) -> Case:
    answers = [grade(draft.text, case.question).answer for draft in shown]
    return Case(
        question=case.question, example=aggregated(case.question, case.item, [draft.text for draft in shown]),
        majority=majority(answers) in case.question.gold, any_right=any(draft.right for draft in shown),
    )  # fmt: skip


def _as_recruited(case: Drafted, dice: Dice) -> list[Draft]:
    """Mostly drafts of insiders."""
    shuffled = dice.shuffled(case.drafts)
    return _seated([draft for draft in shuffled if draft.insider][: dice.pick((2, 3, 3))], shuffled, dice)


def _one_right(case: Drafted, dice: Dice) -> list[Draft]:
    """One right and two wrong drafts, where there are such."""
    shuffled = dice.shuffled(case.drafts)
    right, wrong = ([draft for draft in shuffled if draft.right == wanted] for wanted in (True, False))
    return _seated([*right[:1], *wrong[: _SEATS - 1]], shuffled, dice)


def _seated(first: Sequence[Draft], others: Sequence[Draft], dice: Dice) -> list[Draft]:
    """Three drafts in a random order, `first` before others."""
    chosen = [*first, *(draft for draft in others if not any(draft is taken for taken in first))]
    return dice.shuffled(chosen[:_SEATS])


def _altered(text: str, dice: Dice) -> str:
    """The text with one digit or capital letter changed, if it has any."""
    places = [match.start() for match in _SIGN.finditer(text)]
    if not places:
        return text
    place = dice.pick(places)
    same = string.digits if text[place].isdigit() else string.ascii_uppercase
    return text[:place] + dice.pick(same.replace(text[place], "")) + text[place + 1 :]


def _to_another_question(family: str, dice: Dice) -> str:
    other = family if dice.chance(0.6) else dice.pick(list(FAMILIES))
    item = draw(FAMILIES[other], dice, "training")
    return worked_answer(question_of(other, item), item)
