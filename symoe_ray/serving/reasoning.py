"""What an expert thinks before it answers, kept apart from the answer, whole or as it is written."""

from __future__ import annotations


def split_reasoning(text: str, end_token: str, finish_reason: str) -> tuple[str, str]:
    """Reasoning and answer of a finished text of an expert whose reasoning ends with `end_token`.

    A text that hit its limit before that was reasoning to its end; one that stopped by itself without it is an answer.
    """
    reasoning, found, answer = text.partition(end_token)
    if found:
        return reasoning, answer.lstrip()
    return (text, "") if finish_reason == "length" else ("", text)


class Reasoning:
    """Splits the text of one sample as it comes: what stands before the first `end_token`, and what follows it."""

    def __init__(self, end_token: str) -> None:
        self._end, self._held = end_token, ""
        self._thinks, self._answers = True, False

    def add(self, text: str) -> tuple[str, str]:
        """The reasoning and the answer that this text adds. What may be the token's beginning is held back."""
        reasoning = ""
        if self._thinks:
            before, found, text = (self._held + text).partition(self._end)
            if not found:
                kept = next((n for n in range(len(self._end) - 1, 0, -1) if before.endswith(self._end[:n])), 0)
                self._held = before[len(before) - kept :]
                return before[: len(before) - kept], ""
            self._thinks, reasoning = False, before
        answer = text if self._answers else text.lstrip()
        self._answers = self._answers or bool(answer)
        return reasoning, answer
