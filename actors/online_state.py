"""What a pool of live requests knows of them: who waits for which engine, and what is said to those outside."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from symoe_ray.scheduling import GroupView
from symoe_ray.serving.engine_metrics import Family

USUAL_TOKENS = 256  # of an answer, before there was one


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A request's place in the queue of its expert's engine. It may write `tokens` at most, over `rows` samples.

    The asker chooses `id`, so that it can give the place back whether or not it has heard of it.
    """

    id: str
    expert: str
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The slot that has the expert's engine, with room for the request until it is released."""

    slot: str
    actor: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request has no place, as in `RefusedError`."""

    kind: str
    message: str
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """The queue of one engine: rows that wait and that run, the age of the oldest that waits, the experts it serves."""

    key: str
    experts: tuple[str, ...]
    waiting: int
    running: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineStatus:
    """A pool of live requests at a moment. `swaps` counts loads by tier, `crashes` engine and slot deaths.

    `engine_samples` is what engines say that they work on: the sum of what runs, or something was not given up.
    `engines` are vLLM's own metrics.
    """

    queues: tuple[QueueStatus, ...]
    swaps: dict[str, int]
    crashes: int
    engine_samples: int
    engines: tuple[Family, ...] = ()


@dataclass(slots=True)
class Waiting:
    """A ticket that waits for its grant."""

    ticket: Ticket
    tokens: int
    answer: asyncio.Future[Grant | Refusal]
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Queue:
    """The requests of one engine key, oldest first, and the rows that run."""

    key: str
    experts: tuple[str, ...]
    waiting: deque[Waiting] = field(default_factory=deque)
    running_rows: int = 0
    load_failures: dict[str, int] = field(default_factory=dict)
    load_error: str = ""
    failed_at: float = 0.0
    mean_tokens: float = 0.0
    mean_prompt: float = 0.0

    @property
    def rows(self) -> int:
        """Samples that wait."""
        return sum(w.ticket.rows for w in self.waiting)

    def oldest_s(self, now: float) -> float:
        """How long the first has waited."""
        return now - self.waiting[0].since if self.waiting else 0.0

    def expect(self, ticket: Ticket) -> int:
        """How many tokens a request will write: what others wrote on average, at most what it may."""
        return min(ticket.tokens, round((self.mean_tokens or USUAL_TOKENS) * ticket.rows))

    def learn(self, tokens: int, rows: int, prompt_tokens: int = 0) -> None:
        """Note what a request wrote, and read: moving averages."""
        self.mean_tokens = _moved(self.mean_tokens, tokens / max(1, rows))
        self.mean_prompt = _moved(self.mean_prompt, prompt_tokens)

    def take(self, rows: int) -> list[Waiting]:
        """The oldest requests, of at least so many rows together."""
        taken: list[Waiting] = []
        while self.waiting and sum(w.ticket.rows for w in taken) < rows:
            taken.append(self.waiting.popleft())
        return taken

    def view(self, now: float, *, hosts: int, starting_rows: int, shape: str, capacity: int) -> GroupView:
        """The queue as the policy sees it at a moment of the monotonic clock, one for all queues."""
        longest = max((w.tokens // w.ticket.rows for w in self.waiting), default=round(self.mean_tokens))
        return GroupView(
            key=self.key, rows=self.rows, tokens=sum(w.tokens for w in self.waiting), running_rows=self.running_rows,
            longest_tokens=longest, hosts=hosts, shape=shape, starting_rows=starting_rows, capacity=capacity,
            oldest_s=self.oldest_s(now),
        )  # fmt: skip

    def status(self) -> QueueStatus:
        """The queue for those outside."""
        return QueueStatus(
            key=self.key,
            experts=self.experts,
            waiting=self.rows,
            running=self.running_rows,
            oldest_s=self.oldest_s(time.monotonic()),
        )


def _moved(mean: float, by: float) -> float:
    return 0.9 * mean + 0.1 * by if mean else by
