"""`symoe plan`: stage sizes, the tables, what an earlier run teaches, and that nothing is spent."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actors import model_sizes
from actors.model_sizes import machine_of
from pipelines import cli
from pipelines.plan import covered_s, question_counts, seen_in
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.planning import Machine, ModelSize, capacity, plan_of, spread
from symoe_ray.settings import Settings
from symoe_ray.stage_sizes import stage_requests
from symoe_ray.storage import Storage

SIZE = ModelSize(weight_bytes=270_000_000, kv_bytes_per_token=23_040)
CPU = Machine(cpu_slots=2, room_bytes=8 << 30)
# Three experts on two engines: Ann and AnnGreedy differ in their sampling only.
SMALL = """
name: small
annotator: Ann
experts:
  - {name: Ann, model: "package:a"}
  - {name: AnnGreedy, model: "package:a", sampling: {temperature: 0.0}}
  - {name: Bob, model: "package:b"}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The choice of that pool on the command line."""
    path = tmp_path_factory.mktemp("pool") / "small.yaml"
    path.write_text(SMALL)
    return f"pool={path}"


def sizes(settings: Settings, size: ModelSize = SIZE) -> dict[str, ModelSize]:
    return {e.name: size for e in settings.pool.experts}


def wide_reasoning(settings: Settings) -> Settings:
    """Reasoning experts on two GPUs each."""
    experts = (replace(e, tensor_parallel_size=2) if e.sampling.max_tokens > 8192 else e for e in settings.pool.experts)
    return replace(settings, pool=replace(settings.pool, experts=tuple(experts)))


class TestStageSizes:
    def test_stages_of_a_small_pool(self, small: str) -> None:
        settings = load([small, "baselines=off"])
        asked = dict(stage_requests(settings, validation=40, test=64))
        assert asked["annotate"] == {"Ann": (104, 520)}
        assert asked["profile"] == dict.fromkeys(["Ann", "AnnGreedy", "Bob"], (40, 40))
        assert sum(samples for _, samples in asked["answer"].values()) == pytest.approx(64 * 3, abs=3)
        assert asked["aggregate"] == {"Ann": (64, 64)}

    def test_the_expected_samples_agree_with_draws(self, small: str) -> None:
        settings = load([small, "baselines=all"])
        requests, samples = dict(stage_requests(settings, validation=0, test=10_000))["answer"]["Bob"]
        generator, drawn = random.Random(0), 0
        for _ in range(10_000):
            seats = [[generator.randrange(3) for _ in range(settings.k)] for _ in range(2)]
            drawn += max(1, *(own.count(2) for own in seats))
        assert requests == 10_000
        assert samples == pytest.approx(drawn, rel=0.03)

    def test_borrowed_profiles_and_a_named_aggregator_save_stages(self, small: str) -> None:
        settings = load([small, "profiles=other", "aggregator=Bob", "seeds=[0,1]"])
        asked = dict(stage_requests(settings, validation=40, test=64))
        assert asked["annotate"] == {"Ann": (64, 320)}
        assert asked["profile"] == asked["bench-aggregators"] == {}
        assert set(asked["aggregate"]) == {"Bob"}


class TestPlan:
    def test_experts_of_one_engine_share_its_load_and_stages_keep_what_is_there(self, small: str) -> None:
        settings = load([small])
        made = plan_of(settings, validation=40, test=64, sizes=sizes(settings), machine=CPU)
        assert [s.stage for s in made.stages] == ["annotate+profile", "bench-aggregators+answer", "aggregate"]
        assert [e.experts for e in made.engines] == [("Ann", "AnnGreedy"), ("Bob",)]
        for stage in made.stages[:2]:
            loads = [(load.slot, load.experts) for load in stage.loads]
            assert len(set(loads)) == len(loads), "an engine is loaded once for all stages that go together"
            assert {experts for _, experts in loads} <= {("Ann", "AnnGreedy"), ("Bob",)}
        asked = dict(stage_requests(settings, validation=40, test=64))
        assert made.stages[0].samples == sum(n for stage in ("annotate", "profile") for _, n in asked[stage].values())
        assert made.seconds == pytest.approx(sum(s.seconds for s in made.stages))
        assert made.seconds > 0

    def test_spans_say_what_every_slot_does_until_the_stage_ends(self, small: str) -> None:
        settings = load([small])
        made = plan_of(settings, validation=40, test=64, sizes=sizes(settings), machine=CPU)
        for stage in made.stages:
            assert max(span.end_s for span in stage.spans) == pytest.approx(stage.seconds)
            assert [(s.slot, s.begin_s) for s in stage.spans] == sorted((s.slot, s.begin_s) for s in stage.spans)
            assert sum(span.event == "load" for span in stage.spans) == len(stage.loads)
            generating = [s for s in stage.spans if s.event == "generate"]
            for one, other in pairwise(generating):
                assert one.slot != other.slot or one.end_s <= other.begin_s
                assert (one.slot, one.experts, one.end_s) != (other.slot, other.experts, other.begin_s), "two for one"

    def test_more_slots_are_faster_on_gpus(self) -> None:
        settings = load(["pool=paper16", "task=mmlu_pro"])
        size = ModelSize(weight_bytes=16_000_000_000, kv_bytes_per_token=131_072)

        def seconds(slots: int) -> float:
            machine = Machine(gpus=(1,) * slots, room_bytes=80 * 10**9)
            return plan_of(settings, validation=350, test=2100, sizes=sizes(settings, size), machine=machine).seconds

        assert seconds(4) < 0.5 * seconds(1)

    @pytest.mark.parametrize(("gpu_bytes", "most"), [(80 * 10**9, 512), (48 << 30, 256)])
    def test_it_counts_on_as_many_sequences_as_engines_take(self, gpu_bytes: int, most: int) -> None:
        settings = load(["pool=paper16", "task=mmlu_pro"])
        size, spec = ModelSize(weight_bytes=10**9, kv_bytes_per_token=1), settings.pool.experts[0]
        machine = Machine(gpus=(1,), room_bytes=gpu_bytes)
        assert capacity(settings, spec, size, machine, (300.0, 400.0)) == most

    def test_slots_of_two_gpus_for_those_who_write_most_shorten_a_run(self) -> None:
        settings = wide_reasoning(load(["pool=paper16", "task=mmlu_pro", "gpus=8"]))
        size = ModelSize(weight_bytes=16_000_000_000, kv_bytes_per_token=131_072)

        def answer_s(gpus: tuple[int, ...]) -> float:
            machine = Machine(gpus=gpus, room_bytes=80 * 10**9)
            made = plan_of(settings, validation=350, test=2100, sizes=sizes(settings, size), machine=machine)
            assert all(e.fits for e in made.engines)
            return next(s.seconds for s in made.stages if s.stage == "bench-aggregators+answer")

        cut = machine_of(settings).gpus
        assert (sum(cut), min(cut), max(cut)) == (8, 1, 2)
        assert answer_s(cut) < 0.6 * answer_s((2, 1, 1, 1, 1, 1, 1))

    @pytest.mark.parametrize(
        ("here", "gpus", "cut"), [(0, 16, 16), (16, 16, 16), (10, 0, 10), (16, 32, 32), (0, 11, 11)]
    )
    def test_no_gpu_is_left_over(self, here: int, gpus: int, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_sizes, "visible_gpus", lambda: here)
        monkeypatch.setattr(model_sizes, "gpu_total_bytes", lambda _: 80 * 10**9)
        assert machine_of(load(["pool=paper16", f"gpus={gpus}"])).gpus == (1,) * cut

    def test_an_engine_of_more_gpus_than_there_are_is_told_and_planned_nevertheless(self) -> None:
        settings = wide_reasoning(load(["pool=paper16", "task=mmlu_pro", "gpus=1"]))
        made = plan_of(settings, validation=4, test=4, sizes=sizes(settings), machine=machine_of(settings))
        assert made.gpus == (1,)
        assert [len(e.experts) for e in made.engines if not e.fits] == [1, 1]

    def test_an_aggregator_reads_k_drafts(self, small: str) -> None:
        def aggregate_s(k: int) -> float:
            settings = load([small, "baselines=off", f"k={k}", "replacement=true"])
            made = plan_of(settings, validation=0, test=400, sizes=sizes(settings), machine=CPU)
            return made.stages[-1].seconds

        assert aggregate_s(1) < aggregate_s(2) < aggregate_s(3)

    def test_a_small_kv_cache_makes_batches_small_and_a_run_long(self) -> None:
        settings = load(["pool=paper16", "task=mmlu_pro"])
        size = ModelSize(weight_bytes=16_000_000_000, kv_bytes_per_token=131_072)

        def seconds(gigabytes: int, *changes: str) -> float:
            machine = Machine(gpus=(1,) * 4, room_bytes=gigabytes * 10**9)
            settings = load(["pool=paper16", "task=mmlu_pro", *changes])
            return plan_of(settings, validation=350, test=2100, sizes=sizes(settings, size), machine=machine).seconds

        assert seconds(30) > 1.2 * seconds(80)
        assert seconds(80, "engine.kv_cache_memory_bytes=4_000_000_000") > 1.2 * seconds(80)
        (first, *_) = plan_of(
            settings, validation=4, test=4, sizes=sizes(settings, size),
            machine=Machine(gpus=(1,), room_bytes=80 * 10**9),
        ).engines  # fmt: skip
        assert 50e9 < first.kv_bytes < 56e9, "what weights and steps leave of nine tenths"

    def test_an_engine_that_does_not_fit_is_told(self, small: str) -> None:
        settings = load([small])
        made = plan_of(
            settings, validation=4, test=4, sizes=sizes(settings), machine=Machine(cpu_slots=1, room_bytes=1 << 20)
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
    return json.dumps({"attempt": 1, "slot": "slot-0", "stage": "answer", "expert": "Bob", **values}) + "\n"


class TestSeen:
    def test_speeds_and_lengths_come_from_the_events(self, small: str, tmp_path: Path) -> None:
        storage, settings = Storage(str(tmp_path)), load([small])
        storage.append_text(
            "events.jsonl",
            event(event="load", t=3.0, seconds=3.0)
            + event(event="generate", t=13.0, seconds=10.0, requests=8, completion_tokens=800)
            + event(event="generate", t=15.0, seconds=10.0, requests=8, completion_tokens=800),
        )
        seen = seen_in(storage, settings, sizes(settings), CPU)
        assert set(seen) == {"Bob"}
        assert seen["Bob"].tokens == {"answer": 100.0}
        assert seen["Bob"].cost.load_s == 3.0
        cost, batch = seen["Bob"].cost, 160 / 12
        assert 1600 * (cost.step_s / batch + cost.sequence_s) == pytest.approx(12.0)

    def test_overlaps_on_a_slot_count_once(self) -> None:
        assert covered_s([(1, "a", 0.0, 10.0), (1, "a", 5.0, 12.0), (1, "b", 0.0, 1.0), (2, "a", 3.0, 4.0)]) == 14.0

    def test_a_run_without_events_is_an_error(self, small: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"events\.jsonl"):
            seen_in(Storage(str(tmp_path)), load([small]), {}, CPU)


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
        assert {"stage", "requests", "samples", "tokens", "seconds", "loads", "spans"} == set(made["stages"][0])
        assert not (tmp_path / "runs").exists()

    def test_the_tables_name_stages_engines_and_guesses(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        code = cli.main(["plan", "task=mmlu_pro", "pool=paper16", "gpus=4", f"data_dir={tmp_path}"])
        text = capsys.readouterr().out
        assert code == 0
        assert "4 slot(s) on 4 GPU(s)" in text
        assert "published sizes" in text
        assert "bench-aggregators" in text
        assert "Mathstral" in text
