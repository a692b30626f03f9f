"""A run that a dozen faults of all kinds hit at random moments ends as if nothing had been: the short form of the
benchmark `chaos`, whose checker reads parts, commits and tables alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos import FAKE, one_run, possible, undisturbed

pytestmark = [pytest.mark.real_ray, pytest.mark.slow]

KINDS = (
    "engine", "engine", "engine", "hung_engine", "slot", "hung_slot", "worker", "clock", "out_of_memory", "pool",
    "damaged_part", "full_disk",
)  # fmt: skip


def test_whatever_is_killed_the_run_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    plan = possible(replace(FAKE, kinds=KINDS, gap_s=1.0))
    base = undisturbed(plan, tmp_path / "undisturbed")
    outcome, found = one_run(plan, 7, tmp_path, base)
    assert outcome.finished, outcome.said
    assert (found.lost, found.duplicated, found.different) == (0, 0, ()), outcome
    assert not outcome.left_behind
    assert outcome.faults.total() >= 8, outcome  # the run may end before the last ones
