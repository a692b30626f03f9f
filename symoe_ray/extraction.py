"""Reading answers out of generated text, reasoning already stripped. What cannot be read is unparsed, never guessed.

A choice is looked for by these rules in turn; the first rule that finds something decides, by its last match:

1. an explicit final answer: `\\boxed{B}`, "the answer is (B)", "Answer: B", or a correction ("wait, it is (B)");
   where it names two options ("A or B"), nothing is read;
2. a verdict: "(B) is correct", "I choose B", "so B.";
3. a line that holds the letter alone;
4. an option's label at the start of the first or last line, if no other option begins a line;
5. the last letter in brackets in the last paragraph that is not a label and nowhere there refuted ("not (A)", "(A) is
   wrong").

An integer: 1. the last box or "the answer is 73" (a box that is not an integer hides all before it); 2. the last bold
integer; 3. a line that holds the integer alone, or a last line "So ... 73." Only letters that the question offers
count, and "I" or "A" without brackets only where it cannot be the pronoun or the article.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_LONGEST_BOX = 400
_WORD = r"A-Za-z0-9_À-ɏ"
_NOUN = (
    r"(?<!wrong )(?<!incorrect )(?<!no )\b(?i:answer|(?:correct|right|best|final|likely|appropriate)\s+"
    r"(?:option|choice|one|response))(?i:\s+(?:choice|option|letter))?"
    r"(?i:\s+(?:to|for)\s+(?:the|this|your)\s+(?:question|problem))?(?i:,?\s+(?:therefore|then|here|thus),?)?"
)
_VERB = r"\s*(?:(?i:is|are|was|would\s+be|should\s+be|must\s+be|has\s+to\s+be|to\s+be)\b|[:=>\u2192])\s*"
_FILL = (
    r"(?:(?:(?i:indeed|clearly|therefore|thus|definitely|actually|most|likely|probably|now|then|still|simply|just|the|"
    r"option|choice|letter|answer)\b|[:=\"',>])\s*)*"
)
_CORRECTION = (
    r"\b(?i:actually|wait|correction|sorry|instead|no[,.])[^.\n]{0,60}?"
    r"\b(?i:it's|it\s+is|is|should\s+be|must\s+be)\s+" + _FILL
)
_CHOOSING = (
    r"(?<!not )(?<!n't )(?<!never )\b(?i:choose|chose|select|pick|go\s+with|going\s+with|opt\s+for|conclude|it's|"
    r"it\s+is|that's|must\s+be|should\s+be|i\s+think|i'd\s+say|thus|therefore|hence|so)\b[:,]?\s+" + _FILL
)
_CORRECT = (
    r"\s*(?i:is|seems|looks|appears)\s+(?i:to\s+be\s+)?(?i:indeed\s+|clearly\s+|therefore\s+)?(?i:the\s+)?"
    r"(?i:most\s+\w+\s+|only\s+)?(?i:correct|right|best|answer|appropriate)\b"
)
_BULLET = r"^[ \t>#\u2022\-]*"
_NEGATED = re.compile(
    r"(?i:(?:\bnot|n't|\bthan|\bexcept|\bneither|\bnor|\bexcluded?|\brejected?|\bruled?\s+out)\s+(?:the\s+)?"
    r"(?:option\s+|choice\s+|answer\s+)?|\b(?:wrong|incorrect)\s+(?:option|choice|answer)\s+(?:is|would\s+be)\s+)$"
)
_REFUTED = re.compile(
    r"\s*(?i:is|are|was|seems|looks)\s+(?i:wrong|incorrect|false|not\b|ruled|eliminated)|\s*(?i:isn't|cannot|can't)"
)
_INTEGER = r"(?<![\w.,^/])[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,30})(?:\.0+)?(?![\d_])(?!\.\d)(?!,\d{3})"
_STATED_INTEGER = re.compile(
    _NOUN + _VERB + _FILL + r"(?:[^\n=.]{0,60}=\s*){0,3}(?P<n>" + _INTEGER + r")(?P<other>\s*(?i:or|and)\s+\d+)?"
    r"(?![A-Za-z])(?!\s*[*/^+=!\u00d7\u00f7])(?!\s*-\s*\d)(?!\s*\\(?:frac|sqrt|times|cdot|pi|binom))"
    r"(?!\s+(?i:times|plus|minus|divided)\b)"
)
_BOXED_INTEGER = re.compile(
    rf"(?:[^=]*=)*\s*(?P<n>{_INTEGER})\s*(?:°|\^?\{{?\\circ\}}?|\\?%|[A-Za-z ]+(?:\^\{{?\d\}}?)?)?\s*\.?\s*"
)
_BOLD_INTEGER = re.compile(rf"(?<!\*)\*\*\s*(?P<n>{_INTEGER})\s*(?:°|\^?\{{?\\circ\}}?)?\s*\.?\s*\*\*(?!\*)")
_LONE_INTEGER = re.compile(rf"{_BULLET}(?P<n>{_INTEGER})[ \t.]*$", re.MULTILINE)
_LAST_LINE_INTEGER = re.compile(rf"^(?i:so|thus|therefore|hence)\b.*?(?P<n>{_INTEGER})[^\w\n]*$")
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathsf|mathit|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[()\[\]]|\\[,!;:]|\\(?:left|right|displaystyle)\b|\$")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PUNCTUATION = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": " - ", "\u2212": "-"}
)
_FULL_WIDTH = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff]")


def extract_choice(text: str, letters: str) -> str:
    """The capital letter that the text (without reasoning) settles on, one of `letters`; "" where it cannot be read."""
    if not letters:
        return ""
    plain = _plain(text).replace("*", "").replace("`", "").replace("__", "").strip()
    rules = _choice_rules(letters)
    found = sorted([*_boxed_choices(plain, letters), *_stated_choices(plain, rules)])
    if found:
        return found[-1][1]
    for pattern in (rules.verdict, rules.lone):
        if matches := [_named(match) for match in pattern.finditer(plain)]:
            return matches[-1]
    return _label(plain, rules) or _bracketed(plain, rules)


def extract_integer(text: str) -> str:
    """The integer that the text (without reasoning) settles on, without leading zeros; "" where it cannot be read."""
    plain = _plain(text).replace("{,}", ",")
    unbolded = plain.replace("**", "")
    stated = [(m.start("n"), "" if m["other"] else _canonical(m["n"])) for m in _STATED_INTEGER.finditer(unbolded)]
    boxed = [(start, boxed_integer(content)) for start, content in _boxes(unbolded)]
    if found := sorted([*stated, *boxed]):
        return found[-1][1]
    for pattern, where in ((_BOLD_INTEGER, plain), (_LONE_INTEGER, unbolded)):
        if matches := pattern.findall(where):
            return _canonical(matches[-1])
    last = _LAST_LINE_INTEGER.search(unbolded.strip().rsplit("\n", 1)[-1].strip())
    return _canonical(last["n"]) if last else ""


def boxes(text: str) -> list[str]:
    r"""The contents of all closed boxes (\boxed, \fbox) in order; one of over 400 characters is no answer."""
    return [content for _, content in _boxes(text)]


def boxed_integer(content: str) -> str:
    """The integer that a box's content is, units and a left side of an equation aside; "" if it is anything else."""
    match = _BOXED_INTEGER.fullmatch(_plain(content).replace("{,}", ","))
    return _canonical(match["n"]) if match else ""


