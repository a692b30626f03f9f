from __future__ import annotations

import numpy as np
import pytest

from symoe_ray.engine_room import Room, last_over_mean, running_tokens
from symoe_ray.length_estimates import SIGMA


def test_an_engine_runs_what_it_may_or_what_its_cache_holds() -> None:
    """A reasoning model of 8B parameters on an 80 GB GPU, and a plain one."""
    assert Room(256, kv_tokens=396_000).sequences(300, 5200) == 98
    assert Room(256, kv_tokens=396_000).sequences(300, 400) == 256
    assert Room(256).sequences(300, 5200) == 256
    assert Room(256, kv_tokens=100).sequences(300, 5200) == 1


def test_sequences_met_in_a_full_batch_have_written_that_much() -> None:
    """A batch that is always full, by drawing: what its sequences have written at a random step."""
    random = np.random.default_rng(1)
    lengths = random.lognormal(np.log(400) - SIGMA**2 / 2, SIGMA, 200_000)
    written = np.sum(lengths**2 / 2) / np.sum(lengths)
    assert running_tokens(300, 400) == pytest.approx(300 + written, rel=0.02)


def test_samples_of_a_request_share_its_prompt() -> None:
    alone, shared = (Room(256, kv_tokens=60_000).sequences(1000, 100, samples) for samples in (1, 5))
    assert (alone, shared) == (55, 220)


@pytest.mark.parametrize("samples", [2, 5, 16])
def test_a_request_is_at_work_until_its_last_sample_is_finished(samples: int) -> None:
    lengths = np.random.default_rng(2).lognormal(-(SIGMA**2) / 2, SIGMA, (50_000, samples))
    assert last_over_mean(samples) == pytest.approx(lengths.max(axis=1).mean(), rel=0.02)
    assert (last_over_mean(1), last_over_mean(0)) == (1.0, 1.0)


def test_nothing_at_all_needs_room_for_one_token() -> None:
    assert Room(8, kv_tokens=4).sequences(0.0, 0.0) == 4
