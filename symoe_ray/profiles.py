"""Profiles as something to keep: what each expert is good at, with the evidence that says so. Pure.

A profile is a set of pieces of evidence, each one profiling of one expert on one task. Merging is the union of such
sets, so it is associative and commutative, and evidence that both sides hold counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from symoe_ray.core import ExpertSpec, InputError, Profile
from symoe_ray.fingerprints import digest
from symoe_ray.prompts import PROMPTS_VERSION
from symoe_ray.skills import skill_scores
from symoe_ray.statistics import Interval, wilson

FORMAT = 2
SAME = ("model", "revision", "template", "grader")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an expert has answered in one profiling, and as what it was asked.

    `scores` are right minus wrong answers by skill, `asked` the answers by skill ({}: not known), `failed` how many
    questions have no answer beside those that are `graded`. `model` names the adapter, too; `template` is a digest of
    prompt and chat template, `questions` one of the questions' ids; `made` a day ("2026-01-31"). Texts are "" where
    they are not known.
    """

    task: str
    scores: Mapping[str, float]
    graded: int
    correct: int
    failed: int = 0
    asked: Mapping[str, int] = field(default_factory=dict)
    model: str = ""
    revision: str = ""
    template: str = ""
    grader: str = ""
    seed: int | None = None
    questions: str = ""
    made: str = ""

    @property
    def id(self) -> str:
        """Equal for what was found with the same questions in the same way, whenever that was."""
        return digest({name: value for name, value in asdict(self).items() if name != "made"})


Book = Mapping[str, tuple[Evidence, ...]]
"""Expert -> its evidence; both in an order that has no meaning but for the experts' in sampler=reference."""


def evidence_of(
    spec: ExpertSpec, skills: Mapping[str, Sequence[str]], correct: Mapping[str, bool], *, task: str, grader: str,
    seed: int, made: str, failed: int = 0,
) -> Evidence:  # fmt: skip
    """The evidence of graded answers: `skills` and `correct` by question id, and how many more have `failed`."""
    own = {question: names for question, names in skills.items() if question in correct}
    counts = skill_scores(own, dict.fromkeys(correct, True))
    return Evidence(
        task=task, scores=skill_scores(own, correct), graded=len(correct), correct=sum(correct.values()),
        failed=failed, asked={skill: int(count) for skill, count in counts.items()},
        model=f"{spec.model}+{spec.lora}" if spec.lora else spec.model, revision=spec.revision,
        template=template_of(spec), grader=grader, seed=seed, questions=digest(sorted(correct), size=6), made=made,
    )  # fmt: skip


def template_of(spec: ExpertSpec) -> str:
    """A digest of the wording that an expert is asked with: our prompts and its chat template."""
    return digest(
        PROMPTS_VERSION, spec.chat_template, spec.add_bos, *filter(None, [dict(spec.chat_template_kwargs)]), size=6
    )


def profile_of(expert: str, evidence: Sequence[Evidence]) -> Profile:
    """All evidence of an expert added up."""
    return Profile(
        expert=expert, task="+".join(dict.fromkeys(e.task for e in evidence)), scores=_sum(e.scores for e in evidence),
        graded=sum(e.graded for e in evidence), correct=sum(e.correct for e in evidence),
        failed=sum(e.failed for e in evidence),
    )  # fmt: skip


def asked_of(evidence: Sequence[Evidence]) -> dict[str, int]:
    """Graded answers by skill; {} where some of the evidence does not say."""
    if not all(e.asked or not e.scores for e in evidence):
        return {}
    return {skill: int(count) for skill, count in _sum(e.asked for e in evidence).items()}


def skill_accuracies(evidence: Sequence[Evidence]) -> dict[str, tuple[int, int, Interval]]:
    """Skill -> (right, asked, Wilson's 95 % interval of its accuracy), of evidence that counts its answers."""
    asked, scores = asked_of(evidence), _sum(e.scores for e in evidence)
    right = {skill: round((scores[skill] + count) / 2) for skill, count in asked.items()}
    return {skill: (right[skill], count, wilson(right[skill], count)) for skill, count in asked.items()}


def merged(books: Iterable[Book]) -> dict[str, tuple[Evidence, ...]]:
    """The union of books, each expert's evidence in the order of its ids.

    Raises InputError where one name stands for two models, revisions, prompts or graders ("" agrees with all).
    """
    found: dict[str, dict[str, Evidence]] = {}
    for book in books:
        for expert, evidence in book.items():
            own = found.setdefault(expert, {})
            for piece in evidence:
                other = own.get(piece.id, piece)
                own[piece.id] = min(piece, other, key=lambda e: e.made)
    for expert, own in found.items():
        _refuse_two_in_one(expert, own.values())
    return {expert: tuple(own[key] for key in sorted(own)) for expert, own in found.items()}


def differences(one: Iterable[Evidence], other: Iterable[Evidence]) -> dict[str, tuple[list[str], list[str]]]:
    """Where two experts of one name are not the same: model, revision, template or grader -> what each side has."""
    found = {}
    for name in SAME:
        a, b = ({getattr(e, name) for e in side if getattr(e, name)} for side in (one, other))
        if a and b and a != b:
            found[name] = (sorted(a), sorted(b))
    return found


def to_json(book: Book) -> dict[str, Any]:
    """What profiles.json holds: for each expert its totals, for reading, and the evidence that they follow from."""
    rows = {}
    for expert, evidence in book.items():
        whole, asked = profile_of(expert, evidence), asked_of(evidence)
        rows[expert] = {
            "format": FORMAT,
            "task": whole.task,
            "graded": whole.graded,
            "correct": whole.correct,
            "failed": whole.failed,
            "scores": dict(sorted(whole.scores.items())),
            "asked": dict(sorted(asked.items())),
            "evidence": [_sorted(piece) for piece in evidence],
        }
    return rows


def from_json(rows: Mapping[str, Mapping[str, Any]], place: str) -> dict[str, tuple[Evidence, ...]]:
    """The book in a profiles.json, of this format or the first, which had totals only. `place` is for errors."""
    book = {}
    for expert, row in rows.items():
        number = row.get("format", 1)
        if number > FORMAT:
            raise InputError(f"{place}: the profile of {expert} has format {number}; this version reads up to {FORMAT}")
        try:
            pieces = row["evidence"] if number > 1 else [dict(row)]
            book[expert] = tuple(Evidence(**piece) for piece in pieces)
        except (KeyError, TypeError) as error:
            raise InputError(f"{place}: the profile of {expert} cannot be read: {error}") from None
    return book


def _sorted(piece: Evidence) -> dict[str, Any]:
    row = asdict(piece)
    return row | {name: dict(sorted(row[name].items())) for name in ("scores", "asked")}


def _sum(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for table in tables:
        for skill, value in table.items():
            total[skill] = total.get(skill, 0) + value
    return total


def _refuse_two_in_one(expert: str, evidence: Iterable[Evidence]) -> None:
    pieces = list(evidence)
    for piece in pieces[1:]:
        for name, (a, b) in differences(pieces[:1], [piece]).items():
            raise InputError(
                f"profiles of {expert} cannot be merged: {name} is {a[0]!r} in one and {b[0]!r} in another"
            )
