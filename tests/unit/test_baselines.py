"""Which baselines a setting asks for, and what that takes: words, lists, samples and stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from symoe_ray.baselines import NAMES, baseline_samples, baselines_of, vote_samples
from symoe_ray.config import load, to_yaml
from symoe_ray.core import InputError
from symoe_ray.settings import Settings
from symoe_ray.stage_sizes import stage_requests
from symoe_ray.typed import WORDS

RANKING = ["C", "A", "B", "D"]


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """A pool of four experts, as a setting."""
    file = tmp_path / "four.yaml"
    experts = "\n".join(f"  - {{name: {name}, model: some/{name}}}" for name in "ABCD")
    file.write_text(f"name: four\nexperts:\n{experts}\n")
    return f"pool={file}"


def settings(pool: str, *overrides: str) -> Settings:
    return load([pool, "engine.kind=fake", "k=3", *overrides])


def test_words_stand_for_lists(pool: str) -> None:
    assert baselines_of(settings(pool, "baselines=all")) == set(NAMES)
    assert baselines_of(settings(pool, "baselines=minimal")) == {"best_single"}
    assert baselines_of(settings(pool, "baselines=off")) == set()
    assert baselines_of(settings(pool, "baselines=[moa,self_moa]")) == {"moa", "self_moa"}
    assert baselines_of(settings(pool, "baselines=moa")) == {"moa"}


def test_auto_follows_the_size_of_the_pool(pool: str) -> None:
    drafts_only = {"best_single", "experts", "self_consistency", "random_experts"}
    assert baselines_of(settings(pool)) == drafts_only
    assert baselines_of(load(["pool=paper16", "engine.kind=fake"])) == {"best_single"}


def test_every_name_is_a_word_of_the_setting() -> None:
    assert set(NAMES) <= set(WORDS["baselines"])


def test_a_run_keeps_its_list(pool: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(settings(pool, "baselines=[moa,experts]")))
    assert load([], base=file).baselines == ("moa", "experts")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("baselines=[moa,fast]", "must be one of auto, all, minimal, off, best_single"),
        ("baselines=[all,moa]", "must be one of auto, all, minimal, off, or a list of best_single"),
        ("baselines=[]", "must be one of auto"),
        ("moa_layers=1", "must be 2 or more"),
    ],
)
def test_mistakes_are_named(pool: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(pool, override)


def test_a_debate_needs_a_second_round(pool: str) -> None:
    with pytest.raises(InputError, match="3 or more for a debate"):
        settings(pool, "baselines=debate", "moa_layers=2")


@pytest.mark.parametrize(
    ("baselines", "expected"),
    [
        ("off", {}),
        ("minimal", {"C": 1}),
        ("experts", {"A": 1, "B": 1, "C": 1, "D": 1}),
        # Five annotations, three drafts and one aggregation are nine calls.
        ("self_consistency", {"C": 9}),
        ("[top_k]", {"C": 1, "A": 1, "B": 1}),
        ("[debate]", {"C": 1, "A": 1, "B": 1}),
        ("[moa,self_moa]", {"C": 3, "A": 1, "B": 1}),
        ("all", {"C": 9, "A": 1, "B": 1, "D": 1}),
    ],
)
def test_samples_of_each_expert(pool: str, baselines: str, expected: dict[str, int]) -> None:
    assert baseline_samples(settings(pool, f"baselines={baselines}"), RANKING) == expected


def test_self_consistency_votes_at_equal_calls(pool: str) -> None:
    assert vote_samples(settings(pool)) == 5 + 3 + 1
    assert vote_samples(settings(pool, "annotate.samples=3", "k=1")) == 3 + 1 + 1


def test_the_plan_knows_the_layers(pool: str) -> None:
    asked = dict(stage_requests(settings(pool, "baselines=all", "moa_layers=4"), validation=0, test=10))
    assert asked["baselines-layer-2"] == asked["baselines-layer-3"] == dict.fromkeys("ABC", (10, 10))
    assert asked["baselines-answers"] == {"A": (30, 30)}  # top_k, moa and self_moa: A is taken for all of them
    assert asked["aggregate"] == {"A": (20, 20)}
    assert asked["answer"]["A"] == (10, 90)
    without = dict(stage_requests(settings(pool, "baselines=off"), validation=0, test=10))
    assert without["baselines-answers"] == {}
    assert "baselines-layer-2" not in without
