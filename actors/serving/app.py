"""The endpoint's routes, as a plain ASGI application: OpenAI's API, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from actors.serving import bodies
from actors.serving.bodies import Error, Writer
from actors.serving.presence import Stream, while_present
from actors.serving.schema import BadRequestError, Body, chat_of, parse
from actors.serving.service import CLOSED, MODEL, Record, Service, log
from symoe_ray.serving.asking import Grown
from symoe_ray.serving.events import Answered, Event
from symoe_ray.serving.keys import Key

PAGE = Path(__file__).with_name("page")
HEARTBEAT_S = 10.0
BODY_S = 30.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PAGE_FILES = {"": "index.html", "page.js": "page.js", "page.css": "page.css"}
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Starlette:
    """The application over a service. No CORS: a browser may ask from the endpoint's own page alone."""
    routes = Routes(service)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name}", routes.model, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
            Route("/healthz", routes.healthz, methods=["GET"]),
            Route("/readyz", routes.readyz, methods=["GET"]),
            *(Route(f"/{name}", routes.page, methods=["GET"]) for name in _PAGE_FILES),
        ],
        exception_handlers={HTTPException: _http_error},
    )


class Routes:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._page = {
            f"/{name}": ((PAGE / file).read_bytes(), _TYPES[Path(file).suffix]) for name, file in _PAGE_FILES.items()
        }

    async def healthz(self, _: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        """Profiles are loaded and an engine has answered, and the endpoint is not ending."""
        service = self._service
        reason = service.starting or ("draining" if service.draining else "")
        return JSONResponse({"ready": not reason, "reason": reason}, status_code=503 if reason else 200)

    async def page(self, request: Request) -> Response:
        """The page and what it is made of."""
        content, kind = self._page[request.url.path]
        return Response(content, media_type=kind, headers=_PAGE_HEADERS)

    async def models(self, request: Request) -> Response:
        """The models that may be asked for."""
        refusal, _ = self._refused(request)
        return refusal or JSONResponse({"object": "list", "data": [_model(name) for name in self._service.models]})

    async def model(self, request: Request) -> Response:
        """One model."""
        refusal, _ = self._refused(request)
        name = request.path_params["name"]
        if refusal is None and name not in self._service.models:
            refusal = _error(Error(status=404, message="there is no such model", code="model_not_found", param="model"))
        return refusal or JSONResponse(_model(name))

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        refusal, _ = self._refused(request)
        if refusal is not None:
            return refusal
        text = self._service.metrics.text(await self._service.status())
        return Response(text, media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """A chat completion, in one piece or as a stream."""
        record = Record(self._service)
        given = request.headers.get("x-request-id", "")
        if _REQUEST_ID.fullmatch(given):
            record.id = given
        refusal, key = self._refused(request)
        if key is None:
            response = refusal or Response(status_code=401)
            record.status = response.status_code
        else:
            record.key = key.name
            try:
                response = await self._answer(request, record, key)
            except ClientDisconnect:
                response = Response(status_code=CLOSED)
            except asyncio.CancelledError:
                record.end()
                raise
            except Exception as error:
                response = _error(self._problem(error, record))
        if not isinstance(response, Stream):
            record.end()
        return response

    async def _answer(self, request: Request, record: Record, key: Key) -> Response:
        service = self._service
        async with AsyncExitStack() as stack:
            stack.enter_context(service.room(key))
            body = parse(await _read(request, service.method.serve.max_body_bytes), service.method.serve)
            chat = chat_of(body)
            events = service.answer(body.model, chat, stream=bool(body.stream))
            record.model = body.model
            if service.method.serve.log_prompts:
                log.info("request=%s messages=%r", record.id, chat.messages)
            profiles = tuple(service.method.profiles) if body.model.startswith(MODEL) else ()
            writer = Writer(id=f"chatcmpl-{record.id}", model=body.model, profiles=profiles, drafts=body.wants_drafts)
            if not body.stream:
                answered = await while_present(_last(events), request.receive)
                service.metrics.stages(answered.usage)
                record.status = 200
                return JSONResponse(writer.whole(answered), headers=_headers(answered))
            begun = await anext(events)  # a question that is not let in is refused here, with a status of its own
            stack.push_async_callback(events.aclose)
            room = stack.pop_all()
        return Stream(
            self._stream(begun, events, writer, body, record), record, room, media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )  # fmt: skip

    async def _stream(
        self, begun: Event, events: AsyncGenerator[Event, None], writer: Writer, body: Body, record: Record
    ) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        told: dict[int, int] = {}
        yield writer.first(body.n or 1) + writer.progress(begun)
        try:
            async with aclosing(_with_heartbeat(events)) as ticking:
                async for event in ticking:
                    if event is None:
                        yield bodies.WAITING
                    elif isinstance(event, Grown):
                        record.wrote()
                        for index, text in event.texts:
                            told[index] = told.get(index, 0) + len(text)
                        if event.texts or event.reasoning:
                            yield writer.text(event)
                    elif isinstance(event, Answered):
                        rest = _untold(event, told)
                        self._service.metrics.stages(event.usage)
                        record.status = 200
                        ending = writer.last(event, with_usage=body.wants_usage)
                        yield (writer.text(rest) if rest.texts else b"") + ending
                    else:
                        yield writer.progress(event)
        except Exception as error:
            yield bodies.error_event(self._problem(error, record))

    def _problem(self, error: Exception, record: Record) -> Error:
        problem = bodies.error_of(error)
        if problem is None:
            log.exception("request=%s", record.id, exc_info=error)
            problem = Error(status=500, message="something went wrong; the log says what", code="internal_error")
        self._service.metrics.failure(problem.code or str(problem.status))
        record.status, record.note = problem.status, problem.code or ""
        return problem

    def _refused(self, request: Request) -> tuple[Response | None, Key | None]:
        """Why a request is not listened to, or whose it is. Without keys only this machine is served.

        Then the name it was called by counts, too: a foreign page may have had its own name point to this machine.
        """
        service = self._service
        if not service.keys and not (
            _is_local(request.client.host if request.client else "") and _host_is_local(request)
        ):
            message = "without API keys only this machine is served"
            return _error(Error(status=403, message=message, code="keys_required")), None
        key = service.key_of(request.headers.get("authorization", ""))
        if key is None:
            error = Error(status=401, message="no valid API key was given", code="invalid_api_key")
            return _error(error, {"www-authenticate": "Bearer"}), None
        return None, key


async def _read(request: Request, most_bytes: int) -> bytes:
    """The body, read no further than it may be long. JSON alone: a foreign page cannot send it without being asked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequestError("the content type must be application/json", status=415)
    message = f"the body has more than {most_bytes} bytes"
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise BadRequestError(message, code="request_too_large", status=413)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > most_bytes:
                    raise BadRequestError(message, code="request_too_large", status=413)
    except TimeoutError:
        raise BadRequestError(f"the body has not come within {BODY_S:g} seconds", status=408) from None
    return bytes(body)


async def _last(events: AsyncGenerator[Event, None]) -> Answered:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Answered):
                return event
    raise AssertionError("a question ended without an answer")


async def _with_heartbeat(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event | None, None]:
    """The events, and None whenever nothing has happened for a while."""
    async with aclosing(events):
        upcoming: asyncio.Task[Event] | None = None
        try:
            while True:
                upcoming = upcoming or asyncio.ensure_future(_next(events))
                await asyncio.wait([upcoming], timeout=HEARTBEAT_S)
                if not upcoming.done():
                    yield None
                    continue
                try:
                    event = upcoming.result()
                except StopAsyncIteration:
                    return
                upcoming = None
                yield event
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.wait([upcoming])


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


def _untold(answered: Answered, told: dict[int, int]) -> Grown:
    """What of the answers has not been streamed: copies of a greedy sample, or what an engine told in one."""
    rest = [(c.index, c.text[told.get(c.index, 0) :]) for c in answered.completions]
    return Grown(tuple((index, text) for index, text in rest if text))


def _headers(answered: Answered) -> dict[str, str]:
    if answered.recruitment is None:
        return {}
    return {"x-symoe-experts": ",".join(answered.recruitment.experts), "x-symoe-aggregator": answered.aggregator}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "symoe-ray"}


def _error(error: Error, headers: dict[str, str] | None = None) -> Response:
    more = {"retry-after": str(round(error.retry_after_s + 0.5))} if error.retry_after_s else {}
    return JSONResponse(error.body, status_code=error.status, headers={**(headers or {}), **more})


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(Error(status=error.status_code, message=error.detail))


def _is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _host_is_local(request: Request) -> bool:
    return _is_local(request.url.hostname or "")
