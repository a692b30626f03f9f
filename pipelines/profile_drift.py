"""What has changed between two profiles of the same experts, and whether it can be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from pipelines.grading import is_right
from pipelines.profile import read_book
from symoe_ray.comparing import p_text
from symoe_ray.core import InputError
from symoe_ray.profiles import Evidence, asked_of, differences, profile_of
from symoe_ray.statistics import holm, mcnemar_exact
from symoe_ray.storage import Storage
from symoe_ray.tables import DRAFTS

SKILLS_SHOWN = 3
COLUMNS = ["question_id", "expert", "correct", "reference_correct", "failure"]


def drift(a: Storage, b: Storage) -> dict[str, Any]:
    """How the experts of run A differ in run B.

    Paired by question where both have graded answers: exact McNemar, adjusted for all experts together (Holm). Where
    one has scores only, `shared` is 0 and there is no p. InputError where no expert is in both.
    """
    books = read_book(a), read_book(b)
    names = [name for name in books[0] if name in books[1]]
    if not names:
        raise InputError(f"{a.uri} and {b.uri} have no expert in common")
    graders = [next(iter(book.values()))[0].grader for book in books]
    answers = [_answers(storage, grader) for storage, grader in zip((a, b), graders, strict=True)]
    rows = [_row(name, books[0][name], books[1][name], answers[0], answers[1]) for name in names]
    tested = [row for row in rows if row["shared"]]
    for row, p in zip(tested, holm([row["mcnemar_p"] for row in tested]), strict=True):
        row["mcnemar_p_holm"] = p
    return {
        "a": a.uri, "b": b.uri, "experts": rows,
        "only_in_a": sorted(books[0].keys() - books[1].keys()), "only_in_b": sorted(books[1].keys() - books[0].keys()),
    }  # fmt: skip


def _answers(storage: Storage, grader: str) -> dict[str, dict[str, bool]]:
    """Expert -> question -> right, of the answers that did not fail."""
    found: dict[str, dict[str, bool]] = {}
    table = storage.read_tables(storage.names("profiles", ".parquet"), DRAFTS, COLUMNS)
    for row in table.filter(pc.is_null(table["failure"])).to_pylist():
        found.setdefault(row["expert"], {})[row["question_id"]] = is_right(row, grader)
    return found


def _row(
    expert: str,
    a: Sequence[Evidence],
    b: Sequence[Evidence],
    before: Mapping[str, Mapping[str, bool]],
    after: Mapping[str, Mapping[str, bool]],
) -> dict[str, Any]:
    one, two = before.get(expert, {}), after.get(expert, {})
    shared = one.keys() & two.keys()
    lost, gained = (sum(side[q] and not other[q] for q in shared) for side, other in ((one, two), (two, one)))
    wholes = profile_of(expert, a), profile_of(expert, b)
    accuracies = [whole.correct / whole.graded if whole.graded else None for whole in wholes]
    return {
        "expert": expert,
        "accuracy_a": sum(one[q] for q in shared) / len(shared) if shared else accuracies[0],
        "accuracy_b": sum(two[q] for q in shared) / len(shared) if shared else accuracies[1],
        "shared": len(shared),
        "lost": lost,
        "gained": gained,
        "mcnemar_p": mcnemar_exact(lost, gained) if shared else None,
        "mcnemar_p_holm": None,
        "changed": {name: {"a": then, "b": now} for name, (then, now) in differences(a, b).items()},
        "skills": _skills(a, b),
    }


def _skills(a: Sequence[Evidence], b: Sequence[Evidence]) -> list[dict[str, Any]]:
    """The scores that changed, the largest changes first, with the answers that each rests on."""
    scores = [profile_of("", side).scores for side in (a, b)]
    asked = [asked_of(side) for side in (a, b)]
    rows = [
        {
            "skill": skill, "score_a": scores[0].get(skill, 0), "score_b": scores[1].get(skill, 0),
            "asked_a": asked[0].get(skill), "asked_b": asked[1].get(skill),
        }
        for skill in scores[0].keys() | scores[1].keys()
        if scores[0].get(skill, 0) != scores[1].get(skill, 0)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-abs(row["score_b"] - row["score_a"]), row["skill"]))


def drift_table(found: Mapping[str, Any]) -> str:
    """The experts as aligned text, the skills that changed most beside each."""
    header = ("expert", "A", "B", "shared", "lost", "gained", "p", "p Holm", "largest changes of a skill's score")
    lines = [header, *map(_line, found["experts"])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]]) for line in lines
    ]
    notes = [
        f"{row['expert']}: {name} was {', '.join(sides['a'])}, is {', '.join(sides['b'])}"
        for row in found["experts"]
        for name, sides in row["changed"].items()
    ]
    notes += [f"only in {side.upper()}: {', '.join(own)}" for side in "ab" if (own := found[f"only_in_{side}"])]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], *notes])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}%"

    skills = [f"{s['skill']} {s['score_a']:+.0f} -> {s['score_b']:+.0f}" for s in row["skills"][:SKILLS_SHOWN]]
    p_values = [p_text(row[name]) if row[name] is not None else "-" for name in ("mcnemar_p", "mcnemar_p_holm")]
    return (
        row["expert"], percent(row["accuracy_a"]), percent(row["accuracy_b"]), str(row["shared"]), str(row["lost"]),
        str(row["gained"]), *p_values, ", ".join(skills),
    )  # fmt: skip
