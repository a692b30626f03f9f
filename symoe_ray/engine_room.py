"""How many sequences an engine works on at once: as many as it may, or as its KV cache holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from symoe_ray.length_estimates import SIGMA

PROMPT_TOKENS = 300.0  # of a prompt, where none was seen


@dataclass(frozen=True, slots=True)
class Room:
    """Of an engine: the most sequences in a step (`max_num_seqs`), and the tokens in its KV cache (0: not known)."""

    max_num_seqs: int
    kv_tokens: int = 0

    def sequences(self, prompt_tokens: float, answer_tokens: float) -> int:
        """How many sequences of these mean lengths run at once; one at least."""
        if not self.kv_tokens:
            return self.max_num_seqs
        return max(1, min(self.max_num_seqs, int(self.kv_tokens / running_tokens(prompt_tokens, answer_tokens))))


def running_tokens(prompt_tokens: float, answer_tokens: float, sigma: float = SIGMA) -> float:
    """KV cache of a sequence that is met in a running batch, in tokens, from the mean lengths of prompts and answers.

    It has written half its answer, and long answers are met more often: E[L^2] / (2 E[L]), which is half the mean times
    exp(sigma^2) where lengths are lognormal (inspection paradox).
    """
    return max(1.0, prompt_tokens + answer_tokens * math.exp(sigma**2) / 2)
