"""How the released code reads an answer, faults included, so that its published numbers can be compared.

It reads the whole text, reasoning too. Choices: the last letter in front of a closing bracket, else the last such
capital anywhere, inside words as well; its character class holds a vertical bar by mistake, so "|x|)" reads as "|". It
looks for A to J on MMLU-Pro and for A to D elsewhere, whatever options a question has. Integers: the last box as it
stands, or the whole text where there is none or its braces never close.
"""

from __future__ import annotations

import re

from symoe_ray.core import Question

_WIDE_TASK = "MMLU_Pro"


def reference_choice(text: str, letters: str) -> str:
    """The letter (or the bar) that the released code would read; "" where it finds none."""
    symbols = f"[{'|'.join(letters)}]"
    found = re.findall(rf"({symbols})\)", text) or re.findall(symbols, text)
    return found[-1] if found else ""


def reference_letters(question: Question) -> str:
    """The letters that the released code looks for; a question with more than four options is treated as MMLU-Pro's."""
    return "ABCDEFGHIJ" if question.task == _WIDE_TASK or len(question.choices) > 4 else "ABCD"


def reference_expression(text: str) -> str:
    r"""What the released code compares on AIME: the content of the last \boxed{...}, else the last \fbox{...} whole,
    else the whole text."""
    start = text.rfind(r"\boxed")
    if start < 0:
        start = text.rfind(r"\fbox")
    if start < 0:
        return text
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if text[index] == "}" and depth == 0:
            whole = text[start : index + 1]
            return whole[len(r"\boxed{") : -1] if whole.startswith(r"\boxed{") else whole
    return text
