"""A finished run in the released code's formats."""

from __future__ import annotations

import pytest

from symoe_ray.reference_files import read_folder
from symoe_ray.requests import seat_samples
from tests.local_cluster.conftest import Command, Symoe

pytestmark = pytest.mark.real_ray


def test_a_run_of_our_own_is_exported_as_the_released_code_would_have_it(finished: tuple[Symoe, Command]) -> None:
    symoe, _ = finished
    command = symoe("export", "plain", "--format", "reference", "--to", "out")
    assert command.code == 0, command.err
    run, found = symoe.run_folder("plain"), read_folder(symoe.folder / "out")
    profiles = run.json("profiles/profiles.json")
    assert found.profiles == {name: profiles[name]["scores"] for name in sorted(profiles, key=lambda n: f"{n}_profile")}
    assert found.chains.keys() == found.aggregators.keys() == profiles.keys()
    assert found.unread == ()
    for seed in (0, 1):
        recruits, drafts = run.rows(f"seed={seed}/recruits"), run.rows(f"seed={seed}/drafts")
        texts = {(d["question_id"], d["expert"], d["sample"]): d["text"] for d in drafts}
        for seats, recruit in zip(found.seats[seed], recruits, strict=True):
            assert list(seats.experts) == recruit["experts"]
            seen = seat_samples(seats.experts)
            assert seats.answers == tuple(texts[recruit["question_id"], *seat] for seat in seen)
        final = {a["question_id"]: a["text"] for a in run.rows(f"seed={seed}/answers") if a["method"] == "symoe"}
        assert found.finals[seed][1] == tuple(final[recruit["question_id"]] for recruit in recruits)
