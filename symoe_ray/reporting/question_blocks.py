"""Questions packed into a page: compressed blocks that the page unpacks when it needs them, and a small index.

A block is the questions' JSON, one on a line, as zlib's deflate in base64; browsers unpack that by themselves
(`DecompressionStream("deflate")`). The index is packed likewise and says, column by column, what the list and its
filters show of each question; bit i of `marks` stands for the i-th of `FILTERS`.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from symoe_ray.reporting.questions import FILTERS, QuestionRow, answer_of, marks_of

BLOCK_CHARACTERS = 1 << 18
TITLE_CHARACTERS = 160
_LEVEL = 6
_BITS = {mark: 1 << i for i, mark in enumerate(FILTERS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedQuestions:
    """`blocks` and `index` are base64; `counts` how many questions fall under each filter; `skills` how many have each
    skill.
    """

    shown: int = 0
    index: str = ""
    blocks: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    skills: Mapping[str, int] = field(default_factory=dict)


def pack(questions: Iterable[QuestionRow], grader: str) -> PackedQuestions:
    """Pack questions in their order; `grader` is the one that counts. They are read once and not kept."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # zlib lets go of the interpreter's lock
        packer = _Packer(grader, threads)
        for question in questions:
            packer.add(question)
        return packer.finish()


class _Packer:
    def __init__(self, grader: str, threads: ThreadPoolExecutor) -> None:
        self._grader, self._threads = grader, threads
        self._lines: list[str] = []
        self._characters = 0
        self._blocks: list[Future[str]] = []
        self._starts: list[int] = []
        self._columns: dict[str, list[object]] = {
            name: [] for name in ("ids", "titles", "answers", "golds", "marks", "skills")
        }
        self._numbers: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._skills: Counter[str] = Counter()

    def add(self, question: QuestionRow) -> None:
        marks, skills = marks_of(question, self._grader), list(dict.fromkeys(question["skills"]))
        self._counts.update(marks)
        self._skills.update(skills)
        row = {
            "ids": question["id"],
            "titles": " ".join(question["question"][: 2 * TITLE_CHARACTERS].split())[:TITLE_CHARACTERS],
            "answers": answer_of(question["final"], self._grader),
            "golds": " or ".join(question["gold"]),
            "marks": sum(_BITS[mark] for mark in marks),
            "skills": [self._numbers.setdefault(skill, len(self._numbers)) for skill in skills],
        }
        for name, value in row.items():
            self._columns[name].append(value)
        self._lines.append(_json(question))
        self._characters += len(self._lines[-1])
        if self._characters >= BLOCK_CHARACTERS:
            self._close_block()

    def _close_block(self) -> None:
        if self._lines:
            self._starts.append(len(self._columns["ids"]) - len(self._lines))
            self._blocks.append(self._threads.submit(_deflated, "\n".join(self._lines)))
            self._lines, self._characters = [], 0

    def finish(self) -> PackedQuestions:
        self._close_block()
        index = {**self._columns, "skill_names": list(self._numbers), "starts": self._starts}
        return PackedQuestions(
            shown=len(self._columns["ids"]),
            index=_deflated(_json(index)),
            blocks=tuple(block.result() for block in self._blocks),
            counts={mark: self._counts[mark] for mark in FILTERS},
            skills=dict(self._skills.most_common()),
        )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _deflated(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), _LEVEL)).decode()