def integers(text: str) -> list[str]:
    """All integers in a text, in order, without leading zeros and thousands separators."""
    return [_canonical(digits) for digits in re.findall(_INTEGER, _plain(text))]


def _plain(text: str) -> str:
    """The text with ASCII letters, quotes and dashes for their variants, without LaTeX text wrappers and spacing."""
    text = _FULL_WIDTH.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text).translate(_PUNCTUATION)
    return _SPACING.sub("", _WRAPPER.sub(r"\1", _WRAPPER.sub(r"\1", text)))


def _boxes(text: str) -> Iterator[tuple[int, str]]:
    """Position and content of every closed box, in order."""
    for match in _BOX.finditer(text):
        depth = 1
        for index in range(match.end(), min(len(text), match.end() + _LONGEST_BOX)):
            depth += (text[index] == "{") - (text[index] == "}")
            if depth == 0:
                yield match.start(), text[match.end() : index].strip()
                break


def _canonical(digits: str) -> str:
    return str(int(digits.split(".")[0].replace(",", "")))


@dataclass(frozen=True, slots=True)
class _ChoiceRules:
    """The patterns for one set of letters; what they capture is the letter (in `b` with brackets, in `l` without)."""

    stated: tuple[re.Pattern[str], ...]
    verdict: re.Pattern[str]
    lone: re.Pattern[str]
    label: re.Pattern[str]
    bracketed: re.Pattern[str]


