"""Validation questions that occur in the test set, word for word or nearly: who is profiled on them is flattered.

Questions are compared as sets of shingles, three consecutive words of the text or of one option, by Jaccard's
similarity. Pairs are found by prefix filtering (Chaudhuri et al., ICDE 2006): two sets of similarity t share a shingle
among the rarest few of each, so only these are looked up.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from symoe_ray.core import Question
from symoe_ray.tasks import TaskData

NEAR = 0.9
WORDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A validation question and the test question most like it; `similarity` is 1 where they are the same."""

    validation_id: str
    test_id: str
    similarity: float


def find_leaks(validation: Sequence[Question], test: Iterable[Question], near: float = NEAR) -> list[Leak]:
    """The validation questions with a test question of at least that similarity, in their order.

    Case, punctuation, spaces, Unicode's compatibility forms and the order of options do not count.
    """
    asked = {question.id: shingles(question) for question in validation}
    frequency = Counter(shingle for own in asked.values() for shingle in own)
    holders = defaultdict(list)
    for question_id, own in asked.items():
        for shingle in _prefix(own, frequency, near):
            holders[shingle].append(question_id)
    best: dict[str, Leak] = {}
    for question in test:
        own = shingles(question)
        for question_id in {i for shingle in _prefix(own, frequency, near) for i in holders.get(shingle, ())}:
            similarity = len(own & asked[question_id]) / len(own | asked[question_id])
            if similarity >= near and (question_id not in best or similarity > best[question_id].similarity):
                best[question_id] = Leak(validation_id=question_id, test_id=question.id, similarity=similarity)
    return [best[question.id] for question in validation if question.id in best]


def without_leaks(data: TaskData) -> TaskData:
    """The task without the validation questions that occur in its test set, and a warning that counts them."""
    leaks = find_leaks(data.validation, data.test)
    if not leaks:
        return data
    gone = {leak.validation_id for leak in leaks}
    kept = tuple(question for question in data.validation if question.id not in gone)
    warning = f"{summary(leaks, len(data.validation))}; left out"
    return replace(data, validation=kept, warnings=(*data.warnings, warning))


def summary(leaks: Sequence[Leak], validation: int) -> str:
    """One line with the counts."""
    same = sum(leak.similarity == 1 for leak in leaks)
    return (
        f"{len(leaks)} of {validation} validation questions occur in the test set: {same} the same, "
        f"{len(leaks) - same} nearly (similarity of at least {NEAR})"
    )


def shingles(question: Question) -> set[str]:
    """The shingles of a question: of its text and of each option; a shorter one is a single shingle."""
    found = set()
    for text in (question.text, *question.choices):
        plain = unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-")
        words = re.findall(r"(?<!\w)[-+]\d\w*|\w+", plain) or [plain.strip()]
        found |= {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
    return found


def _prefix(own: set[str], frequency: Counter[str], near: float) -> list[str]:
    """The rarest shingles, one of which a set of that similarity must share."""
    ranked = sorted(own, key=lambda shingle: (frequency[shingle], shingle))
    return ranked[: len(own) - math.ceil(near * len(own) - 1e-9) + 1]
