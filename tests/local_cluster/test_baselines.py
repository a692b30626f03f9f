"""The baselines on a real Ray cluster with fake engines: one cache of answers, and nothing in it is made twice."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import product
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.local_cluster.conftest import FAKE, RunFolder, Symoe

pytestmark = pytest.mark.real_ray
SMALL = ("run", *FAKE, "k=2", "--limit", "20", "--run", "all", "--json")
STAGES = ("answer", "aggregate", "baselines-layer-2", "baselines-answers")
Runs = tuple[RunFolder, dict[str, list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run without baselines, then with all of them, then once more: its folder, its first parts, and all results."""
    symoe = Symoe(tmp_path_factory.mktemp("baselines"), [])
    folder, results = symoe.run_folder("all"), []
    first: dict[str, list[dict[str, Any]]] = {}
    for words in ("off", "all", "all"):
        command = symoe(*SMALL, f"baselines={words}")
        assert command.code == 0, command.err
        results.append(json.loads(command.out) | {"progress": command.err})
        first = first or {stage: folder.parts(stage) for stage in STAGES}
    return folder, first, results


def test_every_method_is_there_on_every_question_with_its_cost(runs: Runs) -> None:
    methods = runs[2][1]["symoe"]["methods"]
    expected = {"top_k", "moa", "self_moa", "debate", "self_consistency", "self_consistency@2", "random_experts"}
    assert expected | {"symoe", "majority", "oracle", "oracle_pool", "best_single"} <= methods.keys()
    assert {row["n"] for row in methods.values()} == {20}
    calls = {name: methods[name]["calls"] / 20 for name in expected}
    assert calls == {
        "top_k": 3, "moa": 5, "self_moa": 3, "debate": 4, "self_consistency": 8, "self_consistency@2": 2,
        "random_experts": 3,
    }  # fmt: skip
    assert methods["symoe"]["calls"] == methods["self_consistency"]["calls"]
    assert all(row["seconds"] >= 0 and row["completion_tokens"] > 0 for row in methods.values())
    assert not expected & runs[2][0]["symoe"]["methods"].keys()


def test_no_sample_is_generated_twice_by_any_stage(runs: Runs) -> None:
    committed: Counter[tuple[str, int]] = Counter()
    for stage in STAGES:
        own = runs[0].committed(stage)
        assert runs[0].requested(stage) <= set(own)
        committed.update(own)
    assert set(committed.values()) == {1}


def test_what_an_earlier_run_had_made_is_kept(runs: Runs) -> None:
    folder, first, _ = runs
    for stage in ("answer", "aggregate"):
        assert first[stage]
        assert folder.parts(stage)[: len(first[stage])] == first[stage]


def test_a_second_run_generates_nothing(runs: Runs) -> None:
    _, _, (_, second, third) = runs
    assert "requests to" in second["progress"]
    assert "requests to" not in third["progress"]
    assert third["symoe"]["methods"] == second["symoe"]["methods"]


def test_proposers_see_the_answers_of_the_layer_before(runs: Runs) -> None:
    folder = runs[0]
    first = {(d["question_id"], d["expert"]): d["text"] for d in folder.rows("drafts") if d["sample"] == 0}
    prompts = prompts_of(folder, "baselines-layer-2")
    questions, proposers = ({key[place] for key in prompts} for place in (0, 1))
    assert (len(questions), len(proposers)) == (20, 2)
    shared = prompts_of(folder, "aggregate")  # a proposer's second prompt may be the one that top_k asked already
    for key in product(questions, proposers):
        drafts = [first[key[0], expert] for expert in proposers]
        assert any(all(d in prompt for d in drafts) for prompt in [*prompts.get(key, []), *shared.get(key, [])]), key


def prompts_of(folder: RunFolder, stage: str) -> dict[tuple[str, str], list[str]]:
    """The prompts that a stage sends, by question and expert."""
    found = defaultdict(list)
    for file in (folder.path / "requests" / stage).rglob("*.parquet"):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            key = row["question_id"], file.parent.name.removeprefix("expert=")
            found[key].append(row["messages"][0]["content"])
    return found


def test_the_best_expert_ends_its_own_mixture_and_the_aggregator_the_others(runs: Runs) -> None:
    notes = runs[2][1]["symoe"]["notes"]
    writers = {(a["method"], a["aggregator"]) for a in runs[0].rows("baselines/answers")}
    assert writers == {
        ("top_k", notes["aggregator"]), ("moa", notes["aggregator"]), ("self_moa", notes["best_single"]),
    }  # fmt: skip
