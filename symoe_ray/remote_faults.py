"""What goes wrong with a server elsewhere, as kinds of failure, and how long to wait before it is asked again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from symoe_ray.retrying import delay_s

MOST_CHARACTERS = 300
_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|maximum context|(prompt|input|request).{0,30}too (long|large)", re.IGNORECASE
)
_BUSY = frozenset({408, 409, 425})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request has no answer. `kind`: rate_limited, server_error, timeout, connection or bad_response, which may
    pass; prompt_too_long, bad_request, unauthorized or not_found, which will not (`retryable`).

    `retry_after_s` is what the server asks to wait, None where it does not say.
    """

    kind: str
    message: str
    retryable: bool
    retry_after_s: float | None = None


def fault_of(status: int, body: bytes, headers: Mapping[str, str], now: float) -> Fault:
    """The fault that an HTTP answer other than 200 stands for; `now` in epoch seconds, `headers` in lower case."""
    code, message = error_text(body)
    kind, retryable = _kind(status, code, message)
    return Fault(
        kind=kind, message=f"HTTP {status}: {message}".rstrip(": "), retryable=retryable,
        retry_after_s=retry_after_s(headers, now),
    )  # fmt: skip


def error_text(body: bytes) -> tuple[str, str]:
    """Code and message of an error body: OpenAI's `{"error": {...}}`, its fields alone, or any text; in one line."""
    text = body[:10_000].decode(errors="replace")
    code, message = "", text
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if isinstance(told, dict):
        error = told.get("error", told)
        if isinstance(error, dict):
            code, message = str(error.get("code") or ""), str(error.get("message") or error.get("detail") or "")
        else:
            message = str(error)
    return code, " ".join(message.split())[:MOST_CHARACTERS]


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """What a Retry-After header says, in seconds from `now`: it holds seconds or a date (RFC 9110, 10.2.3)."""
    given = headers.get("retry-after", "").strip()
    try:
        seconds = float(given)
    except ValueError:
        try:
            when = parsedate_to_datetime(given)
        except ValueError:
            return None
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
    return max(0.0, seconds) if math.isfinite(seconds) else None


def wait_s(fault: Fault, attempt: int, *, retries: int, most_s: float, draw: float) -> float | None:
    """Seconds from the failed attempt (counted from 1) to the next; None for no other attempt.

    The back-off doubles; `draw` in [0, 1) takes up to half of it away, so that requests that failed together do not
    come back together. Never sooner than the server asks; where it asks for more than `most_s`, not at all.
    """
    asked = fault.retry_after_s or 0.0
    if not fault.retryable or attempt > retries or asked > most_s:
        return None
    backoff = delay_s(fault.kind, attempt)
    return max(asked + backoff * draw / 2, backoff * (1 - draw / 2))


def _kind(status: int, code: str, message: str) -> tuple[str, bool]:
    if status in (401, 403):
        return "unauthorized", False
    if status == 429:
        return "rate_limited", code != "insufficient_quota"  # which no waiting brings back
    if status >= 500 or status in _BUSY:
        return "server_error", True
    if status == 413 or code == "context_length_exceeded" or (status in (400, 422) and _TOO_LONG.search(message)):
        return "prompt_too_long", False
    return ("not_found" if status == 404 else "bad_request"), False
