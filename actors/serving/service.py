"""What the endpoint's routes share: the method, the engines, who may ask, what is under way, and what is counted."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from actors.online_state import OnlineStatus
from actors.serving.metrics import Metrics
from actors.serving.schema import BadRequestError
from symoe_ray.serving.asking import Engines, RefusedError
from symoe_ray.serving.chat import Chat
from symoe_ray.serving.events import Event
from symoe_ray.serving.keys import Key, Limits, find_key
from symoe_ray.serving.question import Method, answer_alone, answer_question

MODEL = "symoe"
UNKNOWN = "unknown"
CLOSED = 499  # as nginx has it: the caller went away
log = logging.getLogger("symoe.serving")


@dataclass(slots=True)
class Service:
    """The endpoint without its HTTP. `starting` says what is still missing before it can answer ("": nothing).

    `status` asks the pool what waits and runs.
    """

    method: Method
    engines: Engines
    keys: tuple[Key, ...]
    status: Callable[[], Awaitable[OnlineStatus]]
    metrics: Metrics = field(default_factory=Metrics)
    limits: Limits = field(default_factory=Limits)
    starting: str = ""
    draining: bool = False
    _under_way: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def models(self) -> list[str]:
        """The names that may be asked for: the method, the method with each expert as aggregator, each expert alone."""
        names = list(self.method.experts)
        return [MODEL, *(f"{MODEL}:{name}" for name in names), *names]

    def key_of(self, authorization: str) -> Key | None:
        """Who asks, by the header `Authorization: Bearer KEY`; None for nobody who may. Without keys, everybody."""
        if not self.keys:
            return Key(
                name="anonymous", sha256=b"", requests_per_minute=self.method.serve.requests_per_minute,
                concurrency=self.method.serve.concurrency,
            )  # fmt: skip
        scheme, _, given = authorization.partition(" ")
        return find_key(self.keys, given.strip()) if scheme.lower() == "bearer" else None

    @contextmanager
    def room(self, key: Key) -> Iterator[None]:
        """Room for one request of a key; RefusedError or LimitError where there is none."""
        if self.starting or self.draining:
            raise RefusedError("no_slot", self.starting or "the endpoint is ending", 5.0)
        if self._under_way >= self.method.serve.max_questions:
            raise RefusedError("overloaded", f"{self._under_way} requests are under way", 1.0)
        with self.limits.one(key):
            self._under_way += 1
            self.metrics.under_way.set(self._under_way)
            try:
                yield
            finally:
                self._under_way -= 1
                self.metrics.under_way.set(self._under_way)
                if not self._under_way:
                    self._quiet.set()

    def answer(self, model: str, chat: Chat, *, stream: bool) -> AsyncGenerator[Event, None]:
        """What happens to a question that is put to a model; BadRequestError for a model that there is not."""
        seed = chat.seed if chat.seed is not None else random.getrandbits(31)
        name, _, aggregator = model.partition(":")
        if model not in self.models:
            raise BadRequestError(
                f"there is no model {model[:100]!r}; see /v1/models", "model", code="model_not_found", status=404
            )
        if name == MODEL:
            return answer_question(chat, self.method, self.engines, seed=seed, aggregator=aggregator, stream=stream)
        return answer_alone(chat, self.method, self.engines, model, seed=seed, stream=stream)

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, and wait for what is under way; whether that has ended in time."""
        self.draining = True
        if self._under_way:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), timeout_s)
            except TimeoutError:
                return False
        return True


@dataclass(slots=True)
class Record:
    """One request, for the log and the metrics; `status` is CLOSED until it is known that it was answered otherwise."""

    service: Service
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    key: str = ""
    model: str = UNKNOWN
    started: float = field(default_factory=time.monotonic)
    status: int = CLOSED
    note: str = ""
    _first: bool = False

    def wrote(self) -> None:
        """The first text has come."""
        if not self._first:
            self._first = True
            self.service.metrics.first_token(self.model, time.monotonic() - self.started)

    def end(self) -> None:
        """The request has ended: count it, and write its line."""
        seconds = time.monotonic() - self.started
        self.service.metrics.request(self.model, self.status, seconds)
        log.info(
            "request=%s key=%s model=%s status=%d seconds=%.3f %s",
            self.id, self.key, self.model, self.status, seconds, self.note,
        )  # fmt: skip
