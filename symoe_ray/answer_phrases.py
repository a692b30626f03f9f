"""How models announce an answer: the words that both extractor chains look for, and text made plain for them.

Phrases are regular expressions without a flag, so that a letter may follow in its own case. Every repetition in them is
bounded or eats disjoint characters: a degenerate text of 30,000 characters takes a fraction of a second.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

TAIL_CHARACTERS = 800
_LONGEST_BOX = 400

WORD = r"A-Za-z0-9_À-ɏ"
_ADJECTIVE = r"correct|right|best|final|likely|appropriate|remaining|suitable|accurate"
# Languages that experts fall into: German, Spanish, French, Portuguese, Italian, Russian, Chinese, Japanese, Korean.
_FOREIGN = (
    r"antwort|lösung|respuesta|réponse|resposta|risposta|solución|ответ|答案|答え|正解|정답"
    r"|(?:richtige|correcta|correcte|correta|corretta)\s+(?:option|opción|opção|opzione)"
)
_NOUN = (
    rf"(?<!wrong )(?<!incorrect )(?<!no )(?<!if the )(?<!If the )(?<!whether the )(?<![{WORD}])"
    rf"(?i:(?:final_?|correct_?)?answers?|(?:{_ADJECTIVE})\s+(?:option|choice|one|response|letter|guess|pick)|(?:option|choice|one)\s+"
    rf"(?:that|which)\s[^.:=\n]{{1,60}}?|my\s+(?:final\s+)?(?:choice|pick|selection|guess)|{_FOREIGN})"
    r"(?i:\s+(?:choice|option|letter|correcta|correcte|correta|corretta|finale?))?"
    r"(?i:\s+(?:to|for)\s+(?:the|this|your)\s+(?:question|problem))?(?i:,?\s+(?:therefore|then|here|thus|finally),?)?"
)
_VERB = (
    r"\s*[\"']?\s*(?:(?i:is|are|was|would\s+be|should\s+be|must\s+be|has\s+to\s+be|to\s+be|ist|lautet|es|est|é|è)\b"
    r"|[:=>|\u2192]|-(?!\w)|[是为為は]|[은는])\s*"
)
_TITLE = (
    r"(?<![A-Za-z])(?i:solution|conclusion|result|choice|final|verdict|guess|[\"']\w{0,20}(?:answer|option|choice|letter))\s*[\"']?\s*[:=]\s*"
    r"|(?m:^[#*\s]*(?i:(?:final|correct)\s+)?(?i:answer)[ \t]*\n)\s*"
    r"|[选選](?![项項择擇])\s*:?\s*"
)
ANNOUNCED = re.compile(rf"(?:{_NOUN}{_VERB}|{_TITLE})")
"""Everything up to the answer in "The answer to this question is therefore", "Answer:", "{"answer":", "答案是"."""

FILL = (
    r"(?:(?:(?i:indeed|clearly|therefore|thus|definitely|actually|in\s+fact|most|likely|probably|now|then|still|simply|"
    r"just|either|approximately|about|exactly|precisely|equal\s+to|the|option|choice|letter|statement|answer|is|"
    r"la|der|die|das|a\s+opção|a\s+letra|letra|lettre|opción|opzione|l'option)\b"
    r"|[:=\"',>|]|-(?=\s))\s*){0,12}"
)
"""What may stand between the announcement and the answer."""

SECOND_THOUGHT = re.compile(
    r"(?i:\b(?:wait|hmm+|actually|correction|sorry|oops|hold\s+on|on\s+(?:second|further)\s+thought|reconsider\w*|mistake\w*|"
    r"was\s+wrong|that's\s+wrong|that\s+is\s+wrong|chang(?:e|ed|ing)\s+my|instead|no[,.:]|re-?check\w*|double-check\w*)(?![A-Za-z]))"
)
"""Where a text begins to take back what it has announced."""

_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d\uff62\uff63", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u2014\u2015", " - "),
        **dict.fromkeys("\u21d2\u27a1\u2794\u27f6", "\u2192"),
        **dict.fromkeys("\u3010\u3014\u300a", "("),
        **dict.fromkeys("\u3011\u3015\u300b", ")"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\ufeff\ufe0f"),
        "\u3002": ".",
        "\u3001": ",",
    }
)
_VARIANTS = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff\u24b6-\u24e9\u249c-\u24b5\U0001f110-\U0001f189]")
_SYMBOLS = re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff]")
_ENVELOPES = {chr(first + n): f"({chr(65 + n)})" for first in (0x1F130, 0x1F150, 0x1F170) for n in range(26)}
_WRAPPER = re.compile(
    r"\\(?:text[a-z]{0,8}|math[a-z]{1,8}|operatorname|boldsymbol|bm|underline|emph|bf|rm)\s*\{([^{}]*)\}"
)
_SPACING = re.compile(r"\\[()\[\]]|\\[,!;: ]|\\(?:left|right|displaystyle|quad|qquad)\b|\$|(?<=\d)\{,\}(?=\d)")
_TAGS = re.compile(r"<\|[^|<>\n]{0,40}\|>|</\w{1,20}>")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def plain(text: str) -> str:
    """The text with ASCII letters, quotes, dashes and brackets for their variants; without LaTeX text wrappers and
    spacing, pictographs, end-of-turn tokens and closing tags. Markdown's emphasis stays."""
    text = text.translate(_PUNCTUATION)
    if not text.isascii():
        text = _VARIANTS.sub(_ascii_letter, text)
        text = _SYMBOLS.sub("", text)
    if "\\" in text or "$" in text:
        text = _SPACING.sub("", _WRAPPER.sub(r"\1", _WRAPPER.sub(r"\1", text.replace("{,}", ","))))
    return _TAGS.sub(" ", text) if "<" in text else text


def _ascii_letter(match: re.Match[str]) -> str:
    return _ENVELOPES.get(match[0]) or unicodedata.normalize("NFKC", match[0])


def boxes(text: str) -> Iterator[tuple[int, str]]:
    r"""Position and content of every closed box (\boxed, \fbox), in order; one of over 400 characters is no answer."""
    for match in _BOX.finditer(text):
        depth = 1
        for index in range(match.end(), min(len(text), match.end() + _LONGEST_BOX)):
            depth += (text[index] == "{") - (text[index] == "}")
            if depth == 0:
                yield match.start(), text[match.end() : index].strip()
                break


def tail(text: str) -> str:
    """The last whole lines of a long text, some 800 characters: where most texts announce their answer."""
    if len(text) <= TAIL_CHARACTERS:
        return text
    return text[text.find("\n", len(text) - TAIL_CHARACTERS) + 1 :]
