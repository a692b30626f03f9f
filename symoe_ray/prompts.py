"""Every prompt of the method, in one place. A change of any wording must change `PROMPTS_VERSION`.

All prompts are a single user message: several experts have chat templates that refuse a system role.
"""

from __future__ import annotations

from collections.abc import Sequence

from symoe_ray.core import Message, Question

PROMPTS_VERSION = "1"

_CUT = "\n[...]\n"


def render_question(question: Question) -> str:
    """The question's text, followed by its options, if any, as "(A) ..." lines in letter order."""
    options = (
        f"({letter}) {option.strip()}" for letter, option in zip(question.letters, question.choices, strict=False)
    )
    return "\n".join([question.text.strip(), *options])


def annotate_messages(question: Question) -> tuple[Message, ...]:
    """Asks for the 2 to 5 skills that a question needs, as one `Keywords:` line (method, step 1)."""
    return _user(
        f"Question: {render_question(question)}\n\n"
        "Do not answer the question. Which core knowledge, subjects or skills does it take to answer it? "
        "Name 2 to 5 short keywords, such as algebra, virology, contract law. "
        "Reply with one line and nothing else, in this form:\n"
        "Keywords: first keyword, second keyword"
    )


def answer_messages(question: Question) -> tuple[Message, ...]:
    """Asks for a chain of thought and the answer line of the question's kind (method, steps 2 and 5)."""
    return _user(f"Question: {render_question(question)}\n\n{_answer_format(question)}")


def aggregate_messages(question: Question, responses: Sequence[str]) -> tuple[Message, ...]:
    """Asks for one final answer out of several experts' responses, given in seat order without reasoning blocks.

    The same prompt serves the aggregation (method, step 6) and the benchmark of the aggregators (step 3).
    """
    shown = "\n\n".join(f"### Response {number}\n{text.strip()}" for number, text in enumerate(responses, 1))
    return _user(
        "Several experts have answered the question below, independently of each other. Any of them may be wrong, and "
        "so may most of them. Check their reasoning, keep what is sound, and give your own answer.\n\n"
        f"{shown}\n\n### Question\n{render_question(question)}\n\n{_answer_format(question)}"
    )


def fit_responses(responses: Sequence[str], max_characters: int) -> tuple[list[str], int]:
    """Cuts the longest responses in the middle until all together have at most `max_characters` characters.

    Returns the responses in their order, and how many were cut. The end is kept as well as the beginning, since the
    answer stands there. `max_characters` of 0 or less sets no limit.
    """
    if max_characters <= 0:
        return list(responses), 0
    limit = _longest_that_fits([len(text) for text in responses], max_characters)
    return [_cut_middle(text, limit) for text in responses], sum(len(text) > limit for text in responses)


def _answer_format(question: Question) -> str:
    if question.kind == "integer":
        return (
            "Reason step by step. Then give the final answer, an integer, in \\boxed{} and end with this line, "
            "where N is that integer:\nThe answer is N."
        )
    return (
        f"Reason step by step. Then end with this line, where X is the letter of one option "
        f"({question.letters[:1]} to {question.letters[-1:]}):\nThe answer is (X)."
    )


def _user(content: str) -> tuple[Message, ...]:
    return (Message(role="user", content=content),)


def _longest_that_fits(lengths: Sequence[int], total: int) -> int:
    """The largest length L such that the sum of min(length, L) is at most `total`."""
    left = total
    for position, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - position)
        if length > share:
            return share
        left -= length
    return max(lengths, default=0)


def _cut_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = limit - len(_CUT)
    if kept < 2:
        return text[len(text) - limit :]
    return text[: kept // 2] + _CUT + text[len(text) - (kept - kept // 2) :]
