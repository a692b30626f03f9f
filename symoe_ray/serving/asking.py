"""One live request to one expert: what is asked, what comes back while it is written, and the port it goes through.

The port is what the endpoint's logic needs of a pool of engines; a test passes a few lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from symoe_ray.core import Completion, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request of its own. `stream`: its text is wanted as it is written. `json_schema` is JSON text ("": none)."""

    request: Request
    stream: bool = False
    json_schema: str = ""


@dataclass(frozen=True, slots=True)
class Grown:
    """What the samples of a request have grown by: (sample, text). `reasoning` is not part of the answer."""

    texts: tuple[tuple[int, str], ...]
    reasoning: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The end of a request: its samples, whole, also where they were streamed; failures are on them.

    `seconds` is the time on the engine, `wait_s` the time in the queue before, an engine's load included.
    """

    completions: tuple[Completion, ...]
    seconds: float
    wait_s: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, which all samples share."""
        return max((c.prompt_tokens for c in self.completions), default=0)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, over all samples."""
        return sum(c.completion_tokens for c in self.completions)


class RefusedError(Exception):
    """The pool does not take a request: too much waits already (try again in `retry_after_s`), or nothing can run it.

    `kind`: overloaded, load_failed or no_slot.
    """

    def __init__(self, kind: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.retry_after_s = kind, retry_after_s


class Engines(Protocol):
    """A pool of experts that answer live requests."""

    async def admit(self, expert: str) -> None:
        """RefusedError where a question that begins with this expert must not be let in: it would wait too long."""

    def ask(self, ask: Ask) -> AsyncGenerator[Grown | Reply, None]:
        """What an expert writes: `Grown` any number of times if streamed, then one `Reply`. May raise RefusedError.

        Closing the generator, or cancelling whoever waits for it, gives the request up wherever it is.
        """


class Growth:
    """What has been written and not been told: merged while nobody asks, so that it is never longer than the answer."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self.changed = asyncio.Event()
        self.begun = False

    def add(self, texts: Sequence[tuple[int, str]]) -> None:
        """Note that samples have grown."""
        for sample, text in texts:
            self._texts[sample] = self._texts.get(sample, "") + text
        self.begun = True
        self.changed.set()

    def take(self) -> tuple[tuple[int, str], ...]:
        """What has been added since the last time."""
        taken, self._texts = self._texts, {}
        self.changed.clear()
        return tuple(taken.items())
