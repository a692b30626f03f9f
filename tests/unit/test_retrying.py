"""How long is waited before a retry, by kind."""

from __future__ import annotations

import pytest

from symoe_ray.retrying import delay_s


@pytest.mark.parametrize(
    ("kind", "waits"),
    [
        ("engine_died", [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]),
        ("load_failed", [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]),
        ("prompt_too_long", [0.0] * 9),
    ],
)
def test_the_wait_doubles_up_to_a_longest_one(kind: str, waits: list[float]) -> None:
    assert [delay_s(kind, attempt) for attempt in range(1, 10)] == pytest.approx(waits)
