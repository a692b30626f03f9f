"""Where a text names an option by its letter: one set of regular expressions for each set of letters offered.

A letter without brackets counts only in its capital form, and "A" and "I" only where they cannot be the article or the
pronoun: before punctuation, the end, or a word such as "because".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from symoe_ray.answer_phrases import FILL, WORD

CHOOSING = (
    r"(?<!not )(?<!n't )(?<!never )(?<!if )\b(?i:choose|choosing|chose|select(?:ed|ing)?|pick(?:ed|ing)?|"
    r"go(?:ing)?\s+with|opt\s+for|settle\s+on|conclude|it's|it\s+is|that's|that\s+is|this\s+is|which\s+is|must\s+be|"
    r"should\s+be|would\s+be|i\s+think|(?:i'll|i\s+will|would)\s+answer|i'd\s+say|would\s+say|"
    r"leav(?:es|ing)(?:\s+us\s+with)?|left\s+with|corresponds?\s+to|match(?:es)?|points?\s+to|make\s+(?:that|it)|only|"
    r"my\s+(?:final\s+)?answer\s+to|thus|therefore|hence|so)\b[:,]?\s+"
) + FILL
RIGHT = (
    r"\s*(?:(?i:is|seems|looks|appears)\s+(?i:to\s+be\s+)?(?i:indeed\s+|clearly\s+|therefore\s+)?(?i:the\s+)?"
    r"(?i:most\s+\w+\s+|only\s+)?(?i:correct|right|best|better|answer|appropriate)\b"
    r"|(?i:it\s+is|fits\s+best|best\s+(?:fits|describes|explains|matches))\b)"
)
WRONG = (
    r"\s*(?:(?i:is|are|was|seems|looks|would\s+be)\s+(?i:(?:both|all|also|clearly|therefore)\s+)?"
    r"(?i:wrong|incorrect|false|not\b|ruled|eliminated|out\b|excluded)|(?i:isn't|cannot|can't|does\s+not|doesn't))"
)
REFUTED = re.compile(rf"\s*\?|(?:(?:\s*,\s*[(\[][A-Z][)\]]){{0,9}}(?:\s*,)?\s+(?:and|or)\s+[(\[][A-Z][)\]])?{WRONG}")
"""What follows a letter that is not meant: "(A)?", "(A) is wrong", "(A) and (B) are both false"."""

NEGATED = re.compile(
    r"(?i:(?:\bnot|\b(?:might|may|could)\s+(?:also\s+)?be|n't|\bthan|\bexcept|\bneither|\bnor|\bexcluded?|\brejected?|"
    r"\bruled?\s+out|\beliminated?)\s+(?:the\s+)?(?:option\s+|choice\s+|answer\s+)?"
    r"|\b(?:wrong|incorrect)\s+(?:option|choice|answer)\s+(?:is|would\s+be)\s+)$"
)
"""What precedes one: "not (A)", "rather than (A)", "it could be (A)"."""

_BULLET = r"^[ \t>#\u2022\-|]*"
_AFTER_A = r"because|since|as|which|due|and|or|with|is|based|given|for|so|but|by|if|it"
_AFTER_I = r"because|since|which|is|due|or|it"


@dataclass(frozen=True, slots=True)
class LetterPatterns:
    """The patterns for one set of letters; every named group that is not `other` captures the letter."""

    announced: re.Pattern[str]
    verdict: re.Pattern[str]
    both: re.Pattern[str]
    judged: re.Pattern[str]
    lone: re.Pattern[str]
    bold: re.Pattern[str]
    label: re.Pattern[str]
    bracketed: re.Pattern[str]
    box: re.Pattern[str]
    box_of_two: re.Pattern[str]


@lru_cache(maxsize=64)
def letter_patterns(letters: str) -> LetterPatterns:
    """The patterns for these capital letters."""
    big, small = f"[{letters}]", f"[{letters.lower()}]"
    bare = rf"(?<![{WORD}]){big}{_after_letter()}"
    ended = rf"(?:(?<=ption )|(?<=hoice )|(?={big}\s*(?:[.,;:!)\]\"']|\n|$|(?:because|since|as|for)\b))){bare}"
    either = f"[{letters}{letters.lower()}]"
    again = rf"(?:[(\[{{<]\s*{either}\s*[)\]}}>]|{bare})"

    def brackets(group: str) -> str:
        return rf"[(\[{{<]\s*(?P<{group}>{either})\s*[)\]}}>]"

    other = (
        rf"(?P<other>(?:(?:(?:\s*,)?\s+(?:or|and)\s+|\s*[/&]\s*)(?:option\s+)?{again}"
        rf"(?!\s+(?:is|are|was|has|does|being)\b)|\s*,\s*{again}(?=\s*(?:[.;,\n]|$|or\b|and\b))){{0,9}})"
    )
    small_ended = rf"(?<=[:=]\s){small}(?=[.)]?\s*$)|(?![ai]){small}(?=[.)]?\s*$)|{small}(?=\))"
    return LetterPatterns(
        announced=re.compile(rf"{FILL}(?:{brackets('b')}|(?P<l>{bare})|(?P<s>{small_ended})){other}", re.M),
        verdict=re.compile(
            rf"{brackets('x')}{RIGHT}|(?P<y>{bare}|(?<=ption ){small}(?=\s)){RIGHT}"
            rf"|{CHOOSING}(?:{brackets('b')}|(?P<d>{ended}))(?!{WRONG})(?!\s*,?\s*(?:or|and|/)\s+{again})"
            rf"|\b(?i:only)\s+(?i:option\s+|choice\s+)?(?:{brackets('o')}|(?P<p>{bare}))"
            r"\s+(?i:satisf|match|fit|meet|remain|work|hold|agree|qualif)"
        ),
        both=re.compile(
            rf"{again}(?:\s*,)?\s+and\s+(?:option\s+)?{again}\s+(?i:are|seem)\s+(?i:both\s+|all\s+|equally\s+)?"
            r"(?i:correct|right|true|good|possible)"
        ),
        judged=re.compile(rf"{_BULLET}(?i:option\s+)?\(?(?P<l>{big})[).:]+\s*(?i:is\s+)?(?i:correct|right)\b", re.M),
        lone=re.compile(
            rf"{_BULLET}(?i:option\s+)?(?:[(\[]?\s?(?P<l>{big})\s?[)\].:|]*|[(\[]?(?P<s>{small})[)\]])[ \t]*$", re.M
        ),
        bold=re.compile(rf"\*\*\s*(?i:option\s+)?\(?(?P<l>{big})\)?[.:]?\s*\*\*"),
        label=re.compile(
            rf"{_BULLET}(?:[(\[]\s?(?P<b>{big})\s?[)\]]|(?P<l>{big})(?:[).:]|\s-(?=\s\w\w)))(?=\s)(?!{WRONG})", re.M
        ),
        bracketed=re.compile(rf"(?<![{WORD}])(?:[(\[]\s?(?P<b>{big})\s?[)\]]|(?i:option|choice)\s+(?P<l>{bare}))"),
        box=re.compile(
            r"(?i:(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*:?|:)\s*)?(?i:option\s+|choice\s+)?[(\[{]?\s*"
            rf"(?P<l>{either})\s*(?:[)\]}}.:,]|$)"
        ),
        box_of_two=re.compile(rf"\W*{big}(?:\W*(?:and|or)?\W*\b{big}\b)+\W*"),
    )


def letter_of(match: re.Match[str]) -> str:
    """The letter that a pattern has captured, as a capital."""
    return next(value for name, value in match.groupdict().items() if value and name != "other").upper()


def _after_letter() -> str:
    """What a letter without brackets must not be followed by, nor "A" and "I" by an ordinary word."""
    ends = r"(?=[ \t]*(?:$|\n|[^\sA-Za-z]|(?:{words})\b))"
    pronouns = rf"(?:(?<![AI])|(?<=A){ends.format(words=_AFTER_A)}|(?<=I){ends.format(words=_AFTER_I)})"
    return rf"{pronouns}(?![{WORD}]|'\w)(?!\s?-\w)(?!\s*[=+^<])"
