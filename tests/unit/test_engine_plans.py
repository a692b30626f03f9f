"""What an engine is made of, from folders made here: no vLLM, no tensors."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import engine_arguments, engine_plans, models
from actors.engine_plans import EnginePlans
from actors.lora import CONFIG as LORA_CONFIG
from actors.memory import engine_need
from actors.model_sizes import size_of
from actors.platform import CPU_KV_BYTES
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.engine_room import Room
from symoe_ray.planning import ModelSize
from symoe_ray.settings import EngineSettings
from tests.unit.test_lora import adapter
from tests.unit.test_shapes import checkpoint

# Two layers, two KV heads of 32: keys and values of 2 x 2 x 2 x 32 = 256 numbers for each token.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
KV_BYTES = 256 * 2
WEIGHT_BYTES = 2 * 2 * 100 * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, a vLLM that need not be installed, and a CPU that computes with what a checkpoint has."""
    monkeypatch.setattr(models, "cpu_dtype", lambda dtype: dtype)
    monkeypatch.setenv("SYMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_plans, "_vllm_version", lambda: "vllm 0.32.0")
    return tmp_path / "cache"


def model(folder: Path, **config: Any) -> str:
    """A checkpoint of two tensors of 100 x 64 in 16 bits, all zero."""
    checkpoint(folder, config=HEADS | config)
    half = WEIGHT_BYTES // 2
    header = {
        name: {"dtype": "BF16", "shape": [100, 64], "data_offsets": [i * half, (i + 1) * half]}
        for i, name in enumerate(("model.embed_tokens.weight", "lm_head.weight"))
    }
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(WEIGHT_BYTES))
    return str(folder)


@pytest.fixture
def a(tmp_path: Path) -> ExpertSpec:
    return ExpertSpec(name="A", model=model(tmp_path / "a"), max_model_len=1024)


@pytest.fixture
def b(tmp_path: Path) -> ExpertSpec:
    """Of A's shape."""
    return ExpertSpec(name="B", model=model(tmp_path / "b", _name_or_path="me/b"), max_model_len=1024)


def plans(*experts: ExpertSpec, cores: tuple[int, ...] = (), cuda: bool = False, **settings: Any) -> EnginePlans:
    """Plans for experts whose files have been found."""
    made = EnginePlans(experts, EngineSettings(**settings), cores=cores, cuda=cuda)
    assert made.problems([expert.name for expert in experts]) == {}
    return made


