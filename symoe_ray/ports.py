"""What the stages need from the outside world, as protocols: a pool of engines and an embedding model.

Stages take these as arguments, so that a test passes a few lines and only the command line knows Ray actors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from symoe_ray.ledger import Chunk

Embedder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> unit vectors, one row each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatus:
    """What a slot does now: `state` is idle, load, generate or lost."""

    slot: str
    state: str
    expert: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is. `samples` and `tokens` include what is generated but not yet committed, where known."""

    stage: str
    rows: int
    total_rows: int
    failed: int
    tokens: int
    tokens_per_s: float
    seconds: float
    seconds_left: float | None
    slots: tuple[SlotStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """What a stage's generation came to."""

    rows: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Pool(Protocol):
    """A pool of engines that generates what a stage lacks and commits it to the run's storage."""

    def generate(
        self,
        stage: str,
        chunks: Sequence[Chunk],
        on_progress: Callable[[Progress], None] | None = None,
        then: Sequence[str] = (),
    ) -> StageSummary:
        """Work through the chunks; returns when every row of them is committed, as a completion or as a failure.

        Each is committed to the stage that it names; `stage` is what they are called together. `then` names the experts
        that the next stage needs: one of them is left on its slot where that costs nothing.
        """
