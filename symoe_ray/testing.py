"""A model that costs nothing: deterministic answers by the same rules that a real engine obeys.

It ships with the package, for tests and for trying a pipeline out (`engine.kind=fake`); its answers are guesses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from symoe_ray.fingerprints import uniform

TOPICS = ("algebra", "geometry", "biology", "history", "chemistry", "logic", "law", "medicine")
CRASH = "<<fake-engine-crash>>"
_OPTION = re.compile(r"^\(([A-Z])\)", re.MULTILINE)


def fake_text(expert: str, prompt: str, seed: int) -> str:
    """What a fake expert writes, determined by its name, the prompt and the seed.

    It names topics where the prompt asks for `Keywords:`, one of the prompt's options where it lists some, and an
    integer otherwise.
    """
    choice = uniform(expert, prompt, seed)
    if "Keywords:" in prompt:
        first = int(uniform(prompt) * len(TOPICS))
        second = (first + 1 + int(choice * 2)) % len(TOPICS)
        return f"Keywords: {TOPICS[first]}, {TOPICS[second]}"
    letters = sorted(set(_OPTION.findall(prompt)))
    if letters:
        return f"I compare the options. The answer is ({letters[int(choice * len(letters))]})."
    return f"I work it out step by step. The answer is {int(choice * 100)}."


def fake_tokens(text: str) -> int:
    """How many tokens a text has for the fake engine: its words."""
    return len(text.split())


def fake_embeddings(texts: Sequence[str]) -> list[list[float]]:
    """A vector of 16 numbers per text, the same for the same text; unrelated texts are nearly orthogonal."""
    return [[uniform(text, i) - 0.5 for i in range(16)] for text in texts]
