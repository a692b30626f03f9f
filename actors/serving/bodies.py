"""What the endpoint answers, in OpenAI's shapes, with `symoe` beside: who was asked, why, and what each stage cost."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.serving.schema import BadRequestError
from symoe_ray.core import Completion, Profile, Recruitment
from symoe_ray.serving.asking import Grown, RefusedError
from symoe_ray.serving.events import Answered, Drafted, Event, QuestionFailedError, Recruited, StageUsage, Started
from symoe_ray.serving.keys import LimitError

DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"

STATUS_OF_FAILURE = {"prompt_too_long": 400, "bad_request": 400, "timeout": 504}
STATUS_OF_REFUSAL = {"overloaded": 429, "load_failed": 503, "no_slot": 503}
TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "invalid_request_error",
    405: "invalid_request_error", 408: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
CODES = {"prompt_too_long": "context_length_exceeded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """An error as it goes out: status, OpenAI's body, and in how many seconds to try again (0: not said)."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float = 0.0

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def error_of(error: Exception) -> Error | None:
    """How one of our errors goes out; None for what nobody expects."""
    match error:
        case BadRequestError():
            return Error(status=error.status, message=str(error), code=error.code, param=error.param)
        case LimitError():
            return Error(
                status=429, message=str(error), code="rate_limit_exceeded", retry_after_s=max(1.0, error.retry_after_s)
            )
        case RefusedError():
            status = STATUS_OF_REFUSAL[error.kind]
            return Error(
                status=status, message=str(error), code=error.kind, retry_after_s=max(1.0, error.retry_after_s)
            )
        case QuestionFailedError():
            status = STATUS_OF_FAILURE.get(error.kind, 502)
            return Error(status=status, message=str(error), code=CODES.get(error.kind, error.kind))
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Writes one answer. `id` is the completion's; `drafts`: whether they are wanted."""

    id: str
    model: str
    profiles: tuple[Profile, ...] = ()
    drafts: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answered: Answered) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [
            {
                "index": c.index, "message": {"role": "assistant", "content": c.text, **_thought(answered, c)},
                "logprobs": None, "finish_reason": _reason(c),
            }
            for c in answered.completions
        ]  # fmt: skip
        return {
            **self._head("chat.completion"), "choices": choices, "usage": usage(answered.usage),
            "symoe": self.explanation(answered),
        }  # fmt: skip

    def first(self, n: int) -> bytes:
        """The chunk that begins a stream."""
        return self._chunk([_choice(i, {"role": "assistant", "content": ""}) for i in range(n)])

    def text(self, grown: Grown) -> bytes:
        """A chunk of text; reasoning goes out as `reasoning_content`."""
        thought = [_choice(i, {"reasoning_content": text}) for i, text in grown.reasoning]
        return self._chunk(thought + [_choice(i, {"content": text}) for i, text in grown.texts])

    def last(self, answered: Answered, *, with_usage: bool) -> bytes:
        """What ends a stream: why it ended, with `symoe`; the usage, if wanted; `[DONE]`."""
        ends = [_choice(c.index, {}, _reason(c)) for c in answered.completions]
        end = self._chunk(ends, symoe=self.explanation(answered))
        used = self._chunk([], usage=usage(answered.usage)) if with_usage else b""
        return end + used + DONE

    def progress(self, event: Event) -> bytes:
        """An event as an SSE comment, which clients pass over: `: symoe {json}`."""
        match event:
            case Started(stage=stage, experts=experts):
                shown: dict[str, Any] = {"event": "started", "stage": stage, "experts": experts}
            case Recruited(recruitment=recruitment):
                shown = {"event": "recruited", **self._recruitment(recruitment)}
            case Drafted(expert=expert, drafts=drafts, seconds=seconds):
                failure = next((d.failure.message for d in drafts if d.failure is not None), None)
                shown = {"event": "drafted", "expert": expert, "seconds": round(seconds, 3), "failure": failure}
                if self.drafts:
                    shown["texts"] = [d.text for d in drafts]
            case _:
                return b""
        return b": symoe " + _json(shown) + b"\n\n"

    def explanation(self, answered: Answered) -> dict[str, Any]:
        """The extension of the answer: recruitment, usage by stage, and the drafts if wanted."""
        made: dict[str, Any] = {"usage": {stage: _rounded(u) for stage, u in answered.usage.items()}}
        if answered.recruitment is not None:
            made |= {
                "aggregator": answered.aggregator, "warnings": list(answered.warnings),
                **self._recruitment(answered.recruitment),
            }  # fmt: skip
        if self.drafts:
            made["drafts"] = [
                {"expert": d.expert, "text": d.text, "failure": asdict(d.failure) if d.failure else None}
                for d in answered.drafts
            ]
        return made

    def _recruitment(self, recruitment: Recruitment) -> dict[str, Any]:
        """The recruitment, and what each expert scored on the skills that it rests on."""
        scores = {s: {p.expert: p.scores.get(s, 0.0) for p in self.profiles} for s in recruitment.mapped}
        return {"recruitment": asdict(recruitment), "scores": scores}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + _json({**self._head("chat.completion.chunk"), "choices": choices, **more}) + b"\n\n"


def error_event(error: Error) -> bytes:
    """An error in the middle of a stream, which then ends without `[DONE]`."""
    return b"data: " + _json(error.body) + b"\n\n"


def usage(stages: Mapping[str, StageUsage]) -> dict[str, int]:
    """The sums over all stages."""
    prompt = sum(u.prompt_tokens for u in stages.values())
    completion = sum(u.completion_tokens for u in stages.values())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _choice(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _thought(answered: Answered, completion: Completion) -> dict[str, str]:
    thought = answered.reasoning.get(completion.index)
    return {"reasoning_content": thought} if thought else {}


def _reason(completion: Completion) -> str:
    return completion.finish_reason or "stop"


def _rounded(used: StageUsage) -> dict[str, Any]:
    return asdict(used) | {"seconds": round(used.seconds, 3)}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
