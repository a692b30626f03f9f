"""What a pool learns about its engines, in figures that can be checked by hand."""

from __future__ import annotations

import pytest

from actors.engine_plans import EngineFacts
from actors.pool_costs import UNKNOWN, CostBook
from symoe_ray.engine_costs import prior_cost

FACTS = EngineFacts(weight_bytes=270_000_000, kv_bytes_per_token=23_040, shape="s")


@pytest.fixture
def book() -> CostBook:
    """One engine, "k", is described."""
    book = CostBook(cuda=False)
    book.describe("k", FACTS)
    return book


@pytest.mark.parametrize("cuda", [False, True])
def test_an_engine_that_was_described_costs_what_its_size_says(cuda: bool) -> None:
    book = CostBook(cuda=cuda)
    assert (book.knows("k"), book.shape("k")) == (False, "")
    book.describe("k", FACTS)
    assert (book.knows("k"), book.shape("k")) == (True, "s")
    assert book.costs().of("k") == prior_cost(FACTS.weight_bytes, FACTS.kv_bytes_per_token, cuda=cuda)


def test_an_engine_of_unknown_size_costs_what_a_middling_one_does(book: CostBook) -> None:
    middling = prior_cost(UNKNOWN.weight_bytes, UNKNOWN.kv_bytes_per_token, cuda=False)
    book.describe("fake", EngineFacts(weight_bytes=0, kv_bytes_per_token=0, shape=""))
    assert book.knows("fake")
    assert book.costs().of("fake") == book.costs().of("never heard of") == middling


def test_the_median_of_the_loads_replaces_the_prior(book: CostBook) -> None:
    before = book.costs().of("k")
    for seconds in (0.5, 40.0, 0.7):
        book.loaded("k", seconds)
    assert book.costs().of("k").load_s == 0.7
    assert (book.costs().of("k").step_s, book.costs().of("k").reload_s) == (before.step_s, before.reload_s)


def test_a_load_of_an_engine_that_was_never_described_counts(book: CostBook) -> None:
    book.loaded("other", 3.0)
    assert book.costs().of("other").load_s == 3.0
    assert not book.knows("other")


def test_steps_are_scaled_by_what_was_generated(book: CostBook) -> None:
    """At ten sequences a token costs step_s / 10 + sequence_s; one that took three times as long scales both by 3."""
    prior = book.costs().of("k")
    tokens = 1000
    expected_s = tokens * (prior.step_s / 10 + prior.sequence_s)
    for share in (0.25, 0.75):
        book.generated("k", round(tokens * share), 3 * expected_s * share, 10)
    seen = book.costs().of("k")
    assert seen.step_s == pytest.approx(3 * prior.step_s)
    assert seen.sequence_s == pytest.approx(3 * prior.sequence_s)
    assert seen.load_s == prior.load_s


def test_each_measure_counts_with_its_own_batch(book: CostBook) -> None:
    """1,000 steps of 2 sequences and 300 of 10."""
    prior = book.costs().of("k")
    book.generated("k", 2000, 30.0, 2)
    book.generated("k", 3000, 10.0, 10)
    assert book.costs().of("k").step_s == pytest.approx(
        prior.step_s * 40.0 / (1300 * prior.step_s + 5000 * prior.sequence_s)
    )


def test_longer_answers_make_steps_longer_and_leave_what_was_measured(book: CostBook) -> None:
    """An engine that takes three times as long as by its prior goes on doing so where a stage asks for more."""
    short = book.costs().of("k")
    book.generated("k", 1000, 3 * short.write_s(1000, 10), 10)
    book.expect("k", 300.0, 5200.0)
    book.expect("of a server", 300.0, 5200.0)
    fresh = CostBook(cuda=False)
    fresh.describe("k", FACTS)
    fresh.expect("k", 300.0, 5200.0)
    long, prior = book.costs().of("k"), fresh.costs().of("k")
    assert prior.sequence_s > 1.1 * short.sequence_s
    assert (long.step_s, long.sequence_s) == pytest.approx((3 * prior.step_s, 3 * prior.sequence_s))


def test_no_time_teaches_nothing(book: CostBook) -> None:
    before = book.costs().of("k")
    book.generated("k", 0, 0.0, 0)
    assert book.costs().of("k") == before


def test_what_was_never_measured_is_as_far_off_its_prior_as_others_are(book: CostBook) -> None:
    """Loads that take four times and steps that take three times as long as priors say, on a slower machine."""
    for key in "lm":
        book.describe(key, FACTS)
    before = book.costs().of("m")
    token_s = before.step_s / 10 + before.sequence_s
    for key in "kl":
        book.loaded(key, 4 * before.load_s)
        book.generated(key, 1000, 3 * 1000 * token_s, 10)
    after = book.costs().of("m")
    assert after.load_s == pytest.approx(4 * before.load_s)
    assert (after.step_s, after.sequence_s) == pytest.approx((3 * before.step_s, 3 * before.sequence_s))


def test_what_servers_take_says_nothing_of_engines(book: CostBook) -> None:
    """A server is reached in no time and writes slowly; of its size nothing is known."""
    before = book.costs().of("k")
    for key in ("server-a", "server-b"):
        book.describe(key, EngineFacts(weight_bytes=0, kv_bytes_per_token=0, shape=""))
        book.loaded(key, 0.001)
        book.generated(key, 100, 1000.0, 1)
    assert book.costs().of("k") == before


def test_a_measured_engine_learns_from_itself_alone(book: CostBook) -> None:
    book.describe("l", FACTS)
    book.loaded("l", 5.0)
    book.generated("l", 1000, 10.0, 10)
    before = book.costs().of("l")
    book.loaded("k", 9.0)
    book.generated("k", 10, 100.0, 1)
    assert book.costs().of("l") == before


def test_an_engine_over_several_gpus_has_their_cost() -> None:
    book = CostBook(cuda=True)
    book.describe("four", FACTS, gpus=4)
    assert book.costs().of("four") == prior_cost(FACTS.weight_bytes, FACTS.kv_bytes_per_token, cuda=True, gpus=4)
