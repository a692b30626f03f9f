"""Options inside a question's text: "... The options are: (A) one (B) two" as the stem and the option texts."""

from __future__ import annotations

import re
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HEADING = "The options are:"

_MARKER = re.compile(r"(?<!\S)\(([A-Z])\)(?!\S)")
_JOINED = re.compile(r"(?:\b(?:and|or|nor)|&)\s*$", re.IGNORECASE)
_MENTIONED_BEFORE = re.compile(r"(?:\b(?:both|either|neither|see|of|options?|than)|,)\s*$", re.IGNORECASE)
_MENTIONED_AFTER = re.compile(r"\s*(?:&|,|(?:and|or|nor)\b)", re.IGNORECASE)

# (markers that count, -mentions, -sum of squared option lengths): bigger is better. Each part is a sum over the
# options, so the best way to reach a marker extends the best way to reach one of its predecessors.
_Score = tuple[int, int, int]


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """The stem and the option texts in letter order; `(text, ())` when the text holds no options.

    Options follow the last "The options are:" that "(A)" comes after. An option may itself contain "(C)": of all
    ascending chains (A) (B) (C) ... the one with most markers is taken (one that follows "and" or "or" counts nothing),
    then the one with fewest markers that read like mentions ("see (C)", "(A), ..."), then the one whose options are
    most even in length.
    """
    start = len(text)
    while (start := text.rfind(HEADING, 0, start)) >= 0:
        body = text[start + len(HEADING) :]
        if body.lstrip().startswith("(A)"):
            options = _split(body)
            return (text[:start].strip(), options) if len(options) > 1 else (text, ())
    return text, ()


@dataclass(frozen=True, slots=True)
class _Way:
    """The best chain that ends with a marker: its score without that marker's own option, and the marker before."""

    score: _Score
    before: int


def _split(body: str) -> tuple[str, ...]:
    """The option texts of "(A) one (B) two"; the chain starts with the marker that the body starts with."""
    markers = list(_MARKER.finditer(body))
    ways = _best_ways(body, markers)
    last = max(ways, key=lambda index: _extend(ways[index].score, (0, 0), len(body) - markers[index].end()), default=-1)
    chain: list[re.Match[str]] = []
    while last >= 0:
        chain.append(markers[last])
        last = ways[last].before
    chain.reverse()
    ends = [marker.start() for marker in chain[1:]] + [len(body)]
    return tuple(body[marker.end() : end].strip() for marker, end in zip(chain, ends, strict=True))


def _best_ways(body: str, markers: list[re.Match[str]]) -> dict[int, _Way]:
    """For each marker that a chain from the first marker can reach, the best such chain."""
    ways = {0: _Way((1, 0, 0), -1)} if markers else {}
    for here, marker in enumerate(markers):
        worth = _worth(body, marker)
        for before in range(here):
            if before not in ways or ord(markers[before][1]) + 1 != ord(marker[1]):
                continue
            score = _extend(ways[before].score, worth, marker.start() - markers[before].end())
            if here not in ways or score > ways[here].score:
                ways[here] = _Way(score, before)
    return ways


def _extend(score: _Score, worth: tuple[int, int], length: int) -> _Score:
    return score[0] + worth[0], score[1] + worth[1], score[2] - length * length


def _worth(body: str, marker: re.Match[str]) -> tuple[int, int]:
    """(1, 0) for the start of an option, (1, -1) for what may mention another option, (0, -1) for what surely does."""
    before = body[max(0, marker.start() - 20) : marker.start()]
    if _JOINED.search(before):
        return 0, -1
    return (1, -1) if _MENTIONED_BEFORE.search(before) or _MENTIONED_AFTER.match(body, marker.end()) else (1, 0)
