"""The slot of an expert that a server elsewhere answers for: chunks, parts and streams as everywhere, no engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace

import ray

from actors.engine_host import LoadError
from actors.engine_link import OnDelta
from actors.engine_plans import EngineFacts
from actors.remote_check import missing_model, read_key
from actors.remote_client import Clock, RemoteClient, RemoteError
from actors.slot import Loaded, Slot, SlotConfig, SlotInfo, Told
from symoe_ray.core import Completion, Failure, Request, ResourceError
from symoe_ray.engine_room import Room
from symoe_ray.remote_requests import chat_body
from symoe_ray.serving.asking import Ask, Growth, Reply

BOUNDARY = "server"
OUTAGE = 8  # requests in a row without any answer: then it is not they that are at fault
OF_THE_REQUEST = frozenset({"prompt_too_long", "bad_request", "bad_response"})


class RemoteSlot(Slot):
    """Has one engine key for good: a model on a server. Its experts differ in sampling at most.

    It loads nothing: to load is to see that the server answers and has the model.
    """

    def __init__(self, config: SlotConfig, clock: Clock | None = None) -> None:
        super().__init__(config)
        self._spec, self._clock = config.experts[0], clock or Clock()
        self._open: RemoteClient | None = None
        self._tokens = self._lost = 0

    async def start(self) -> SlotInfo:
        """Be ready for work; where the slot is."""
        for task in self._working:
            task.cancel()
        return SlotInfo(id=self._config.id, node=self._node(), pid=os.getpid(), gpus=0)

    async def resolve(self, experts: list[str]) -> dict[str, str]:
        """What is in the way of these experts, by name: no key, no answer, no such model."""
        try:
            await self._look()
        except (ResourceError, RemoteError) as error:
            return dict.fromkeys(experts, f"{self._spec.server.base_url}: {error}")
        return {}

    async def facts(self, experts: list[str]) -> dict[str, EngineFacts]:
        """Nothing is known of a server's engines: their speed is learned."""
        return dict.fromkeys(experts, EngineFacts(weight_bytes=0, kv_bytes_per_token=0, shape=""))

    async def load(self, expert: str) -> Loaded:
        """See that the server answers; LoadError where it does not."""
        started = self._clock.now_s()
        try:
            await self._look()
        except (ResourceError, RemoteError) as error:
            raise LoadError(str(error)) from error
        seconds = self._clock.now_s() - started
        return Loaded(
            tier="remote", seconds=seconds, start_s=seconds, bytes=0, room=Room(self._spec.server.max_concurrency),
            beside=False, note="",
        )  # fmt: skip

    async def progress(self) -> tuple[int, list[str]]:
        """Tokens that the server has written."""
        return self._tokens, []

    async def measure(self) -> Told:
        """Requests that the server works on."""
        return Told(running=self._open.under_way if self._open is not None else 0, families=())

    async def stop(self) -> None:
        """End all connections."""
        if self._open is not None:
            await self._open.close()
            self._open = None

    def _client(self) -> RemoteClient:
        if self._open is None:
            self._open = RemoteClient(self._spec.server, read_key(self._spec), self._clock)
        return self._open

    async def _look(self) -> None:
        if problem := await missing_model(self._client(), self._spec.model):
            raise ResourceError(problem)

    async def _attempt(
        self, request: Request, attempt: int, json_schema: str = "", on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """The samples of a request, each asked for alone and each with its own failure; a greedy one is asked for once.

        LoadError where nothing has come from the server for many requests.
        """
        count = 1 if request.sampling.temperature == 0 else request.n
        samples = range(request.first_sample, request.first_sample + count)
        made = await asyncio.gather(*(self._sample(request, i, json_schema, on_delta) for i in samples))
        failures = [c.failure for c in made if c.failure is not None and c.failure.kind not in OF_THE_REQUEST]
        self._lost = self._lost + 1 if len(failures) == len(made) else 0
        if self._lost >= OUTAGE:
            raise LoadError(f"{self._lost} requests in a row have no answer; the last: {failures[-1].message}")
        copies = range(request.first_sample + count, request.first_sample + request.n)
        return made + [replace(made[0], index=i, prompt_tokens=0, completion_tokens=0) for i in copies]

    async def _sample(self, request: Request, sample: int, json_schema: str, on_delta: OnDelta | None) -> Completion:
        spec = self._experts[request.expert]
        body = chat_body(spec, request, sample, json_schema=json_schema, stream=on_delta is not None)
        on_text = (lambda text: on_delta([(sample, text)])) if on_delta is not None else None
        try:
            written = await self._client().complete(body, on_text)
        except RemoteError as error:
            fault = error.fault
            failure = Failure(
                boundary=BOUNDARY, kind=fault.kind, message=fault.message, retryable=fault.retryable,
                attempt=error.attempts,
            )  # fmt: skip
            return Completion(request_id=request.id, index=sample, failure=failure)
        self._tokens += written.completion_tokens
        return Completion(
            request_id=request.id, index=sample, text=written.text, finish_reason=written.finish_reason,
            prompt_tokens=written.prompt_tokens, completion_tokens=written.completion_tokens,
        )  # fmt: skip

    async def _reply(self, ask: Ask, growth: Growth) -> Reply:
        """A reply whose prompt counts as often as the server has read it."""
        reply = await super()._reply(ask, growth)
        tokens = self._prompt_tokens(reply.completions)
        return replace(reply, completions=tuple(replace(c, prompt_tokens=tokens) for c in reply.completions))

    def _prompt_tokens(self, completions: Sequence[Completion]) -> int:
        """Every sample is a request of its own."""
        return sum(c.prompt_tokens for c in completions)


RemoteSlotActor = ray.remote(RemoteSlot)
