"""A whole run with fake engines on a real Ray cluster."""

from __future__ import annotations

import json

import pytest

from symoe_ray.stage_sizes import PASSES
from tests.local_cluster.conftest import FAKE, Command, Symoe

pytestmark = pytest.mark.real_ray
STAGES = ("annotate", "profile", "bench-aggregators", "answer", "aggregate")
Finished = tuple[Symoe, Command]


def test_it_ends_well_with_results_on_standard_output_and_progress_on_the_other(finished: Finished) -> None:
    symoe, command = finished
    assert command.code == 0, command.err
    assert json.loads(command.out) == symoe.run_folder("plain").json("results.json")
    assert "== aggregate" in command.err


def test_the_folder_holds_every_file(finished: Finished) -> None:
    path = finished[0].run_folder("plain").path
    names = "config.yaml manifest.json status.json events.jsonl results.json samples_demo.jsonl report.html"
    assert [n for n in names.split() if not (path / n).is_file()] == []
    tables = "skills profiles aggregators seed=0/recruits seed=1/recruits seed=0/answers seed=1/answers"
    assert [t for t in tables.split() if not list((path / t).glob("part-*.parquet"))] == []
    assert (path / "profiles" / "profiles.json").is_file()
    for stage in STAGES:
        assert list((path / "requests" / stage).glob("expert=*/*.parquet")), stage
        assert list((path / "responses" / stage).glob("expert=*/part-*.parquet")), stage
        assert list((path / "commits" / stage).glob("*.json")), stage


def test_every_sample_asked_for_is_committed_once(finished: Finished) -> None:
    run = finished[0].run_folder("plain")
    for stage in STAGES:
        committed = run.committed(stage)
        assert set(committed) == run.requested(stage), stage
        assert set(committed.values()) == {1}, stage


def test_an_engine_key_is_loaded_once_per_slot_at_most_for_all_stages_that_go_together(finished: Finished) -> None:
    loads = finished[0].run_folder("plain").events("load")
    passes = {stage: stages for stages in PASSES for stage in stages}
    assert {e["stage"] for e in loads} <= set(STAGES)
    assert len({(passes.get(e["stage"]), e["slot"], e["key"]) for e in loads}) == len(loads) > 0
    fields = {"time", "t", "attempt", "stage", "slot", "event", "expert", "seconds", "tier", "bytes"}
    assert all(fields <= e.keys() for e in loads)


def test_results_have_the_methods_and_numbers_that_others_rely_on(finished: Finished) -> None:
    results = finished[0].run_folder("plain").json("results.json")
    ours = results["symoe"]
    experts = {"expert:SmolLM2", "expert:SmolLM2Greedy", "expert:Gemma3"}
    methods = {"symoe", "best_single", "majority", "random_experts", "self_consistency", "oracle"} | experts
    assert methods <= ours["methods"].keys()
    for method in ours["methods"].values():
        assert {"accuracy", "ci95", "n", "calls", "prompt_tokens", "completion_tokens"} <= method.keys()
        low, high = method["ci95"]
        assert 0 <= low <= method["accuracy"] <= high <= 1
        assert method["n"] == 64
    assert {"difference", "ci95", "mcnemar_p"} <= ours["paired"]["symoe_vs_best_single"].keys()
    assert {"unparsed", "truncated", "failed", "grader_disagreement"} <= ours["grading"].keys()
    assert {"loads", "swap_s", "generate_s", "wall_s", "busy_ratio", "predicted_wall_s"} <= ours["engine"].keys()
    assert {"results", "configs", "versions", "n-samples"} <= results.keys()


def test_recruits_are_in_file_order_and_weights_sum_to_one(finished: Finished) -> None:
    run = finished[0].run_folder("plain")
    questions = sorted(run.rows("questions/test"), key=lambda r: r["position"])
    recruits = run.rows("seed=0/recruits")
    assert [r["question_id"] for r in recruits] == [q["question_id"] for q in questions]
    for recruit in recruits:
        assert len(recruit["experts"]) == 3
        assert sum(recruit["weights"]) == pytest.approx(1)
        assert recruit["weights"] == sorted(recruit["weights"], reverse=True)


def test_every_answer_rests_on_the_seats_that_were_drawn(finished: Finished) -> None:
    run = finished[0].run_folder("plain")
    drawn = {r["question_id"]: r["experts"] for r in run.rows("seed=1/recruits")}
    drafts = {(d["question_id"], d["expert"], d["sample"]) for d in run.rows("seed=1/drafts")}
    answers = {a["question_id"]: a for a in run.rows("seed=1/answers") if a["method"] == "symoe"}
    assert answers.keys() == drawn.keys()
    for question, experts in drawn.items():
        assert answers[question]["experts"] == experts
        assert all((question, e, experts[:i].count(e)) in drafts for i, e in enumerate(experts))


def test_the_same_command_again_does_nothing(finished: Finished) -> None:
    symoe, first = finished
    before = {stage: symoe.run_folder("plain").parts(stage) for stage in STAGES}
    again = symoe("run", *FAKE, "seeds=[0,1]", "--run", "plain", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["symoe"]["methods"] == json.loads(first.out)["symoe"]["methods"]
    assert {stage: symoe.run_folder("plain").parts(stage) for stage in STAGES} == before
    assert "requests to" not in again.err


def test_settings_that_generated_the_rows_cannot_change_under_a_run(finished: Finished) -> None:
    symoe, _ = finished
    command = symoe("run", *FAKE, "seeds=[0,1]", "--run", "plain", "max_tokens=7")
    assert command.code == 2
    assert "max_tokens: 0 -> 7" in command.err
    assert "--restart" in command.err


def test_a_single_stage_with_another_rule_computes_only_what_follows(finished: Finished) -> None:
    symoe, _ = finished
    before = symoe.run_folder("plain").rows("seed=0/recruits")
    command = symoe("recruit", "--run", "plain", "router=paper", "trim_threshold=0")
    assert command.code == 0, command.err
    changed = symoe.run_folder("plain").rows("seed=0/recruits")
    assert [r["question_id"] for r in changed] == [r["question_id"] for r in before]
    assert [r["weights"] for r in changed] != [r["weights"] for r in before]
    assert symoe("recruit", "--run", "plain", "router=reference", "trim_threshold=0.05").code == 0
    assert symoe.run_folder("plain").rows("seed=0/recruits") == before
