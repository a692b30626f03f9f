"""What methods make of graded texts, by columns: a method's answer to every question, whether it is right, its cost.

Texts are drafts and final answers; a method takes some rows of them for each question. Nothing here walks over
questions one by one, so that 20,000 questions and 25 methods take a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Costs = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What one grader has read in the texts, and whether it is right.

    `answer` indexes `vocabulary`, whose last entry is "" for a text without a readable answer: equal answers have equal
    numbers.
    """

    vocabulary: np.ndarray
    answer: np.ndarray
    correct: np.ndarray


Choice = Callable[[Reading], np.ndarray]
"""The text that answers each question, by what a grader has read in them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texts:
    """Graded texts, one entry each in arrays of one length.

    `default` and `reference` are the readings of our grader and of the released one, `grader` the name of the run's.
    `writer` numbers the expert and prompt, so that samples of one request and question are told by it. `calls` is 0
    for a text that took no model call. `seconds` is slot time, NaN unknown.
    """

    default: Reading
    reference: Reading
    grader: str
    writer: np.ndarray
    unparsed: np.ndarray
    truncated: np.ndarray
    failed: np.ndarray
    calls: np.ndarray
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MethodOutcomes:
    """One method's answers with one seed: arrays over the questions of the run, in their order.

    `answer` and `correct` are by the run's grader. Where a method chooses among texts by what is read in them, each
    grader's column is its own choice. The costs are of all that an answer needed, drafts included; `seconds` is
    generation time on a slot, NaN if unknown.
    """

    method: str
    seed: int
    answer: np.ndarray
    correct: np.ndarray
    correct_default: np.ndarray
    correct_reference: np.ndarray
    unparsed: np.ndarray
    truncated: np.ndarray
    failed: np.ndarray
    calls: np.ndarray
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    seconds: np.ndarray


VERDICTS = ("correct", "correct_default", "correct_reference", "unparsed", "truncated", "failed")
COSTS = ("calls", "prompt_tokens", "completion_tokens", "seconds")


def outcomes(
    method: str, seed: int, texts: Texts, choice: Choice, needed: np.ndarray, extra: Costs | None = None
) -> MethodOutcomes:
    """A method that answers with the texts of its `choice`, for which the texts `needed[i]` had to be written.

    `extra` are costs of each question beside those (its annotation).
    """
    costs = cost_of(texts, needed)
    for name, values in (extra or {}).items():
        costs[name] = costs[name] + values
    default, reference = (reading.correct[choice(reading)] for reading in (texts.default, texts.reference))
    own, correct = (texts.reference, reference) if texts.grader == "reference" else (texts.default, default)
    chosen = choice(own)
    return MethodOutcomes(
        method=method, seed=seed, answer=own.vocabulary[own.answer[chosen]], correct=correct, correct_default=default,
        correct_reference=reference, unparsed=texts.unparsed[chosen], truncated=texts.truncated[chosen],
        failed=texts.failed[chosen], **costs,
    )  # fmt: skip


def cost_of(texts: Texts, needed: np.ndarray) -> Costs:
    """Calls, tokens and seconds of each row of texts (questions x texts).

    Samples of one writer share its prompt, which counts once: as the longest of theirs, since a failed one counts none.
    """
    writers, prompts = texts.writer[needed], texts.prompt_tokens[needed]
    shared = np.zeros(len(needed), dtype=np.int64)
    for place in range(needed.shape[1]):
        same = writers == writers[:, [place]]
        first = ~same[:, :place].any(axis=1)
        shared += first * np.where(same, prompts, 0).max(axis=1)
    return {
        "calls": texts.calls[needed].sum(axis=1),
        "prompt_tokens": shared,
        "completion_tokens": texts.completion_tokens[needed].sum(axis=1),
        "seconds": texts.seconds[needed].sum(axis=1),
    }


def vote(reading: Reading, seats: np.ndarray) -> np.ndarray:
    """For each row of seats the text with the most common answer, ties to the earliest seat.

    Texts without a readable answer do not vote; where there is no vote at all it is the first seat's text.
    """
    answers = reading.answer[seats]
    read = answers < len(reading.vocabulary) - 1
    counts = np.zeros(seats.shape, dtype=np.int32)
    for place in range(seats.shape[1]):
        counts += answers == answers[:, [place]]
    return _at(seats, np.where(read, counts, 0).argmax(axis=1))


def first_right(reading: Reading, seats: np.ndarray) -> np.ndarray:
    """For each row of seats its first right text, else its first: what a perfect judge of them would choose."""
    return _at(seats, reading.correct[seats].argmax(axis=1))


def sample_numbers(seats: np.ndarray) -> np.ndarray:
    """Which of its expert's samples each seat takes, of questions x seats: an expert's j-th seat takes sample j."""
    numbers = np.zeros(seats.shape, dtype=np.int64)
    for place in range(1, seats.shape[1]):
        numbers[:, place] = (seats[:, :place] == seats[:, [place]]).sum(axis=1)
    return numbers


def _at(seats: np.ndarray, places: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.take_along_axis(seats, places[:, None], axis=1)[:, 0]
    return found
