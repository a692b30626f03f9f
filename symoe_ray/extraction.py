"""The letter that a generated text, reasoning already stripped, settles on. What cannot be read is unparsed, never
guessed.

`CHOICE_CHAIN` holds the rules in their order; the first that finds something decides, by its last match:

1. `stated`: an explicit final answer: `\\boxed{B}`, "the answer is (B)", `"answer": "B"`, or an option's own text there
   ("the answer is Sucrose"), read if it is exactly one option's. Where a letter and a text contradict each other the
   letter counts. One that names two options ("A or B") voids what was before it. A verdict or a lone letter that
   follows a second thought ("wait, it is (C)") replaces what was stated before;
2. `verdict`: "(B) is correct", "I choose B", "that leaves (B)", "so B.", "C) correct" where no other option is;
3. `lone`: a line that holds a letter alone, if it is the last line or all such lines agree;
4. `bold`: the only letter in bold in the last paragraph;
5. `label`: an option's label at the start of the first or last line, if no other option begins a line;
6. `bracketed`: the last sentence of the last paragraph with a letter in brackets that is no label and nowhere there
   refuted ("not (A)", "(A) is wrong"), if there is one such letter only;
7. `text`: the last line, or the only bold passage of the last paragraph that is an option's text.

Only letters that the question offers count, "I" and "A" without brackets only where they cannot be the pronoun or the
article, small letters only in brackets or alone after a colon.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from symoe_ray.answer_phrases import ANNOUNCED, FILL, SECOND_THOUGHT, WORD, boxes, plain, tail
from symoe_ray.letter_patterns import NEGATED, REFUTED, LetterPatterns, letter_of, letter_patterns

_BOLD = re.compile(r"\*\*\s*([^*\n]{1,200}?)\s*\*\*")
_FILL = re.compile(FILL)
_ONLY_BULLET = re.compile(r"[ \t>#\u2022-]*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")


@dataclass(frozen=True, slots=True)
class _Text:
    """A text to read: `marked` has Markdown's emphasis, `plain` has not; the option texts are plain and casefolded."""

    marked: str
    plain: str
    letters: str
    options: tuple[str, ...]
    rules: LetterPatterns


def extract_choice(text: str, letters: str, options: Sequence[str] = ()) -> str:
    """The capital letter that the text (without reasoning) settles on, one of `letters`; "" where it cannot be read.

    `options` are the option texts in letter order; without them only letters are read.
    """
    if not letters:
        return ""
    read = _text(plain(text).strip(), letters, tuple(map(_option_text, options)))
    letter = next(filter(None, (rule(read) for rule in CHOICE_CHAIN)), "")
    return "" if letter == _VOID else letter


def _text(marked: str, letters: str, options: tuple[str, ...]) -> _Text:
    bare = marked.replace("*", "").replace("`", "").replace("__", "").strip()
    return _Text(marked=marked, plain=bare, letters=letters, options=options, rules=letter_patterns(letters))


def _stated(text: _Text) -> str:
    end = tail(text.plain)
    return (_last_stated(_text(end, text.letters, text.options)) if len(end) < len(text.plain) else "") or _last_stated(
        text
    )


def _last_stated(text: _Text) -> str:
    found = sorted([*_announced(text), *_boxed(text)])
    if not found:
        return ""
    position, letter = found[-1]
    thought = SECOND_THOUGHT.search(text.plain, position)
    if letter and not thought:
        return letter
    rest = _text(text.plain[thought.end() if thought else position :], text.letters, text.options)
    return _verdict(rest) or (_lone(rest) if thought else "") or letter or _VOID


_VOID = "-"
"""What a rule finds where the text names two options: nothing is read, and no later rule is asked."""


def _announced(text: _Text) -> Iterator[tuple[int, str]]:
    """End and letter of every announced answer; the letter is "" where it names two different ones."""
    for head in ANNOUNCED.finditer(text.plain):
        if match := text.rules.announced.match(text.plain, head.end()):
            others = set(re.findall(rf"(?<![{WORD}])[A-Za-z](?![{WORD}])", match["other"] or ""))
            letter = letter_of(match)
            yield match.end(), "" if {o.upper() for o in others if o.upper() in text.letters} - {letter} else letter
        elif text.options and (found := _option_at(text, _end_of_fill(text.plain, head.end()))):
            yield found


def _end_of_fill(text: str, start: int) -> int:
    match = _FILL.match(text, start)
    return match.end() if match else start


def _option_at(text: _Text, start: int) -> tuple[int, str] | None:
    """The end and letter of the option whose text stands there; the letter is "" where a second one is joined to it."""
    length, letter = _option_prefix(text.plain[start : start + 300], text)
    if not letter:
        return None
    joined = re.compile(r"\s*(?:,?\s*\b(?:or|and)\s+|/\s*)").match(text.plain, start + length)
    second = _option_prefix(text.plain[joined.end() : joined.end() + 300], text)[1] if joined else ""
    return start + length, "" if second and second != letter else letter