@lru_cache(maxsize=64)
def _choice_rules(letters: str) -> _ChoiceRules:
    either = f"[{letters}{letters.lower()}]"
    follow_a = (
        r"(?=[ \t]*(?:$|\n|[^\sA-Za-z]|(?:because|since|as|which|due|and|or|with|is|based|given|for|so|but|by)\b))"
    )
    follow_i = r"(?=[ \t]*(?:$|\n|[^\sA-Za-z]|(?:because|since|which|is|due|or)\b))"
    after = rf"(?:(?<![AI])|(?<=A){follow_a}|(?<=I){follow_i})(?![{_WORD}'])(?!\s?-\w)(?!\s*[=+^<])"
    bare = rf"(?<![{_WORD}])[{letters}]{after}"
    ended = rf"{bare}(?=\s*(?:[.,;:!)\]]|\n|$|(?:because|since)\b))"
    named = rf"(?:[(\[{{<]\s*(?P<b>{either})\s*[)\]}}>]|(?P<l>{bare}))"
    settled = rf"(?:[(\[{{<]\s*(?P<b>{either})\s*[)\]}}>]|(?P<l>{ended}))"
    again = rf"(?:[(\[]\s*{either}\s*[)\]]|{bare})"
    other = rf"(?P<other>(?:\s*,?\s*\b(?:or|and)\s+|\s*[/&]\s*)(?:option\s+)?{again}(?!\s+(?:is|are|was|has|does)\b))?"
    return _ChoiceRules(
        stated=(re.compile(_NOUN + _VERB + _FILL + named + other), re.compile(_CORRECTION + settled + other)),
        verdict=re.compile(rf"(?:{named}{_CORRECT}|{_CHOOSING}{settled.replace('<b>', '<c>').replace('<l>', '<d>')})"),
        lone=re.compile(rf"{_BULLET}(?i:option\s+)?[(\[]?\s?(?P<l>[{letters}])\s?[)\].:]*[ \t]*$", re.MULTILINE),
        label=re.compile(
            rf"{_BULLET}(?:[(\[]\s?(?P<b>[{letters}])\s?[)\]]|(?P<l>[{letters}])[).:])(?=\s)", re.MULTILINE
        ),
        bracketed=re.compile(rf"(?<![{_WORD}])[(\[]\s?(?P<b>[{letters}])\s?[)\]]"),
    )


def _named(match: re.Match[str]) -> str:
    return next(value for name, value in match.groupdict().items() if value and name != "other").upper()


def _stated_choices(text: str, rules: _ChoiceRules) -> Iterator[tuple[int, str]]:
    """Position and letter of every explicit answer; the letter is "" where it names two different ones."""
    for pattern in rules.stated:
        for match in pattern.finditer(text):
            others = re.findall(r"\b[A-Z]\b", match["other"] or "")
            yield match.end(), "" if set(others) - {_named(match)} else _named(match)


def _boxed_choices(text: str, letters: str) -> Iterator[tuple[int, str]]:
    """The same for boxes; a box that holds something else than an option is passed over."""
    for start, content in _boxes(text):
        if re.fullmatch(rf"\W*[{letters}](?:\W*(?:and|or)?\W*\b[{letters}]\b)+\W*", content):
            yield start, ""
        elif match := re.match(rf"(?i:option\s+)?[(\[]?\s*([{letters}{letters.lower()}])\s*(?:[)\].:,]|$)", content):
            yield start, match[1].upper()


def _label(text: str, rules: _ChoiceRules) -> str:
    """Rule 4. "I." without brackets is a Roman numeral as often as an option, so it does not count."""
    lines = [line for line in text.split("\n") if line.strip()]
    labels = {_named(match) for match in rules.label.finditer(text)}
    ends = [match for line in (lines[:1] + lines[-1:]) if (match := rules.label.match(line))]
    return _named(ends[-1]) if len(labels) == 1 and ends and ends[-1]["l"] != "I" else ""


def _bracketed(text: str, rules: _ChoiceRules) -> str:
    """Rule 5."""
    paragraph = re.split(r"\n\s*\n", text)[-1]
    named: list[str] = []
    refuted: set[str] = set()
    for match in rules.bracketed.finditer(paragraph):
        line = paragraph[paragraph.rfind("\n", 0, match.start()) + 1 : match.start()]
        if _NEGATED.search(line[-40:]) or _REFUTED.match(paragraph, match.end()):
            refuted.add(match["b"])
        elif line.strip(" \t>#\u2022-"):
            named.append(match["b"])
    return next((letter for letter in reversed(named) if letter not in refuted), "")