class TestPlan:
    def test_an_expert_of_its_own(self, a: ExpertSpec) -> None:
        spec = replace(a, chat_template="{{ m }}", chat_template_kwargs={"enable_thinking": False}, add_bos=True)
        plan = plans(spec, cores=(2, 3)).plan("A")
        frame = plan.frame
        assert plan.key.startswith("a-")
        assert frame.args["model"] == a.model
        assert frame.args["kv_cache_memory_bytes"] == CPU_KV_BYTES[0]
        assert (frame.cores, frame.threads, frame.cuda, frame.loras) == ((2, 3), 2, False, {})
        assert (frame.chat_template, frame.add_bos) == ("{{ m }}", True)
        assert frame.chat_template_kwargs == {"enable_thinking": False}
        assert plan.need == engine_need(frame.args, WEIGHT_BYTES, cuda=False)
        assert (plan.shape != "", plan.canary) == (True, "")

    def test_threads_can_be_set(self, a: ExpertSpec) -> None:
        assert plans(a, cores=(2, 3), threads=1).plan("A").frame.threads == 1

    def test_a_plan_is_made_once(self, a: ExpertSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        made = plans(a)
        first = made.plan("A")
        monkeypatch.setattr(engine_plans, "shape_of", None)
        assert made.plan("A") is first

    def test_scheduling_is_told_sizes_and_shape(self, a: ExpertSpec) -> None:
        facts, plan = plans(a).facts("A"), plans(a).plan("A")
        assert (facts.weight_bytes, facts.kv_bytes_per_token, facts.shape) == (WEIGHT_BYTES, KV_BYTES, plan.shape)
        kv_bytes = plan.frame.args["kv_cache_memory_bytes"]
        assert isinstance(kv_bytes, int)
        assert facts.room == Room(32, kv_bytes // KV_BYTES)

    def test_in_32_bits_a_token_takes_twice_the_cache(self, a: ExpertSpec) -> None:
        made = plans(replace(a, max_model_len=200_000), dtype="float32")
        assert made.facts("A").kv_bytes_per_token == 2 * KV_BYTES
        assert made.plan("A").frame.args["kv_cache_memory_bytes"] == (200_000 + 32) * 2 * KV_BYTES

    def test_a_cpu_without_bfloat16_computes_in_32_bits(self, a: ExpertSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "cpu_dtype", lambda dtype: "float32" if dtype == "auto" else dtype)
        plan, facts = plans(a).plan("A"), plans(a).facts("A")
        assert plan.frame.args["dtype"] == "float32"
        assert plan.need == engine_need(plan.frame.args, WEIGHT_BYTES, cuda=False)
        assert (facts.weight_bytes, facts.kv_bytes_per_token) == (2 * WEIGHT_BYTES, 2 * KV_BYTES)
        assert size_of(a, cuda=False) == ModelSize(weight_bytes=2 * WEIGHT_BYTES, kv_bytes_per_token=2 * KV_BYTES)
        assert size_of(a, cuda=True) == ModelSize(weight_bytes=WEIGHT_BYTES, kv_bytes_per_token=KV_BYTES)
        assert plans(a, dtype="bfloat16").plan("A").frame.args["dtype"] == "bfloat16"
        assert plans(replace(a, engine_args={"dtype": "half"})).plan("A").frame.args["dtype"] == "half"
        on_a_gpu(monkeypatch)
        assert plans(a, cuda=True).plan("A").frame.args["dtype"] == "auto"

    def test_quantised_weights_stay_in_16_bits(
        self, a: ExpertSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(models, "cpu_dtype", lambda _: "float32")
        awq = replace(a, model=model(tmp_path / "awq", quantization_config={"quant_method": "awq"}))
        for spec in (awq, replace(a, engine_args={"quantization": "fp8"})):
            assert plans(spec).plan("A").frame.args["dtype"] == "auto"
            assert plans(spec).facts("A").weight_bytes == WEIGHT_BYTES

    def test_experts_without_files_are_named(self, a: ExpertSpec, tmp_path: Path) -> None:
        made = EnginePlans(
            [a, replace(a, name="X", model=str(tmp_path / "none"))], EngineSettings(), cores=(), cuda=False
        )
        assert list(made.problems(["A", "X"])) == ["X"]
        with pytest.raises(ResourceError):
            made.plan("X")

    def test_an_argument_that_vllm_does_not_have_is_a_problem_before_any_load(
        self, a: ExpertSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_arguments, "known_arguments", lambda: frozenset(["quantization"]))
        wrong = replace(a, model="nowhere/at-all", engine_args={"quantisation": "fp8"})
        right = replace(a, name="B", engine_args={"quantization": "fp8"})
        problems = EnginePlans([wrong, right], EngineSettings(), cores=(), cuda=False).problems(["A", "B"])
        assert list(problems) == ["A"]
        assert "did you mean pool.experts[A].engine_args.quantization?" in problems["A"]
        assert plans(wrong, kind="fake").problems(["A"]) == {}

    def test_a_fake_engine_needs_no_files(self) -> None:
        spec = ExpertSpec(name="A", model="nowhere/at-all", max_model_len=99)
        made = plans(spec, kind="fake", fake_tokens_per_s=5.0, fake_load_s=0.5)
        plan, facts = made.plan("A"), made.facts("A")
        assert plan.frame.fake == {"expert": spec.engine_key, "tokens_per_s": 5.0, "load_s": 0.5}
        assert (plan.key, plan.frame.args) == (spec.engine_key, {"max_model_len": 99})
        assert (plan.shape, plan.canary, plan.need, facts.shape) == ("", "", None, "")


class TestShape:
    def test_two_that_differ_in_weights_only_share_one_and_have_canaries(self, a: ExpertSpec, b: ExpertSpec) -> None:
        made = plans(a, b)
        one, two = made.plan("A"), made.plan("B")
        assert one.shape == two.shape != ""
        assert "" != one.canary != two.canary != ""
        assert one.key != two.key

    def test_one_without_a_sibling_has_no_canary(self, a: ExpertSpec, tmp_path: Path) -> None:
        other = ExpertSpec(name="C", model=model(tmp_path / "c", rms_norm_eps=1e-5), max_model_len=1024)
        made = plans(a, other)
        assert made.plan("A").shape != made.plan("C").shape
        assert (made.plan("A").canary, made.plan("C").canary) == ("", "")

    @pytest.mark.parametrize(
        "change",
        [
            {"chat_template": "{{ messages }}"},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"add_bos": True},
            {"max_model_len": 2048},
        ],
        ids=str,
    )
    def test_one_with_another_prompt_format_or_context_is_of_another(
        self, change: dict[str, Any], a: ExpertSpec, b: ExpertSpec
    ) -> None:
        """A reloaded engine goes on with the chat template and the BOS token that it was loaded with."""
        made = plans(a, replace(b, **change))
        assert made.plan("A").shape != made.plan("B").shape != ""

    def test_tied_embeddings_have_none_on_the_cpu(self, a: ExpertSpec, tmp_path: Path) -> None:
        tied = [ExpertSpec(name=n, model=model(tmp_path / n, tie_word_embeddings=True)) for n in ("t", "u")]
        assert [plans(*tied).plan(n).shape for n in ("t", "u")] == ["", ""]
        assert plans(*tied).plan("t").canary == ""


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str = "H100, driver 580.65.06") -> None:
    """A machine with a GPU of 80 GiB."""
    monkeypatch.setattr(engine_plans, "gpu_total_bytes", lambda index: 80 << 30)
    monkeypatch.setattr(engine_plans, "gpu_and_driver", lambda index: name)


class TestSleep:
    def test_engines_that_may_sleep_have_canaries(self, a: ExpertSpec) -> None:
        plan = plans(a, max_sleeping=1).plan("A")
        assert plan.canary != ""
        assert "enable_sleep_mode" not in plan.frame.args  # vLLM refuses it on the CPU

    @pytest.mark.parametrize("max_sleeping", [0, 1])
    def test_on_a_gpu_vllm_is_told(self, max_sleeping: int, a: ExpertSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        on_a_gpu(monkeypatch)
        plan = plans(a, cuda=True, max_sleeping=max_sleeping).plan("A")
        assert plan.frame.args["max_num_seqs"] == 512  # as large as it is
        assert plan.frame.args.get("enable_sleep_mode", False) is bool(max_sleeping)
        assert plan.need == engine_need(plan.frame.args, WEIGHT_BYTES, cuda=True, gpu_total_bytes=80 << 30)

    def test_another_gpu_or_driver_has_canaries_of_its_own(
        self, a: ExpertSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = set()
        for name in ("H100, driver 580.65.06", "H200, driver 580.65.06", "H100, driver 570.86.15"):
            on_a_gpu(monkeypatch, name)
            keys.add(plans(a, cuda=True, max_sleeping=1).plan("A").canary)
        assert len(keys) == 3


class TestLora:
    @pytest.fixture
    def family(self, a: ExpertSpec, tmp_path: Path) -> list[ExpertSpec]:
        adapters = {"x": adapter(tmp_path / "x", 8), "y": adapter(tmp_path / "y", 16)}
        return [a, *(replace(a, name=name, lora=str(folder)) for name, folder in adapters.items())]

    def test_a_base_and_its_adapters_are_one_engine(self, family: list[ExpertSpec], cache: Path) -> None:
        made = plans(*family)
        plan = made.plan("x")
        assert plan is made.plan("A") is made.plan("y")
        assert (plan.frame.args["enable_lora"], plan.frame.args["max_loras"]) == (True, 3)
        assert plan.frame.args["max_lora_rank"] == 16
        assert plan.shape == made.facts("y").shape == ""
        loras = dict(plan.frame.loras)
        zeros = Path(loras.pop(""))
        assert loras == {expert.name: expert.lora for expert in family[1:]}
        assert (zeros.is_relative_to(cache), (zeros / LORA_CONFIG).is_file()) == (True, True)

    def test_a_gpu_needs_no_zero_adapter(self, family: list[ExpertSpec], monkeypatch: pytest.MonkeyPatch) -> None:
        on_a_gpu(monkeypatch)
        frame = plans(*family, cuda=True).plan("A").frame
        assert (sorted(frame.loras), frame.args["max_loras"]) == (["x", "y"], 2)

    def test_one_whose_adapter_is_missing_is_named(self, family: list[ExpertSpec], tmp_path: Path) -> None:
        (tmp_path / "x" / LORA_CONFIG).unlink()
        made = EnginePlans(family, EngineSettings(), cores=(), cuda=False)
        assert list(made.problems(["A", "x", "y"])) == ["x"]
