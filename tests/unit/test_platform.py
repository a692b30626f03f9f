"""Where CPU and CUDA differ: engine arguments, environment, cores, KV cache."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors import nvml
from actors.platform import (
    MALLOC,
    SPIN_COUNT,
    cores_of,
    cpu_dtype,
    cpu_kv_bytes,
    engine_args,
    engine_environment,
    visible_gpus,
)
from symoe_ray.core import ExpertSpec
from symoe_ray.planning import CPU_SEQUENCES
from symoe_ray.settings import EngineSettings

SPEC = ExpertSpec(name="A", model="org/a", max_model_len=2048)
PLAIN = EngineSettings()
MIB = 1 << 20


def args(
    spec: ExpertSpec = SPEC, settings: EngineSettings = PLAIN, *, cuda: bool, gpu_bytes: int = 0
) -> dict[str, object]:
    return engine_args(spec, "/models/a", settings, cuda=cuda, kv_bytes_per_token=1024, gpu_bytes=gpu_bytes)


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        ("flags\t\t: fpu avx2 fma\n", "float32"),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", "float32"),
        ("flags\t\t: fpu avx512f avx512_bf16\n", "auto"),
        ("processor\t: 0\nflags\t\t: amx_bf16 amx_tile\n", "auto"),
        ("Features\t: fp asimd bf16\n", "auto"),
        ("Features\t: fp asimd\n", "float32"),
        ("model name\t: a bf16 machine\n", "float32"),
    ],
)
def test_a_cpu_that_does_not_multiply_bfloat16_computes_in_float32(cpuinfo: str, dtype: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert cpu_dtype("auto", tmp_path / "cpuinfo") == dtype
    assert cpu_dtype("bfloat16", tmp_path / "cpuinfo") == "bfloat16"


class TestEngineArguments:
    def test_on_the_cpu_they_are_small_and_eager(self) -> None:
        assert args(cuda=False) == {
            "model": "/models/a",
            "max_model_len": 2048,
            "dtype": "auto",
            "seed": 0,
            "trust_remote_code": False,
            "config_format": "hf",
            "tokenizer_mode": "hf",
            "load_format": "safetensors",
            "disable_log_stats": True,
            "tensor_parallel_size": 1,
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
            "kv_cache_memory_bytes": 64 * MIB,
            "max_num_seqs": 32,
            "block_size": 32,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": 2048,
        }

    def test_on_cuda_vllm_sizes_the_kv_cache(self) -> None:
        assert args(cuda=True) == {
            "model": "/models/a",
            "max_model_len": 2048,
            "dtype": "auto",
            "seed": 0,
            "trust_remote_code": False,
            "config_format": "hf",
            "tokenizer_mode": "hf",
            "load_format": "safetensors",
            "disable_log_stats": True,
            "tensor_parallel_size": 1,
            "enforce_eager": False,
            "distributed_executor_backend": "uni",
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "gpu_memory_utilization": 0.9,
            "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256],
        }

    @pytest.mark.parametrize(
        ("sequences", "sizes"),
        [(1, [1]), (5, [1, 2, 4, 5]), (40, [1, 2, 4, 8, 16, 32, 40]), (64, [1, 2, 4, 8, 16, 32, 64])],
    )
    def test_graphs_are_captured_up_to_the_largest_batch(self, sequences: int, sizes: list[int]) -> None:
        assert args(settings=EngineSettings(max_num_seqs=sequences), cuda=True)["cudagraph_capture_sizes"] == sizes
        own = replace(SPEC, engine_args={"max_num_seqs": sequences})
        assert args(own, cuda=True)["cudagraph_capture_sizes"] == sizes

    def test_larger_batches_than_vllm_captures_run_without_a_graph(self) -> None:
        sizes = args(settings=EngineSettings(max_num_seqs=10_000), cuda=True)["cudagraph_capture_sizes"]
        assert isinstance(sizes, list)
        assert (sizes[-1], len(sizes)) == (512, 17)

    @pytest.mark.parametrize(
        "own",
        [{"cudagraph_capture_sizes": [8]}, {"max_cudagraph_capture_size": 8}, {"compilation_config": {"mode": 3}}],
    )
    def test_graphs_are_as_an_expert_has_them(self, own: dict[str, object]) -> None:
        found = args(replace(SPEC, engine_args=own), cuda=True)
        assert {key: value for key, value in found.items() if key in own} == own
        assert ("cudagraph_capture_sizes" in found) == ("cudagraph_capture_sizes" in own)

    def test_without_graphs_none_are_captured(self) -> None:
        assert "cudagraph_capture_sizes" not in args(settings=EngineSettings(enforce_eager=True), cuda=True)
        assert "cudagraph_capture_sizes" not in args(cuda=False)

    def test_a_step_has_room_for_a_token_of_every_sequence(self) -> None:
        found = args(settings=EngineSettings(max_num_seqs=10_000), cuda=True)
        assert (found["max_num_seqs"], found["max_num_batched_tokens"]) == (10_000, 10_000)

    @pytest.mark.parametrize(("gpu_bytes", "sequences"), [(0, 256), (48 << 30, 256), (80 << 30, 512), (141 << 30, 512)])
    def test_large_gpus_take_more_sequences(self, gpu_bytes: int, sequences: int) -> None:
        assert args(cuda=True, gpu_bytes=gpu_bytes)["max_num_seqs"] == sequences
        assert args(settings=EngineSettings(max_num_seqs=7), cuda=True, gpu_bytes=gpu_bytes)["max_num_seqs"] == 7

    def test_a_plan_counts_on_as_many_sequences_as_engines_take(self) -> None:
        assert args(cuda=False)["max_num_seqs"] == CPU_SEQUENCES

    def test_settings_decide_on_both(self) -> None:
        settings = EngineSettings(
            dtype="float32", seed=5, max_num_seqs=4, kv_cache_memory_bytes=123, block_size=16,
            gpu_memory_utilization=0.5,
        )  # fmt: skip
        for cuda in (False, True):
            found = args(settings=settings, cuda=cuda)
            assert (found["dtype"], found["seed"], found["max_num_seqs"]) == ("float32", 5, 4)
            assert (found["kv_cache_memory_bytes"], found["block_size"]) == (123, 16)
        assert args(settings=settings, cuda=True)["gpu_memory_utilization"] == 0.5
        assert "gpu_memory_utilization" not in args(settings=settings, cuda=False)

    @pytest.mark.parametrize("cuda", [False, True])
    @pytest.mark.parametrize("eager", [False, True])
    def test_eager_is_as_set_where_it_is_set(self, cuda: bool, eager: bool) -> None:
        assert args(settings=EngineSettings(enforce_eager=eager), cuda=cuda)["enforce_eager"] is eager

    def test_the_experts_own_arguments_win(self) -> None:
        own = {
            "dtype": "float16", "enforce_eager": True, "quantization": "fp8", "max_num_seqs": 512,
            "max_num_batched_tokens": 16384, "load_format": "bitsandbytes", "tokenizer_mode": "mistral",
        }  # fmt: skip
        assert own.items() <= args(replace(SPEC, engine_args=own), EngineSettings(dtype="float32"), cuda=True).items()

    def test_an_engine_over_several_gpus_has_processes_of_its_own(self) -> None:
        found = args(replace(SPEC, tensor_parallel_size=2), cuda=True)
        assert (found["tensor_parallel_size"], found["distributed_executor_backend"]) == (2, "mp")

    @pytest.mark.parametrize(("context", "batch"), [(512, 2048), (2048, 2048), (8192, 8192)])
    def test_on_the_cpu_a_whole_context_is_prefilled_in_one_piece(self, context: int, batch: int) -> None:
        assert args(replace(SPEC, max_model_len=context), cuda=False)["max_num_batched_tokens"] == batch


class TestKvCache:
    @pytest.mark.parametrize(
        ("context", "sequences", "per_token", "expected"),
        [
            (2048, 0, 8192, 32 * 1024 * 8192),  # 1,024 tokens of each of 32 sequences: 256 MiB
            (512, 0, 8192, 32 * 512 * 8192),  # a shorter context: that of each
            (2048, 4, 32768, 4 * 1024 * 32768),
            (2048, 0, 1024, 64 * MIB),  # 32 MiB would do
            (2048, 0, 131072, 1024 * MIB),  # 4 GiB would be wanted
            (32768, 0, 131072, (32768 + 32) * 131072),  # one full context and a block more: over 4 GiB
        ],
    )
    def test_holds_every_sequence_within_bounds_and_one_context_always(
        self, context: int, sequences: int, per_token: int, expected: int
    ) -> None:
        spec, settings = replace(SPEC, max_model_len=context), EngineSettings(max_num_seqs=sequences)
        assert cpu_kv_bytes(spec, settings, per_token) == expected

    def test_is_as_set_where_it_is_set(self) -> None:
        assert cpu_kv_bytes(SPEC, EngineSettings(kv_cache_memory_bytes=5), 131072) == 5


class TestCores:
    @pytest.mark.parametrize(
        ("cores", "slots", "expected"),
        [
            ({0, 1, 2, 3}, 1, [(0, 1, 2, 3)]),
            ({0, 1, 2, 3}, 2, [(0, 1), (2, 3)]),
            ({1, 4, 6, 7, 9}, 2, [(1, 4), (6, 7)]),
            ({0, 1}, 3, [(0,), (1,), (0,)]),
            ({5}, 2, [(5,), (5,)]),
        ],
    )
    def test_are_shared_out_evenly_over_the_slots(
        self, cores: set[int], slots: int, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
        assert [cores_of(slot, slots) for slot in range(slots)] == expected


class TestEnvironment:
    def test_no_zygote_asks_the_hub_once_weights_are_here(self) -> None:
        assert engine_environment(offline=True)["HF_HUB_OFFLINE"] == "1"
        assert "HF_HUB_OFFLINE" not in engine_environment(offline=False)

    def test_gpus_are_counted_as_nvml_and_ray_count_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
        assert engine_environment(offline=True)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"

    def test_what_engines_compile_lies_where_the_models_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYMOE_CACHE", "/cache")
        monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
        monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
        environment = engine_environment(offline=True)
        assert (environment["VLLM_CACHE_ROOT"], environment["TRITON_CACHE_DIR"]) == ("/cache/vllm", "/mine")

    def test_the_sampler_that_needs_a_compiler_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
        assert engine_environment(offline=True)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"

    def test_engines_are_one_process_and_quiet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
        environment = engine_environment(offline=False)
        assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert environment["VLLM_NO_USAGE_STATS"] == "1"
        assert environment["VLLM_LOGGING_LEVEL"] == "WARNING"
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
        assert engine_environment(offline=False)["VLLM_LOGGING_LEVEL"] == "DEBUG"

    @pytest.mark.parametrize("library", ["numpy", "pyarrow", "scipy.linalg"])
    def test_libraries_start_no_threads_when_they_are_imported(self, library: str) -> None:
        code = f"import os, {library}; print(len(os.listdir('/proc/self/task')))"
        environment = {**os.environ, **engine_environment(offline=True)}
        counted = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        assert int(counted.stdout) == 1

    @pytest.mark.parametrize("theirs", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
    def test_threads_spin_for_a_moment_unless_the_caller_says_how_they_wait(
        self, theirs: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            monkeypatch.delenv(name, raising=False)
        assert engine_environment(offline=True)["GOMP_SPINCOUNT"] == SPIN_COUNT
        monkeypatch.setenv(theirs, "PASSIVE")
        assert "GOMP_SPINCOUNT" not in engine_environment(offline=True)

    def test_memory_comes_in_huge_pages_unless_the_caller_says_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, ours, theirs in (
            ("THP_MEM_ALLOC_ENABLE", "1", "0"),
            ("GLIBC_TUNABLES", MALLOC, "glibc.malloc.arena_max=2"),
        ):
            monkeypatch.delenv(name, raising=False)
            assert engine_environment(offline=True)[name] == ours
            monkeypatch.setenv(name, theirs)
            assert engine_environment(offline=True)[name] == theirs

    @pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1, 3", 3), ("GPU-abc,", 1)])
    def test_visible_gpus_are_those_of_the_environment(
        self, visible: str, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert visible_gpus() == count


class Nvml:
    """NVML of a machine with two GPUs; it notes how often it is started."""

    class NVMLError(Exception):
        """NVML's own."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.starts = fails_at, 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's spelling
        self.starts += 1
        if self.fails_at == "start":
            raise self.NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.fails_at == "count":
            raise self.NVMLError("Driver Not Loaded")
        return 2


class TestGpusOfTheDriver:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        nvml._nvml.cache_clear()
        yield
        nvml._nvml.cache_clear()

    def test_without_the_variable_nvml_counts_and_is_started_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        driver = Nvml()
        monkeypatch.setattr(nvml, "_nvml_module", lambda: driver)
        assert (visible_gpus(), visible_gpus(), driver.starts) == (2, 2, 1)

    @pytest.mark.parametrize("fails_at", ["start", "count"])
    def test_a_driver_that_does_not_answer_has_none_but_those_that_were_given(
        self, fails_at: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nvml, "_nvml_module", lambda: Nvml(fails_at))
        assert visible_gpus() == 0
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert visible_gpus() == 1

    def test_without_a_module_for_nvml_there_are_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert visible_gpus() == 0
