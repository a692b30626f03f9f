"""How much memory an engine needs and how much is free, read again and again where it must be waited for.

Everything here only reads: /proc, the control groups, and NVML.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.nvml import gpu_memory
from actors.platform import visible_gpus
from symoe_ray.engine_room import GPU_ENGINE_BYTES

GIB = 1 << 30
CPU_ENGINE_BYTES = 512 << 20
CPU_COPIES_BYTES = 1 * GIB
CUDA_CONTEXT_BYTES = 768 << 20
CUDA_HOST_BYTES = 3 * GIB
CUDA_UTILIZATION = 0.92
PAGE_CACHE = ("inactive_file", "active_file")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of host memory, and of memory on each GPU of the engine; of a machine: the bytes that are free."""

    host_bytes: int
    gpu_bytes: int = 0


def engine_need(args: Mapping[str, object], weights_bytes: int, *, cuda: bool, gpu_total_bytes: int = 0) -> Need:
    """What an engine with these vLLM arguments takes at its peak, beyond what it shares with its zygote.

    Weights in 32 bits count twice (most checkpoints have 16).

    On the CPU: the weights, what oneDNN's packed copies leave behind (as much again, at most 1 GiB: the allocator gives
    larger pieces back at once), the KV cache, and 512 MiB for activations and Python. Measured beyond a zygote with the
    tokenizer loaded, in MiB, weights + KV -> peak: 12 + 64 -> 127, 256 + 64 -> 603, 256 + 512 -> 1,059, 511 + 64 ->
    1,431 (a vocabulary of 262,144). A spawned engine takes up to 400 more for its own tokenizer.

    On a GPU: the share of the weights, the KV cache and 1.5 GiB for graphs and activations, but never less than
    gpu_memory_utilization of `gpu_total_bytes`, without which vLLM does not start (request_memory,
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/utils.py), beside the CUDA context that the process
    has by then; in host memory 3 GiB of the process, and the weights one and a half times where the engine may sleep:
    vLLM copies them allocation by allocation into pinned memory, which torch hands out in powers of two
    (https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/device_allocator/cumem.py). Estimates, not measured.
    """
    kv = _number(args.get("kv_cache_memory_bytes"))
    if args.get("dtype") == "float32":
        weights_bytes *= 2
    if not cuda:
        copies = min(weights_bytes, CPU_COPIES_BYTES)
        return Need(host_bytes=weights_bytes + copies + int(kv) + CPU_ENGINE_BYTES)
    share = weights_bytes // max(1, int(_number(args.get("tensor_parallel_size"))))
    asked = int(gpu_total_bytes * (_number(args.get("gpu_memory_utilization")) or CUDA_UTILIZATION))
    asked = min(asked + CUDA_CONTEXT_BYTES, max(asked, gpu_total_bytes - CUDA_CONTEXT_BYTES))
    asleep = weights_bytes * 3 // 2 if args.get("enable_sleep_mode") else 0
    return Need(host_bytes=CUDA_HOST_BYTES + asleep, gpu_bytes=max(share + int(kv) + GPU_ENGINE_BYTES, asked))


def kv_room_bytes(args: Mapping[str, object], weights_bytes: int, *, cuda: bool, gpu_total_bytes: int = 0) -> int:
    """Bytes that an engine with these vLLM arguments will have for its KV cache, on all its GPUs (0: not known).

    On a GPU vLLM takes what gpu_memory_utilization leaves beside the weights and what a step needs.
    """
    devices = max(1, int(_number(args.get("tensor_parallel_size"))))
    if kv := int(_number(args.get("kv_cache_memory_bytes"))):
        return kv * devices
    if not cuda:
        return 0
    if args.get("dtype") == "float32":
        weights_bytes *= 2
    asked = int(gpu_total_bytes * (_number(args.get("gpu_memory_utilization")) or CUDA_UTILIZATION))
    return max(0, devices * (asked - GPU_ENGINE_BYTES) - weights_bytes)


def wake_need(need: Need) -> Need:
    """What an engine that sleeps takes to wake: its share of the GPU, but for the process and its graphs.

    These it has kept, and its host memory, too.
    """
    return Need(host_bytes=0, gpu_bytes=max(0, need.gpu_bytes - GPU_ENGINE_BYTES - CUDA_CONTEXT_BYTES))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def shortage(need: Need, free: Need) -> str:
    """One line that says what is missing and what to do; "" where the need fits."""
    missing = [
        f"{wanted / GIB:.2f} GiB of {kind} memory and {there / GIB:.2f} GiB are free"
        for kind, wanted, there in (
            ("host", need.host_bytes, free.host_bytes),
            ("GPU", need.gpu_bytes, free.gpu_bytes),
        )
        if wanted > there
    ]
    if not missing:
        return ""
    advice = "lower max_model_len, engine.kv_cache_memory_bytes or engine.max_num_seqs, or "
    if need.gpu_bytes > free.gpu_bytes:
        advice += "engine.gpu_memory_utilization, end what else runs on the GPU, or raise tensor_parallel_size"
    else:
        advice += "run fewer slots (engine.slots), or in 16 bits (engine.dtype=bfloat16)"
    return f"the engine needs {', and '.join(missing)}: {advice}"


async def until_free(need: Need, *, timeout_s: float, read: Callable[[], Need]) -> bool:
    """Whether `need` is free by the time-out; `read` tells what is free now, and is asked until it suffices."""
    clock = asyncio.get_running_loop().time
    deadline, wait = clock() + timeout_s, FIRST_WAIT_S
    while shortage(need, read()):
        if clock() >= deadline:
            return False
        await asyncio.sleep(min(wait, max(0.0, deadline - clock())))
        wait = min(2 * wait, LONGEST_WAIT_S)
    return True


def host_available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that this process may still take: MemAvailable, and what each of its control groups leaves.

    A group leaves its limit less its use, where page cache counts as free: the kernel gives it up first.
    """
    lines = (proc / "meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([available, *(_left(group) for group in _groups(proc, cgroups))]))


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of the memory control groups that hold this process, version 1 or 2, up to the root of each."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers in ("", "memory"):
            root = cgroups / "memory" if controllers else cgroups
            inside = path.strip("/")
            yield root
            yield from (root / part for part in [Path(inside), *Path(inside).parents] if str(part) != ".")


def _left(group: Path) -> int:
    """What a control group leaves, in bytes; without a limit, more than any machine has."""
    for limit, use, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            bound = int((group / limit).read_text())
            used = int((group / use).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return bound - used + sum(int(stat.get(prefix + key, 0)) for key in PAGE_CACHE)
    return 1 << 62


def free_memory(*, cuda: bool) -> Need:
    """What is free now: host memory, and with `cuda` the memory of the fullest GPU that this process may use."""
    gpus = range(max(1, visible_gpus())) if cuda else ()
    return Need(host_bytes=host_available_bytes(), gpu_bytes=min(map(gpu_free_bytes, gpus), default=0))


def gpu_free_bytes(index: int) -> int:
    """Free memory of the `index`-th GPU that this process may use; ResourceError where NVML or the GPU is missing."""
    return int(gpu_memory(index).free)


def gpu_total_bytes(index: int) -> int:
    """Memory of the `index`-th GPU that this process may use; ResourceError as in `gpu_free_bytes`."""
    return int(gpu_memory(index).total)