def _option_prefix(text: str, about: _Text) -> tuple[int, str]:
    """The length and letter of the longest option text that `text` begins with; (0, "") if none or of two options."""
    folded = _folded(text)
    fitting = [
        (len(option), letter)
        for letter, option in zip(about.letters, about.options, strict=False)
        if len(option) > 1 and folded.startswith(option) and not re.match(rf"[{WORD}]|[.,]\d", text[len(option) :])
    ]
    longest = max(fitting, default=(0, ""))
    return longest if [length for length, _ in fitting].count(longest[0]) == 1 else (0, "")


def _boxed(text: _Text) -> Iterator[tuple[int, str]]:
    """Position and letter of boxes, "" for a box with two; one of anything else is passed over."""
    for start, content in boxes(text.plain):
        if text.rules.box_of_two.fullmatch(content):
            yield start, ""
        elif match := text.rules.box.match(content):
            yield start, letter_of(match)
        elif letter := _whole_option(content, text):
            yield start, letter


def _verdict(text: _Text) -> str:
    matches = [
        m
        for m in text.rules.verdict.finditer(text.plain)
        if not NEGATED.search(text.plain[max(0, m.end() - 60) : m.end() - 1])
    ]
    ends = text.rules.both.search(text.plain)
    if ends and (not matches or ends.end() > matches[-1].end()):
        return _VOID
    if matches and _disputed(matches, text):
        return _VOID
    judged = {letter_of(match) for match in text.rules.judged.finditer(text.plain)}
    return letter_of(matches[-1]) if matches else next(iter(judged)) if len(judged) == 1 else ""


def _disputed(verdicts: Sequence[re.Match[str]], text: _Text) -> bool:
    """Whether the sentence of the last verdict holds one for another letter ("in one case (A), in the other (B)")."""
    last = verdicts[-1]
    begin = max([m.end() for m in _SENTENCE_END.finditer(text.plain, 0, last.start())], default=0)
    return any(
        letter_of(v) != letter_of(last) and not SECOND_THOUGHT.search(text.plain, v.end(), last.end())
        for v in verdicts
        if v.start() >= begin
    )


def _lone(text: _Text) -> str:
    matches = list(text.rules.lone.finditer(text.plain))
    letters = {letter_of(match) for match in matches}
    last = bool(matches) and not text.plain[matches[-1].end() :].strip()
    return letter_of(matches[-1]) if last or len(letters) == 1 else ""


def _bold(text: _Text) -> str:
    letters = {letter_of(match) for match in text.rules.bold.finditer(_last_paragraph(text.marked))}
    return letters.pop() if len(letters) == 1 else ""


def _label(text: _Text) -> str:
    """A line's label. "I." without brackets is a Roman numeral as often as an option, so it does not count."""
    lines = [line for line in text.plain.split("\n") if line.strip()]
    labels = {letter_of(match) for match in text.rules.label.finditer(text.plain)}
    ends = [match for line in (lines[:1] + lines[-1:]) if (match := text.rules.label.match(line))]
    ends = [
        end for end in ends if {letter_of(m) for m in text.rules.bracketed.finditer(end.string)} <= {letter_of(end)}
    ]
    return letter_of(ends[-1]) if len(labels) == 1 and ends and ends[-1]["l"] != "I" else ""


def _bracketed(text: _Text) -> str:
    paragraph = _last_paragraph(text.plain)
    sentences: list[set[str]] = []
    refuted: set[str] = set()
    for sentence in _SENTENCE_END.split(paragraph):
        named = set()
        for match in text.rules.bracketed.finditer(sentence):
            start = match.start()
            if NEGATED.search(sentence, max(0, start - 60), start) or REFUTED.match(sentence, match.end()):
                refuted.add(letter_of(match))
            elif not _ONLY_BULLET.fullmatch(sentence, 0, start):
                named.add(letter_of(match))
        sentences.append(named)
    last = next((left for named in reversed(sentences) if (left := named - refuted)), set())
    return last.pop() if len(last) == 1 else ""


def _by_text(text: _Text) -> str:
    last_line = text.plain.rsplit("\n", 1)[-1]
    bold = {_whole_option(passage, text) for passage in _BOLD.findall(_last_paragraph(text.marked))} - {""}
    return _whole_option(last_line, text) or (bold.pop() if len(bold) == 1 else "")


def _whole_option(text: str, about: _Text) -> str:
    """The letter of the one option whose text this is, "" otherwise."""
    folded = _option_text(text)
    found = [x for x, option in zip(about.letters, about.options, strict=False) if len(option) > 1 and option == folded]
    return found[0] if len(found) == 1 else ""


@lru_cache(maxsize=4096)
def _option_text(text: str) -> str:
    return _folded(" ".join(plain(text).replace("*", "").split()).strip(" .'\""))


def _folded(text: str) -> str:
    """For comparison, of the same length: "Iron-deficiency" is "iron deficiency"."""
    return re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.lower())


def _last_paragraph(text: str) -> str:
    return re.split(r"\n\s*\n", text.strip())[-1]


CHOICE_CHAIN: tuple[Callable[[_Text], str], ...] = (_stated, _verdict, _lone, _bold, _label, _bracketed, _by_text)
