"""Where CPU and CUDA differ: engine arguments, environment and devices of a slot. Nothing else asks which one it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from actors.node_cache import cache_folder
from actors.nvml import gpu_count
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.engine_room import gpu_sequences
from symoe_ray.settings import EngineSettings

CPU_KV_BYTES = (64 << 20, 1 << 30)
CPU_KV_TOKENS_PER_SEQ = 1024
CPU_MAX_NUM_SEQS = 32
CPU_BLOCK_SIZE = 32
CPU_BATCHED_TOKENS = 2048
CUDA_BATCHED_TOKENS = 8192
MOST_IN_A_GRAPH = 512  # vLLM's own limit, but for Blackwell
GRAPH_SETTINGS = {"cudagraph_capture_sizes", "max_cudagraph_capture_size", "compilation_config"}
# 32 MiB is the largest threshold that glibc takes.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296"
SPIN_COUNT = "5000"


def visible_gpus() -> int:
    """NVIDIA GPUs that this process may use (0 without a driver); CUDA itself is not touched.

    Those that CUDA_VISIBLE_DEVICES names count without a driver, too: a slot that was given GPUs must say what is wrong
    with them, not go on without. Others are counted by NVML, as Ray does: /proc shows a container its host's.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() and d.strip() != "-1"])
    try:
        return gpu_count()
    except ResourceError:
        return 0


def cpu_dtype(dtype: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What `engine.dtype` comes to on the CPU: auto is the checkpoint's own where the CPU multiplies bfloat16 itself
    (AVX-512 BF16 or AMX, or BF16 of Arm), and float32 where vLLM's kernels would have to convert every number: with
    AVX2 alone an engine was 4.6 times as fast in float32 (benchmarks/README.md).
    """
    if dtype != "auto":
        return dtype
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    flags = {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}
    return "auto" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def engine_environment(offline: bool) -> dict[str, str]:
    """Environment of a zygote and its engines: one process, quiet, no usage statistics; `offline` without the hub.

    Large blocks of memory come in huge pages where the kernel lets a program ask for them: an engine's start and end
    are mostly page faults on the CPU, and they cost half as much. What a step has used is kept for the next one, or
    every step would pay for such pages again. OpenMP threads spin for a fraction of a millisecond when they wait:
    libgomp's own 300,000 rounds make an engine many times slower where anything else runs on its cores. CUDA counts the
    GPUs as NVML and Ray do, in the order of the PCI bus, not the fastest first. What vLLM and Triton compile lies where
    the models do, on the node's own disk and in a container's volume. FlashInfer's sampler is off: it cannot take
    requests with seeds, which all of ours have, yet its warm-up would need nvcc to compile it
    (https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/ops/topk_topp_sampler.py).
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "VLLM_USE_FLASHINFER_SAMPLER": os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", "0"),
        "VLLM_CACHE_ROOT": os.environ.get("VLLM_CACHE_ROOT", str(cache_folder() / "vllm")),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(cache_folder() / "triton")),
        # A zygote must have no threads: OpenBLAS starts some when NumPy is imported (torch does not use it), jemalloc
        # one when pyarrow is (transformers imports it where scikit-learn is installed).
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "1"),  # torch's allocator
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC),  # oneDNN's
    }
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
    return environment | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def engine_args(
    spec: ExpertSpec, path: str, settings: EngineSettings, *, cuda: bool, kv_bytes_per_token: int, gpu_bytes: int = 0
) -> dict[str, object]:
    """vLLM's engine arguments for an expert whose weights lie at `path`.

    The expert's own `engine_args` win. A folder that holds its model a second time in Mistral's own format is read as
    what it also is, a Hugging Face one: sizes, shapes and chat templates are taken from that.

    On a GPU of `gpu_bytes` a step has `gpu_sequences` and 8,192 tokens.

    On the CPU the defaults are small: eager (no compilation), 32 sequences and the KV cache for 1,024 tokens of each
    (`kv_bytes_per_token` times that, 64 MiB to 1 GiB), blocks of 32 tokens (vLLM's 128 leave short prompts without
    prefix sharing between samples). Prompts are prefilled in one piece there: where vLLM 0.32 splits one with a seed
    of its own, it rewinds the request's generator, and a CPU generator cannot be ("CPU Generator does not use offset",
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu_model_runner.py).
    """
    args: dict[str, object] = {
        "model": path,
        "max_model_len": spec.max_model_len,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "trust_remote_code": spec.trust_remote_code,
        "config_format": "hf",
        "tokenizer_mode": "hf",
        "load_format": "safetensors",
        "disable_log_stats": True,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "enforce_eager": (not cuda) if settings.enforce_eager is None else settings.enforce_eager,
        "distributed_executor_backend": "mp" if spec.tensor_parallel_size > 1 else "uni",
    }
    args |= _cuda_args(settings, gpu_bytes) if cuda else _cpu_args(spec, settings, kv_bytes_per_token)
    args |= dict(spec.engine_args)
    if cuda and not args["enforce_eager"] and not args.keys() & GRAPH_SETTINGS:
        args["cudagraph_capture_sizes"] = graph_sizes(int(str(args["max_num_seqs"])))
    return args


