"""Engines without any engine: the port `Engines` with made-up answers, for tests of the endpoint's logic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from symoe_ray.core import Completion, Failure, Request
from symoe_ray.serving.asking import Ask, Grown, RefusedError, Reply
from symoe_ray.testing import fake_text, fake_tokens


async def _at_once(_: Request) -> None:
    await asyncio.sleep(0)


@dataclass(slots=True)
class FakeEngines:
    """Experts that write what `symoe_ray.testing.fake_text` says, word by word where it is streamed.

    `failures` and `refusals` are by expert; `pause` is awaited before every word and reply. `asked` are the requests in
    order, `given_up` those that were closed before their reply.
    """

    failures: Mapping[str, Failure] = field(default_factory=dict)
    refusals: Mapping[str, RefusedError] = field(default_factory=dict)
    full: Mapping[str, RefusedError] = field(default_factory=dict)
    pause: Callable[[Request], Awaitable[None]] = _at_once
    asked: list[Ask] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)

    async def admit(self, expert: str) -> None:
        """Raise the expert's refusal at the door, if it has one."""
        if expert in self.full:
            raise self.full[expert]

    async def ask(self, ask: Ask) -> AsyncGenerator[Grown | Reply, None]:
        """What the expert writes."""
        request, replied = ask.request, False
        self.asked.append(ask)
        if request.expert in self.refusals:
            raise self.refusals[request.expert]
        try:
            made = tuple(self._completion(request, index) for index in range(request.n))
            for completion in made if ask.stream else ():
                for word in completion.text.split():
                    await self.pause(request)
                    yield Grown(((completion.index, word + " "),))
            await self.pause(request)
            replied = True
            yield Reply(completions=made, seconds=0.01)
        finally:
            if not replied:
                self.given_up.append(request.expert)

    def _completion(self, request: Request, index: int) -> Completion:
        failure = self.failures.get(request.expert)
        if failure is not None:
            return Completion(request_id=request.id, index=index, failure=failure)
        prompt = request.messages[-1].content
        text = fake_text(request.expert, prompt, request.seed + index) + " "
        return Completion(
            request_id=request.id, index=index, text=text, finish_reason="stop", prompt_tokens=fake_tokens(prompt),
            completion_tokens=fake_tokens(text),
        )  # fmt: skip
