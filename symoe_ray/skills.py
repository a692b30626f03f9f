"""Skills: read from the annotator's samples, scored on validation questions, mapped from test to validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

Embed = Callable[[Sequence[str]], np.ndarray]

_ROWS_AT_ONCE = 1024


def parse_keywords(text: str) -> list[str]:
    """The keywords of one sample, in its order: what follows the last `Keywords:` (or all of it, where there is none).

    Split on commas, stripped, lower-cased, without full stops; empty ones are dropped. Repetitions stay.
    """
    keywords = (part.lower().replace(".", "").strip() for part in text.rsplit("Keywords:", 1)[-1].split(","))
    return [keyword for keyword in keywords if keyword]


def consistent_skills(texts: Sequence[str], *, min_count: int = 2, max_characters: int = 20) -> tuple[str, ...]:
    """The skills on which the samples of one question agree; may be empty.

    Occurrences are counted over all samples together, as the released code does: a keyword that one sample gives twice
    counts as two. Kept are those with at least `min_count` occurrences and at most `max_characters` characters, by
    count descending, then by first appearance.
    """
    counts = Counter(keyword for text in texts for keyword in parse_keywords(text))
    return tuple(k for k, n in counts.most_common() if n >= min_count and len(k) <= max_characters)


def skill_scores(skills: Mapping[str, Sequence[str]], correct: Mapping[str, bool]) -> dict[str, float]:
    """An expert's score per skill: right minus wrong answers over the questions that have the skill (method, step 2).

    Both arguments are keyed by question id. A question that was not graded (absent from `correct`) adds nothing.
    """
    scores: dict[str, float] = {}
    for question_id, names in skills.items():
        if question_id in correct:
            for skill in dict.fromkeys(names):
                scores[skill] = scores.get(skill, 0.0) + (1.0 if correct[question_id] else -1.0)
    return scores


def map_skills(skills: Iterable[str], known: Sequence[str], embed: Embed) -> dict[str, tuple[str, float]]:
    """Maps every distinct skill to (nearest known skill, cosine); {} if nothing is known.

    `embed` turns n texts into an array of shape (n, dimensions), not necessarily normalised. It is called at most once,
    with each distinct text once: the known ones first, then those that are not. A known skill maps to itself with
    cosine 1; ties go to the first of `known`.
    """
    names = list(dict.fromkeys(known))
    if not names:
        return {}
    wanted = list(dict.fromkeys(skills))
    found = dict.fromkeys(names)
    unknown = [skill for skill in wanted if skill not in found]
    nearest = _nearest(unknown, names, embed) if unknown else {}
    return {skill: (skill, 1.0) if skill in found else nearest[skill] for skill in wanted}


def _nearest(unknown: list[str], names: list[str], embed: Embed) -> dict[str, tuple[str, float]]:
    vectors = np.asarray(embed([*names, *unknown]), dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths > 0, lengths, 1.0)
    targets = vectors[: len(names)].T
    result: dict[str, tuple[str, float]] = {}
    for start in range(0, len(unknown), _ROWS_AT_ONCE):
        rows = vectors[len(names) + start : len(names) + start + _ROWS_AT_ONCE]
        # Rounded, so that equal vectors tie whatever order a BLAS library adds their products in.
        cosines = np.round(rows @ targets, 9)
        best = cosines.argmax(axis=1)
        for row, (skill, column) in enumerate(zip(unknown[start : start + _ROWS_AT_ONCE], best, strict=True)):
            result[skill] = (names[column], float(cosines[row, column]))
    return result
