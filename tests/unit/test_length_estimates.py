"""How long an expert's answers are expected to be."""

from __future__ import annotations

from dataclasses import replace

from symoe_ray.config import load
from symoe_ray.core import ExpertSpec, Sampling
from symoe_ray.ledger import Part
from symoe_ray.length_estimates import (
    expected_tokens,
    longest_tokens,
    most_tokens,
    seen_lengths,
    unseen_tokens,
)

SHORT = ExpertSpec(name="Short", model="org/short", max_model_len=4096, sampling=Sampling(max_tokens=400))
LONG = ExpertSpec(name="Long", model="org/long", max_model_len=65536, sampling=Sampling(max_tokens=32768))

MOST, LIMIT = {"Short": 400, "Long": 32768}, {"Long": 32768}


def part(expert: str, samples: int, tokens: int, failed: int = 0) -> Part:
    return Part(
        path="p", stage="s", expert=expert, chunk="c", slot="slot-0", shards=(0,), requests=samples, samples=samples,
        failed=failed, prompt_tokens=0, completion_tokens=tokens, seconds=1.0,
    )  # fmt: skip


def test_an_expert_that_has_written_nothing_is_guessed_from_its_limit() -> None:
    assert expected_tokens(MOST, {}) == {"Short": 200, "Long": 5461}


def test_what_it_has_written_is_averaged_over_all_samples() -> None:
    assert expected_tokens(LIMIT, seen_lengths([[part("Long", 3, 3000), part("Long", 1, 5000)]])) == {"Long": 2000}


def test_failed_samples_wrote_nothing_and_do_not_count() -> None:
    assert expected_tokens(LIMIT, seen_lengths([[part("Long", 4, 6000, failed=2)]])) == {"Long": 3000}
    assert expected_tokens(LIMIT, seen_lengths([[part("Long", 2, 0, failed=2)]])) == {"Long": 5461}


def test_copies_of_a_greedy_sample_were_not_written() -> None:
    greedy = replace(part("Long", 10, 6000), copies=8)
    assert seen_lengths([[greedy]])["Long"].answer == 3000


def test_prompts_are_averaged_over_requests() -> None:
    parts = [
        replace(part("Long", 5, 100), requests=1, prompt_tokens=900),
        replace(part("Long", 1, 9), prompt_tokens=100),
    ]
    assert seen_lengths([parts])["Long"].prompt == 500.0


def test_the_first_stage_that_knows_an_expert_decides() -> None:
    own, like = [part("Short", 2, 100)], [part("Short", 2, 700), part("Long", 1, 9000)]
    assert expected_tokens(MOST, seen_lengths([own, like])) == {"Short": 50, "Long": 9000}


def test_the_guess_for_a_small_limit_is_half_of_it() -> None:
    assert [unseen_tokens(most) for most in (1, 64, 512, 1024, 4096)] == [1, 32, 256, 256, 683]


def test_the_longest_grows_with_the_answers_up_to_the_limit() -> None:
    lengths = [longest_tokens(400, rows, 4096) for rows in (1, 10, 1000, 10**6)]
    assert lengths == sorted(lengths)
    assert 400 < lengths[0] < 1000
    assert 2000 < lengths[2] < 3500
    assert lengths[3] == 4096
    assert longest_tokens(400, 0, 4096) == 0


def test_a_stage_and_the_run_may_limit_answers_more_than_the_expert() -> None:
    settings = load(["task=demo", "pool=small"])
    assert most_tokens(settings, "answer", LONG) == 32768
    assert most_tokens(settings, "annotate", LONG) == settings.annotate.sampling_max_tokens
    assert most_tokens(load(["task=demo", "pool=small", "max_tokens=256"]), "profile", LONG) == 256
    assert most_tokens(load(["task=demo", "pool=small", "max_tokens=512"]), "profile", SHORT) == 400
