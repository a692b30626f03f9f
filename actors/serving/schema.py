"""The body of a chat completion request, as OpenAI's clients send it. Fields that are not known here are ignored."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from symoe_ray.core import Message
from symoe_ray.serving.chat import Chat
from symoe_ray.settings import ServeSettings

MOST_STOPS = 16
MOST_SCHEMA_CHARACTERS = 16_384
_PLACE = re.compile(r" - at `\$\.?(?P<place>[^`]*)`$")

Positive = Annotated[int, msgspec.Meta(ge=1)]
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class BadRequestError(ValueError):
    """The caller's mistake: what it is, and the field it is in."""

    def __init__(self, message: str, param: str | None = None, *, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part] | None = None


class _JsonSchema(msgspec.Struct):
    schema: dict[str, Any] = {}


class _ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Extension(msgspec.Struct):
    """Our own field `symoe`: whether the drafts are wanted beside the answer."""

    drafts: bool = False


class Body(msgspec.Struct):
    """A request; see OpenAI's reference for the fields, and vLLM's for `top_k`, `min_p` and `repetition_penalty`."""

    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], msgspec.Meta(max_length=MOST_STOPS)] | None = None
    n: Positive | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None
    symoe: _Extension | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_drafts(self) -> bool:
        """Whether the experts' drafts go out with the answer."""
        return self.symoe is not None and self.symoe.drafts


_decoder = msgspec.json.Decoder(Body)


def parse(data: bytes, limits: ServeSettings) -> Body:
    """The request in a body; BadRequestError names the field that is wrong."""
    try:
        body = _decoder.decode(data)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        raise BadRequestError(str(error), place["place"] or None if place else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None
    if len(body.messages) > limits.max_messages:
        raise BadRequestError(f"{len(body.messages)} messages, at most {limits.max_messages} are taken", "messages")
    if (body.n or 1) > limits.max_n:
        raise BadRequestError(f"n is {body.n}, at most {limits.max_n} answers are written", "n")
    return body


def chat_of(body: Body) -> Chat:
    """What the body asks for; BadRequestError for content that is not text."""
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Chat(
        messages=tuple(_message(m, index) for index, m in enumerate(body.messages)), n=body.n or 1, max_tokens=most,
        temperature=body.temperature, top_p=body.top_p, top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p, presence_penalty=body.presence_penalty, frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty, seed=body.seed, stop=stop,
        json_schema=_schema(body.response_format),
    )  # fmt: skip


def _message(message: _Message, index: int) -> Message:
    content = message.content or ""
    if not isinstance(content, str):
        if any(part.type != "text" for part in content):
            raise BadRequestError("only text is understood", f"messages[{index}].content")
        content = "\n".join(part.text for part in content)
    role: Literal["system", "user", "assistant"] = "system" if message.role == "developer" else message.role
    return Message(role=role, content=content)


def _schema(wanted: _ResponseFormat | None) -> str:
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return '{"type":"object"}'
    if wanted.json_schema is None:
        raise BadRequestError("json_schema is missing", "response_format.json_schema")
    text = msgspec.json.encode(wanted.json_schema.schema).decode()
    if len(text) > MOST_SCHEMA_CHARACTERS:
        raise BadRequestError(
            f"the schema has {len(text)} characters, at most {MOST_SCHEMA_CHARACTERS} are taken", "response_format"
        )
    return text
