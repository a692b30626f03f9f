"""A task's questions: the validation questions that profile the experts, and the test questions they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from symoe_ray.core import InputError, Question
from symoe_ray.demo_task import generate
from symoe_ray.fingerprints import digest
from symoe_ray.question_files import ReadHub, read_rows
from symoe_ray.question_rows import content_id, parse_question
from symoe_ray.settings import TaskSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """A task's questions in the order of their files, and what looks odd about them (sentences with counts).

    Ids are unique within each split. A question of both splits has the same id in both, unless it brings its own.
    `test_in_all` counts the test questions before any limit.
    """

    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    warnings: tuple[str, ...] = ()
    test_in_all: int = 0


def load_task(task: TaskSettings, *, limit: int = 0, read_hub: ReadHub | None = None) -> TaskData:
    """The questions of a task: its files' or, where it names none, the generated ones.

    `read_hub` reads hf:// addresses. `limit` > 0 keeps at most that many questions of each split: those whose ids have
    the smallest digests, so that a larger limit contains a smaller one whatever the order of the file. Warnings speak
    of the whole files.
    Raises InputError where a file or a question is wrong, or where one given id stands for two different contents.
    """
    if task.validation or task.test:
        _refuse_without_effect(task)
        validation = _load(task, task.validation, read_hub, needs_gold=True)
        test = _load(task, task.test, read_hub, needs_gold=False)
    elif task.demo:
        validation, test = generate(task.demo, task.name)
    else:
        raise InputError(f"task {task.name!r} has no questions: set task.validation and task.test to files")
    _refuse_one_id_for_two(task, validation + test)
    return TaskData(
        validation=_limited(_with_unique_ids(validation), limit),
        test=_limited(_with_unique_ids(test), limit),
        warnings=tuple(_warnings(task, validation, test)),
        test_in_all=len(test),
    )


def _load(task: TaskSettings, source: str, read_hub: ReadHub | None, *, needs_gold: bool) -> tuple[Question, ...]:
    rows = read_rows(source, read_hub) if source else []
    return tuple(parse_question(row, task, needs_gold=needs_gold) for row in rows)


def _refuse_without_effect(task: TaskSettings) -> None:
    """A saved run's addresses are spelled out: another dataset or revision beside them would change nothing."""
    for key, value in (("dataset", task.dataset), ("revision", task.revision)):
        if value and not any(value in source for source in (task.validation, task.test)):
            raise InputError(
                f"task.{key}={value} occurs in neither task.validation={task.validation} nor task.test={task.test}; "
                "give task=NAME with it, or set these two"
            )


def _content(question: Question) -> str:
    return content_id(question.task, question.text, question.choices, question.kind)


def _refuse_one_id_for_two(task: TaskSettings, questions: Sequence[Question]) -> None:
    """A given id names one content and one gold; made ids are left out, as they follow from the content alone."""
    first: dict[str, Question] = {}
    for question in questions:
        other = first.setdefault(question.id, question)
        content = _content(question)
        if content == question.id:
            continue
        if content != _content(other) or (question.gold and other.gold and question.gold != other.gold):
            files = " and ".join(dict.fromkeys(file for file in (task.validation, task.test) if file))
            raise InputError(
                f"{files}: the id {question.id!r} stands for two different questions: "
                f"{_short(other.text)!r} (gold {other.gold}) and {_short(question.text)!r} (gold {question.gold}); "
                f"ids must be unique over both files"
            )


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _with_unique_ids(questions: Sequence[Question]) -> list[Question]:
    """Every row keeps its place; the second with one id becomes "id#2", and so on."""
    taken = {question.id for question in questions}
    seen: Counter[str] = Counter()
    unique = []
    for question in questions:
        seen[question.id] += 1
        name = question.id
        if seen[question.id] > 1:
            while (name := f"{question.id}#{seen[question.id]}") in taken:
                seen[question.id] += 1
            taken.add(name)
        unique.append(replace(question, id=name))
    return unique


def _limited(questions: Sequence[Question], limit: int) -> tuple[Question, ...]:
    if not 0 < limit < len(questions):
        return tuple(questions)
    ranked = sorted(questions, key=lambda question: (digest(question.id), question.id))
    kept = {question.id for question in ranked[:limit]}
    return tuple(question for question in questions if question.id in kept)


def _warnings(task: TaskSettings, validation: Sequence[Question], test: Sequence[Question]) -> list[str]:
    found = [_repeated(task.validation, validation), _repeated(task.test, test), _overlap(validation, test)]
    without = sum(not question.gold for question in test)
    if without:
        found.append(f"{without} of {len(test)} test questions have no gold answer and count as wrong")
    return [warning for warning in found if warning]


def _repeated(source: str, questions: Sequence[Question]) -> str:
    """How many questions repeat an earlier text, how many of these with the same options, and with another gold."""
    texts: set[str] = set()
    golds: dict[str, tuple[str, ...]] = {}
    text_again = same = conflicting = 0
    for question in questions:
        text, content = _asked(question), _content(question)
        text_again += text in texts
        same += content in golds
        conflicting += golds.get(content, question.gold) != question.gold
        texts.add(text)
        golds.setdefault(content, question.gold)
    if not text_again:
        return ""
    tail = f" and {conflicting} of these another gold answer" if conflicting else ""
    start = f"{source}: {text_again} of {len(questions)} questions repeat an earlier one's text"
    return f"{start}; {same} have the same options{tail}"


def _overlap(validation: Sequence[Question], test: Sequence[Question]) -> str:
    texts, contents = {_asked(question) for question in validation}, {_content(question) for question in validation}
    text_shared = sum(_asked(question) in texts for question in test)
    shared = sum(_content(question) in contents for question in test)
    if not text_shared:
        return ""
    start = f"{text_shared} of {len(test)} test questions share their text with a validation question"
    return f"{start}; {shared} have the same options"


def _asked(question: Question) -> str:
    return " ".join(question.text.split())
