"""How long to wait before what has failed is tried again, by the kind of failure."""

from __future__ import annotations

_FIRST_AND_LONGEST_S = {
    "engine_died": (0.1, 10.0), "load_failed": (0.5, 60.0),
    **dict.fromkeys(("rate_limited", "server_error", "timeout", "connection", "bad_response"), (0.5, 30.0)),
}  # fmt: skip


def delay_s(kind: str, attempt: int) -> float:
    """Seconds between the failed attempt (counted from 1) and the next: doubled each time, up to a longest wait.

    An engine that has died is replaced almost at once: its memory is back when its process is gone. One that cannot be
    loaded often waits for what others hold. Kinds that are not named here wait for nothing.
    """
    first, longest = _FIRST_AND_LONGEST_S.get(kind, (0.0, 0.0))
    return min(longest, first * 2.0 ** (attempt - 1))
