"""From a request to the body that a server with OpenAI's API is sent: one sample each, since few servers know `n`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from symoe_ray.core import ExpertSpec, Message, Request
from symoe_ray.requests import CHARACTERS_PER_TOKEN

ANY_OBJECT = {"type": "object"}


def chat_body(
    spec: ExpertSpec, request: Request, sample: int, *, json_schema: str = "", stream: bool = False
) -> dict[str, object]:
    """The body of `/chat/completions` for one sample, generated with seed `seed + sample` as everywhere.

    The server renders the messages. What only some servers know (`top_k`, `min_p`, the penalties) is said only where
    it is set. As an engine of ours does, it bounds the answer to what the context leaves; a token is taken as three
    characters.
    """
    sampling, server = request.sampling, spec.server
    body: dict[str, object] = {
        "model": spec.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed + sample,
        server.token_limit: min(sampling.max_tokens, _room(spec, request.messages)),
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_k > 0:
        body["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1.0:
        body["repetition_penalty"] = sampling.repetition_penalty
    for name in ("min_p", "presence_penalty", "frequency_penalty"):
        if value := getattr(sampling, name):
            body[name] = value
    if json_schema:
        body["response_format"] = _response_format(json_schema)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= server.extra_body
    return {name: value for name, value in body.items() if value is not None}


def _room(spec: ExpertSpec, messages: Sequence[Message]) -> int:
    prompt = sum(len(m.content) for m in messages) // CHARACTERS_PER_TOKEN
    return max(1, spec.max_model_len - prompt)


def _response_format(json_schema: str) -> dict[str, object]:
    schema = json.loads(json_schema)
    if schema == ANY_OBJECT:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
