"""Which answers of an expert will be long, guessed from the skills of the questions, and the order that follows.

What starts last should be short: a long answer that starts late goes on in an engine that has nothing else to do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

LengthGuesses = Mapping[str, Mapping[str, float]]
"""Expert -> skill -> the logarithm of how long an answer is there over the expert's mean answer."""

DOUBT = 3.0
ORDERED_CHUNKS, LEAST_ROWS = 1024, 16
PIECES_OF_A_HOST, LEAST_PIECE = 16, 4
T = TypeVar("T")


def length_guesses(
    answers: Iterable[tuple[str, str, int]], skills: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """What an expert's answers, as (expert, question, tokens), say of the `skills` of their questions.

    A mean of n answers counts as n + `DOUBT` answers, those added being like all others of the expert. Guesses are
    means of logarithms, and are then all moved so that those of these answers are 1 on average.
    """
    logs: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for expert, question, tokens in answers:
        if tokens > 0:
            logs[expert].append((question, math.log(tokens)))
    return {expert: _by_skill(own, skills) for expert, own in logs.items()}


def _by_skill(logs: Sequence[tuple[str, float]], skills: Mapping[str, Sequence[str]]) -> dict[str, float]:
    mean = fmean(log for _, log in logs)
    beyond: dict[str, list[float]] = defaultdict(list)
    for question, log in logs:
        for skill in dict.fromkeys(skills.get(question, ())):
            beyond[skill].append(log - mean)
    found = {skill: sum(own) / (len(own) + DOUBT) for skill, own in beyond.items()}
    excess = math.log(fmean(relative_length(found, skills.get(question, ())) for question, _ in logs))
    return {skill: shift - excess for skill, shift in found.items()}


def relative_length(guesses: Mapping[str, float], skills: Iterable[str]) -> float:
    """An expert's answer to a question of these skills over its usual one, 1.0 where nothing is known of them."""
    known = [guesses[skill] for skill in skills if skill in guesses]
    return math.exp(fmean(known)) if known else 1.0


def ordered_rows(rows: int, files: int) -> int:
    """Rows of a chunk where a file's rows are in the order of their guessed lengths, and there are so many files.

    Chunks are what is put in order over all files, so there should be `ORDERED_CHUNKS` at least, if not too small.
    """
    return max(LEAST_ROWS, math.ceil(rows * max(1, files) / ORDERED_CHUNKS))


def piece_rows(rows: int, hosts: int) -> int:
    """Into how many rows at a time chunks are cut where all of a group start at once, each host with its share.

    Neighbours in a file are alike, so a host with whole chunks of them would have longer work than others.
    """
    return max(LEAST_PIECE, math.ceil(rows / max(1, hosts) / PIECES_OF_A_HOST))


def started_alike(items: Iterable[T], rows: int, rows_of: Callable[[T], int]) -> list[T]:
    """Work that is longest first, so that hosts which take the first `rows` rows one after another start alike.

    The items that hold them come in the order of a van der Corput sequence, of which each stretch is spread evenly over
    the whole; what is left keeps its order.
    """
    work, count, held = list(items), 0, 0
    while count < len(work) and held < rows:
        held += rows_of(work[count])
        count += 1
    bits = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return [*(work[place] for place in order), *work[count:]]