def graph_sizes(sequences: int) -> list[int]:
    """The batches that an engine of so many sequences captures CUDA graphs of: powers of two, then every 32nd, beyond
    256 every 64th.

    Each is captured at every start. vLLM would take 51 up to 512 sequences (every eighth, then every 16th:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/config/vllm.py), and reports of 8B models give 10 to 17 s for
    67 of them (vLLM issues 11005, 20264). A step is filled up to the next size, which costs little while it mostly
    reads weights. Not measured on a GPU.
    """
    most = min(sequences, MOST_IN_A_GRAPH)
    few = (n for n in (1, 2, 4, 8, 16) if n < most)
    return sorted({*few, *range(32, min(most, 256), 32), *range(256, most, 64), most})


def _cuda_args(settings: EngineSettings, gpu_bytes: int) -> dict[str, object]:
    sequences = settings.max_num_seqs or gpu_sequences(gpu_bytes)
    chosen: Mapping[str, object] = {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": max(CUDA_BATCHED_TOKENS, sequences),
        "kv_cache_memory_bytes": settings.kv_cache_memory_bytes or None,
        "block_size": settings.block_size or None,
    }
    return {key: value for key, value in chosen.items() if value is not None}


def _cpu_args(spec: ExpertSpec, settings: EngineSettings, kv_bytes_per_token: int) -> dict[str, object]:
    return {
        "kv_cache_memory_bytes": cpu_kv_bytes(spec, settings, kv_bytes_per_token),
        "max_num_seqs": settings.max_num_seqs or CPU_MAX_NUM_SEQS,
        "block_size": settings.block_size or CPU_BLOCK_SIZE,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, CPU_BATCHED_TOKENS),
    }


def cpu_kv_bytes(spec: ExpertSpec, settings: EngineSettings, kv_bytes_per_token: int) -> int:
    """Bytes of KV cache of an engine on the CPU; at least one full context."""
    sequences = settings.max_num_seqs or CPU_MAX_NUM_SEQS
    wanted = sequences * min(spec.max_model_len, CPU_KV_TOKENS_PER_SEQ) * kv_bytes_per_token
    low, high = CPU_KV_BYTES
    one_context = (spec.max_model_len + CPU_BLOCK_SIZE) * kv_bytes_per_token
    return settings.kv_cache_memory_bytes or max(one_context, min(max(wanted, low), high))


def cores_of(slot: int, slots: int) -> tuple[int, ...]:
    """The cores that the `slot`-th of `slots` engines on this machine runs on: an equal share, at least one."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // slots)
    start = (slot * share) % len(cores)
    return tuple(cores[start : start + share])
