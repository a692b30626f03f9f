"""math-verify in its own process, which is killed where it hangs."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from actors import math_verifier
from actors.math_verifier import MAX_CHARACTERS, MEMORY_BYTES, MathVerifier


@pytest.fixture(scope="module")
def shared() -> Iterator[MathVerifier]:
    verifier = MathVerifier()
    yield verifier
    verifier.close()


@pytest.fixture
def own() -> Iterator[MathVerifier]:
    verifier = MathVerifier()
    yield verifier
    verifier.close()


def pid_of(verifier: MathVerifier) -> int:
    process = verifier._process
    assert process is not None
    return process.pid


@pytest.mark.parametrize(
    ("content", "gold"),
    [
        ("80", "80"),
        (r"\frac{160}{2}", "80"),
        ("2^3 \\cdot 10", "80"),
        ("80.0", "80"),
        ("\\text{80}", "80"),
        ("-7", "-7"),
    ],
)
def test_equal_values_are_the_gold_answer(content: str, gold: str, shared: MathVerifier) -> None:
    assert shared(content, gold)


@pytest.mark.parametrize(
    "content", ["81", r"\frac{80}{3}", "-80", "", "eighty", "}{\\boxed", "\n", "x+", "\ud83d", "80\n[1, 2]"[3:]]
)
def test_others_and_nonsense_are_not(content: str, shared: MathVerifier) -> None:
    assert not shared(content, "80")


def test_one_process_answers_many(shared: MathVerifier) -> None:
    assert shared("1", "1")
    first = pid_of(shared)
    assert [shared(str(n), "3") for n in range(5)] == [False, False, False, True, False]
    assert pid_of(shared) == first


def test_long_content_is_refused_without_a_process(own: MathVerifier) -> None:
    assert not own("0" * (MAX_CHARACTERS - 1) + "80", "80")
    assert own._process is None


def test_a_process_that_hangs_is_killed_and_the_next_call_has_a_new_one(
    own: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own("4", "4")
    hanging = pid_of(own)
    os.kill(hanging, signal.SIGSTOP)
    monkeypatch.setattr(math_verifier, "TIMEOUT_S", 0.2)
    started = time.monotonic()
    assert not own("5", "5")
    assert time.monotonic() - started < 5.0
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    monkeypatch.undo()
    assert own("4", "4")
    assert pid_of(own) != hanging


@pytest.mark.parametrize("content", ["9^{9^{9^{9}}}", "(10^{9})!", "10^{10^{10}}"])
def test_an_expression_that_hangs_or_eats_memory_is_cut_off(
    content: str, own: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own("4", "4")
    victim = pid_of(own)
    monkeypatch.setattr(math_verifier, "TIMEOUT_S", 1.0)
    assert not own(content, "80")
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    monkeypatch.undo()
    assert own("4", "4")
    alive = pid_of(own)
    assert not own(content, "81")  # known by now, so it ends no second process
    assert pid_of(own) == alive


def test_a_process_has_a_memory_limit(own: MathVerifier) -> None:
    assert own("4", "4")
    soft, hard = resource.prlimit(pid_of(own), resource.RLIMIT_AS)
    assert soft == hard == MEMORY_BYTES


def test_a_process_that_has_died_is_replaced(own: MathVerifier) -> None:
    assert own("4", "4")
    os.kill(pid_of(own), signal.SIGKILL)
    own("5", "5")  # may still meet the dying one
    assert own("4", "4")


def test_a_process_that_cannot_start_makes_nothing_right(own: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert not own("4", "4")
    assert own._process is None


def test_a_copy_in_another_process_starts_its_own(own: MathVerifier) -> None:
    assert own("4", "4")
    copy = pickle.loads(pickle.dumps(own))
    assert isinstance(copy, MathVerifier)
    assert copy._process is None
    assert own("4", "4")


def test_closing_ends_the_process(own: MathVerifier) -> None:
    own("4", "4")
    ended = pid_of(own)
    own.close()
    own.close()
    with pytest.raises(ProcessLookupError):
        os.kill(ended, 0)
