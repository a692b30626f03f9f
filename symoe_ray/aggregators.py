"""Choosing the task's aggregator (method, step 3), and what needs no aggregator: consensus and majority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from symoe_ray.core import InputError, Question
from symoe_ray.fingerprints import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticCase:
    """One aggregation with a known outcome: one correct and two incorrect responses, in the order they are shown."""

    question_id: str
    responses: tuple[str, ...]


def synthetic_case(question: Question, drafts: Sequence[tuple[str, str, bool]], *, seed: int) -> SyntheticCase | None:
    """Draws one correct and two incorrect of a question's `drafts`, each (expert, text, correct), and shuffles them.

    Texts come without reasoning blocks; empty ones are left out. None if too few remain. The draw depends on the seed,
    the question's id and the drafts alone, not on the order they come in.
    """

    def rank(draft: tuple[str, str, bool], purpose: str) -> str:
        return digest(seed, question.id, purpose, draft[0], draft[1])

    drawn = sorted((d for d in drafts if d[1].strip()), key=lambda draft: rank(draft, "draw"))
    right = [draft for draft in drawn if draft[2]][:1]
    wrong = [draft for draft in drawn if not draft[2]][:2]
    if len(right) + len(wrong) < 3:
        return None
    shown = sorted(right + wrong, key=lambda draft: rank(draft, "order"))
    return SyntheticCase(question_id=question.id, responses=tuple(text for _, text, _ in shown))


def best_aggregator(scores: Mapping[str, tuple[int, int]], fallback: Mapping[str, float]) -> tuple[str, str]:
    """The aggregator and one line that says why it is this one.

    `scores` holds (correct, graded) on the synthetic cases: the highest accuracy wins, ties go to the higher validation
    accuracy in `fallback`, then to the first name. Where no expert was graded on a case, validation accuracy decides.
    Raises InputError where there is no expert at all.
    """
    measured = {name: correct / graded for name, (correct, graded) in scores.items() if graded}
    if measured:
        name = min(measured, key=lambda n: (-measured[n], -fallback.get(n, 0.0), n))
        correct, graded = scores[name]
        return name, f"highest accuracy on the synthetic cases: {correct} of {graded}"
    names = fallback or dict.fromkeys(scores, 0.0)
    if not names:
        raise InputError("no aggregator can be chosen: there is neither a synthetic case nor a validation accuracy")
    name = min(names, key=lambda n: (-names[n], n))
    return name, f"no synthetic case could be made; highest validation accuracy: {names[name]:.3f}"


def consensus(answers: Sequence[tuple[str, str]]) -> str:
    """The answer that every seat gave, of (expert, extracted answer); "" where there is none.

    At least two distinct experts must be among the seats. A seat whose answer could not be read agrees with nobody.
    """
    values = {answer for _, answer in answers}
    return values.pop() if len(values) == 1 and len({expert for expert, _ in answers}) > 1 else ""


def majority(answers: Sequence[str]) -> str:
    """The most common answer in seat order, ties to the earliest seat; "" where no answer could be read."""
    ranked = Counter(answer for answer in answers if answer).most_common(1)
    return ranked[0][0] if ranked else ""
