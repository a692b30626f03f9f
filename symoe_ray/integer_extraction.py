"""The integer that a generated text, reasoning already stripped, settles on. What cannot be read is unparsed, never
guessed.

`INTEGER_CHAIN` holds the rules in their order; the first that finds something decides, by its last match:

1. `stated`: the last box or "the answer is 73" (a box that is no integer hides all before it, and "80 or 81" is
   nothing); what "it should be 101" says after a second thought replaces it;
2. `bold`: an integer in bold;
3. `lone`: a line that holds the integer alone;
4. `concluded`: the last sentence, if it concludes ("So ...", "... in total", "the sum is 699") and ends in an integer
   or holds only one.

Signs, thousands separators, degrees, per cent, units and the left side of an equation are understood; "3.5", "2^5" and
"5 times 7" are no integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from symoe_ray.answer_phrases import ANNOUNCED, FILL, SECOND_THOUGHT, TAIL_CHARACTERS, boxes, plain, tail

_INTEGER = (
    r"(?<![\w.,^/])[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d{1,99})(?:\.0+)?"
    r"(?![\d_])(?!\.\d)(?!,\d{3})"
)
_DEGREES = r"(?:°|\^?\{?\\circ\}?|\\?%)"
_ENDS = (
    rf"(?:{_DEGREES}|(?!\s*[*/^+=!\u00d7\u00f7]))(?![A-Za-z])(?!\s*-\s*\d)(?!\s*\\(?:frac|sqrt|times|cdot|pi|binom))"
    r"(?!\s+(?:times|plus|minus|divided)\b)"
)
_STATED = re.compile(
    rf"{FILL}(?:[^\n=.]{{0,60}}=\s*){{0,3}}(?:[a-z -]{{0,60}}\()?(?P<n>{_INTEGER}){_ENDS}"
    r"(?P<other>\s*,?\s*(?i:or|and)\s+(?i:(?:possibly|maybe|perhaps|even)\s+)?\d+)?"
)
_INSTEAD = re.compile(
    rf"\b(?i:it's|it\s+is|should\s+be|must\s+be|is|get|have)\s+{FILL}(?:[^\n=.]{{0,60}}=\s*){{0,3}}(?P<n>{_INTEGER}){_ENDS}"
    r"(?!\s+[a-z])"
)
_BOXED = re.compile(
    rf"(?:[^=]*=)*\s*(?:[A-Za-z ]*:\s*)?(?P<n>{_INTEGER})\s*(?:{_DEGREES}|[A-Za-z ]+(?:\^\{{?\d\}}?)?)?\s*\.?\s*"
)
_BOLD = re.compile(rf"(?<!\*)\*\*\s*(?:[^*=\n]{{0,60}}=\s*){{0,3}}(?P<n>{_INTEGER})\s*{_DEGREES}?\s*\.?\s*\*\*(?!\*)")
_LONE = re.compile(rf"^[ \t>#\u2022\-]*(?P<n>{_INTEGER})[ \t.]*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n")
_CONCLUDES = re.compile(
    r"(?i:^(?:so|thus|therefore|hence|consequently|finally|in\s+total|altogether|in\s+conclusion)\b"
    r"|\b(?:in\s+total|altogether|final\s+(?:result|value|sum|count)|we\s+(?:get|obtain|have\s+found|find))\b"
    r"|\b(?:total|sum|product|number|value|result|count|remainder|area|length|probability)\b[^.]*\b(?:is|equals|=))"
)
_ENDS_IN = re.compile(rf"(?P<n>{_INTEGER})\s*{_DEGREES}?[^\w\n]*$")


def extract_integer(text: str) -> str:
    """The integer that the text (without reasoning) settles on, without leading zeros; "" where it cannot be read."""
    read = plain(text).strip()
    return next((found for rule in INTEGER_CHAIN if (found := rule(read)) is not None), "")


def boxed_integer(content: str) -> str:
    """The integer that a box's content is, units and a left side of an equation aside; "" if it is anything else."""
    match = _BOXED.fullmatch(plain(content).strip("{} "))
    return _canonical(match["n"]) if match else ""


def integers(text: str) -> list[str]:
    """All integers in a text, in order, without leading zeros and thousands separators."""
    return [_canonical(digits) for digits in re.findall(_INTEGER, plain(text))]


def _stated(text: str) -> str | None:
    found = _last_stated(tail(text))
    return found if found is not None or len(text) <= TAIL_CHARACTERS else _last_stated(text)


def _last_stated(text: str) -> str | None:
    unbolded = text.replace("**", "")
    heads = (_STATED.match(unbolded, head.end()) for head in ANNOUNCED.finditer(unbolded))
    stated = [(m.start("n"), "" if m["other"] else _canonical(m["n"])) for m in heads if m]
    found = sorted([*stated, *((start, boxed_integer(content)) for start, content in boxes(unbolded))])
    if not found:
        return None
    position, value = found[-1]
    thought = SECOND_THOUGHT.search(unbolded, position)
    instead = _last(_INSTEAD, unbolded[thought.end() :]) if thought else None
    return value if instead is None else instead


def _bold(text: str) -> str | None:
    return _last(_BOLD, text)


def _lone(text: str) -> str | None:
    return _last(_LONE, text.replace("**", "").replace("`", ""))


def _concluded(text: str) -> str | None:
    sentence = _SENTENCE_END.split(text.replace("**", "").strip())[-1].strip()
    if not _CONCLUDES.search(sentence):
        return None
    found = integers(sentence)
    last = _ENDS_IN.search(sentence)
    return _canonical(last["n"]) if last else found[0] if len(found) == 1 else None


INTEGER_CHAIN: tuple[Callable[[str], str | None], ...] = (_stated, _bold, _lone, _concluded)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = [match["n"] for match in pattern.finditer(text)]
    return _canonical(found[-1]) if found else None


def _canonical(digits: str) -> str:
    return str(int(digits.split(".")[0].replace(",", "").replace(" ", "")))
