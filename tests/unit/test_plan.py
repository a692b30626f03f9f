"""`symoe plan`: stage sizes, the tables, what an earlier run teaches, and that nothing is spent."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.plan import covered_s, question_counts, seen_in
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.planning import Machine, ModelSize, plan_of, spread
from symoe_ray.settings import Settings
from symoe_ray.stage_sizes import stage_requests
from symoe_ray.storage import Storage

SIZE = ModelSize(weight_bytes=270_000_000, kv_bytes_per_token=23_040)
CPU = Machine(slots=2, room_bytes=8 << 30)


def sizes(settings: Settings, size: ModelSize = SIZE) -> dict[str, ModelSize]:
    return {e.name: size for e in settings.pool.experts}


class TestStageSizes:
    def test_stages_of_a_small_pool(self) -> None:
        settings = load(["pool=demo", "baselines=off"])
        asked = dict(stage_requests(settings, validation=40, test=64))
        assert asked["annotate"] == {"SmolLM2": (104, 520)}
        assert asked["profile"] == dict.fromkeys(["SmolLM2", "SmolLM2Greedy", "Gemma3"], (40, 40))
        assert sum(samples for _, samples in asked["answer"].values()) == pytest.approx(64 * 3, abs=3)
        assert asked["aggregate"] == {"SmolLM2": (64, 64)}

    def test_the_expected_samples_agree_with_draws(self) -> None:
        settings = load(["pool=demo", "baselines=all"])
        requests, samples = dict(stage_requests(settings, validation=0, test=10_000))["answer"]["Gemma3"]
        generator, drawn = random.Random(0), 0
        for _ in range(10_000):
            seats = [[generator.randrange(3) for _ in range(settings.k)] for _ in range(2)]
            drawn += max(1, *(own.count(2) for own in seats))
        assert requests == 10_000
        assert samples == pytest.approx(drawn, rel=0.03)

    def test_borrowed_profiles_and_a_named_aggregator_save_stages(self) -> None:
        settings = load(["pool=demo", "profiles=other", "aggregator=Gemma3", "seeds=[0,1]"])
        asked = dict(stage_requests(settings, validation=40, test=64))
        assert asked["annotate"] == {"SmolLM2": (64, 320)}
        assert asked["profile"] == asked["bench-aggregators"] == {}
        assert set(asked["aggregate"]) == {"Gemma3"}


class TestPlan:
    def test_experts_of_one_engine_share_its_load_and_stages_keep_what_is_there(self) -> None:
        settings = load(["pool=demo"])
        made = plan_of(settings, validation=40, test=64, sizes=sizes(settings), machine=CPU)
        assert [s.stage for s in made.stages] == ["annotate", "profile", "bench-aggregators", "answer", "aggregate"]
        assert [e.experts for e in made.engines] == [("SmolLM2", "SmolLM2Greedy"), ("Gemma3",)]
        assert all(load.experts == ("SmolLM2",) for load in made.stages[0].loads)
        assert {load.experts for load in made.stages[1].loads} == {("Gemma3",)}
        assert made.seconds == pytest.approx(sum(s.seconds for s in made.stages))
        assert made.seconds > 0

    def test_more_slots_are_faster_on_gpus(self) -> None:
        settings = load(["pool=paper16", "task=mmlu_pro"])
        size = ModelSize(weight_bytes=16_000_000_000, kv_bytes_per_token=131_072)

        def seconds(slots: int) -> float:
            machine = Machine(slots=slots, gpus_per_slot=1, room_bytes=80 * 10**9)
            return plan_of(settings, validation=350, test=2100, sizes=sizes(settings, size), machine=machine).seconds

        assert seconds(4) < 0.5 * seconds(1)

    def test_an_engine_that_does_not_fit_is_told(self) -> None:
        settings = load(["pool=demo"])
        made = plan_of(
            settings, validation=4, test=4, sizes=sizes(settings), machine=Machine(slots=1, room_bytes=1 << 20)
        )
        assert not any(e.fits for e in made.engines)

    def test_lengths_are_spread_around_the_mean_and_equal_for_many_rows(self) -> None:
        lengths = [tokens for tokens, _ in spread(200.0, 2000, 500)]
        assert len(lengths) == 500
        assert sum(lengths) / 500 == pytest.approx(200, rel=0.02)
        assert max(lengths) > 700
        assert spread(200.0, 2000, 1_000_000) == [(200, 1_000_000)]


class TestCounts:
    def test_the_tasks_files_are_counted_and_published_sizes_stand_in(self, tmp_path: Path) -> None:
        assert question_counts(load(["task=demo", "limit=10"])) == (10, 10, "")
        validation, test, note = question_counts(load(["task=mmlu_pro", f"data_dir={tmp_path}"]))
        assert (validation, test) == (350, 2100)
        assert "published" in note
        with pytest.raises(InputError, match="is not here"):
            question_counts(load(["task.name=own", f"task.test={tmp_path}/none.jsonl", "task.validation="]))


def event(**values: Any) -> str:
    return json.dumps({"attempt": 1, "slot": "slot-0", "stage": "answer", "expert": "Gemma3", **values}) + "\n"


class TestSeen:
    def test_speeds_and_lengths_come_from_the_events(self, tmp_path: Path) -> None:
        storage, settings = Storage(str(tmp_path)), load(["pool=demo"])
        storage.append_text(
            "events.jsonl",
            event(event="load", t=3.0, seconds=3.0)
            + event(event="generate", t=13.0, seconds=10.0, requests=8, completion_tokens=800)
            + event(event="generate", t=15.0, seconds=10.0, requests=8, completion_tokens=800),
        )
        seen = seen_in(storage, settings, sizes(settings), CPU)
        assert set(seen) == {"Gemma3"}
        assert seen["Gemma3"].tokens == {"answer": 100.0}
        assert seen["Gemma3"].cost.load_s == 3.0
        cost, batch = seen["Gemma3"].cost, 160 / 12
        assert 1600 * (cost.step_s / batch + cost.sequence_s) == pytest.approx(12.0)

    def test_overlaps_on_a_slot_count_once(self) -> None:
        assert covered_s([(1, "a", 0.0, 10.0), (1, "a", 5.0, 12.0), (1, "b", 0.0, 1.0), (2, "a", 3.0, 4.0)]) == 14.0

    def test_a_run_without_events_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"events\.jsonl"):
            seen_in(Storage(str(tmp_path)), load(["pool=demo"]), {}, CPU)


class TestCommand:
    def test_one_json_object_and_nothing_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        arguments = ["plan", "task=demo", "engine.kind=fake", "engine.slots=2", f"output_dir={tmp_path}/runs", "--json"]
        assert cli.main(arguments) == 0
        made = json.loads(capsys.readouterr().out)
        assert made["slots"] == 2
        assert made["seconds"] > 0
        assert {"stage", "requests", "samples", "tokens", "seconds", "loads"} == set(made["stages"][0])
        assert not (tmp_path / "runs").exists()

    def test_the_tables_name_stages_engines_and_guesses(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        code = cli.main(["plan", "task=mmlu_pro", "pool=paper16", "gpus=4", f"data_dir={tmp_path}"])
        text = capsys.readouterr().out
        assert code == 0
        assert "4 GPU slot(s)" in text
        assert "published sizes" in text
        assert "bench-aggregators" in text
        assert "Mathstral" in text
