"""What an engine costs in seconds: its load, and a step as a function of the batch. Priors, and what is learned.

A step of n running sequences takes step_s + sequence_s * n: all weights are read once whatever the batch, and every
sequence adds its own KV cache, its own arithmetic and its share of prefill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from symoe_ray.schedule_views import GroupView, SlotView

# NVIDIA H100 SXM data sheet: 3.35 TB/s of HBM3, 989 dense bf16 TFLOP/s. Decoding reaches about four fifths of the one,
# prefill about two fifths of the other.
GPU_MEMORY_BYTES_PER_S = 3.35e12 * 0.8
GPU_FLOPS = 989e12 * 0.4
# PCIe 5.0 x16: about 50 GB/s from pinned memory; from the page cache, through unpinned buffers, 5 to 10.
GPU_LOAD_BYTES_PER_S = 8e9
GPU_RELOAD_BYTES_PER_S = 8e9
GPU_WAKE_BYTES_PER_S = 50e9
# What a start takes besides the weights in a process that has vLLM imported: cached compilation and CUDA graphs.
GPU_START_S = 8.0
GPU_STEP_OVERHEAD_S = 0.9e-3
# vLLM's all-reduce between H100s of a node: 9 to 12 us, and 17 us a megabyte between two, twice that between four or
# eight (https://github.com/sgl-project/sglang/pull/2904). There are two a layer; Llama 3.1 8B has 32 layers of 4,096
# numbers, 70B 80 of 8,192, and other models are taken to grow likewise.
GPU_ALL_REDUCE_S = 10e-6
GPU_ALL_REDUCE_S_PER_BYTE = 17e-12
# Two desktop-class cores: SmolLM2-135M (0.27 GB) decodes 16 short sequences in 29 ms a step.
CPU_MEMORY_BYTES_PER_S = 20e9
CPU_FLOPS = 400e9
CPU_LOAD_BYTES_PER_S = 1e9
CPU_START_S = 0.45
CPU_STEP_OVERHEAD_S = 1.5e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCost:
    """Seconds of one engine key: to load it, to reload its weights into an engine of its shape, to wake it; a step of n
    sequences takes step_s + sequence_s * n.
    """

    load_s: float
    step_s: float
    sequence_s: float
    reload_s: float | None = None
    wake_s: float | None = None

    def write_s(self, tokens: float, batch: float) -> float:
        """Seconds in which so many sequences at a time write these tokens together."""
        return tokens * (self.step_s / max(batch, 1.0) + self.sequence_s)

    def generate_s(self, rows: int, tokens: float, longest: float, capacity: int) -> float:
        """Seconds in which one engine writes `tokens` in `rows` answers, `capacity` at once.

        The batch is full for tokens / capacity steps, but nothing says which rows are long: the last one to start may
        be the longest, so a group that outgrows the batch still ends with a whole tail.
        """
        if rows <= 0:
            return 0.0
        steps = longest + max(0.0, (tokens - capacity * tokens / rows) / capacity)
        return self.step_s * steps + self.sequence_s * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The costs of all engine keys; `default` for those that are not known."""

    by_key: Mapping[str, EngineCost]
    default: EngineCost

    def of(self, key: str) -> EngineCost:
        """The cost of a key."""
        return self.by_key.get(key, self.default)

    def swap_s(self, slot: SlotView, group: GroupView, groups: Mapping[str, GroupView]) -> float:
        """Seconds until a slot can generate with a group's engine: nothing, a reload, a wake or a load.

        The shape of a resident engine is known where its key has a group, if only one without rows.
        """
        cost = self.of(group.key)
        if slot.resident == group.key:
            return 0.0
        ways = [cost.load_s]
        resident = groups.get(slot.resident)
        if cost.reload_s is not None and group.shape and resident is not None and resident.shape == group.shape:
            ways.append(cost.reload_s)
        if cost.wake_s is not None and group.key in slot.asleep:
            ways.append(cost.wake_s)
        return min(ways)


def prior_cost(
    weight_bytes: int,
    kv_bytes_per_token: int,
    *,
    cuda: bool,
    context_tokens: float = 800.0,
    prompt_tokens: float = 300.0,
    answer_tokens: float = 400.0,
    gpus: int = 1,
) -> EngineCost:
    """The cost of an engine that has not run yet, from its model's size (16-bit weights) and the device's bandwidths.

    A step reads all weights once; each sequence reads the KV cache of its context (`context_tokens` on average), does
    two operations per parameter, and pays its share of its prompt's prefill. `gpus` of a tensor-parallel engine share
    the work and exchange activations twice a layer.
    """
    parameters = weight_bytes / 2
    if cuda:
        memory, flops, overhead = GPU_MEMORY_BYTES_PER_S * gpus, GPU_FLOPS * gpus, GPU_STEP_OVERHEAD_S
        load_s = GPU_START_S + weight_bytes / (GPU_LOAD_BYTES_PER_S * gpus)
        reload_s: float | None = 0.5 + weight_bytes / (GPU_RELOAD_BYTES_PER_S * gpus)
        wake_s: float | None = 0.2 + weight_bytes / (GPU_WAKE_BYTES_PER_S * gpus)
    else:
        memory, flops, overhead = CPU_MEMORY_BYTES_PER_S, CPU_FLOPS, CPU_STEP_OVERHEAD_S
        load_s = CPU_START_S + weight_bytes / CPU_LOAD_BYTES_PER_S
        reload_s, wake_s = 0.05 + weight_bytes / CPU_LOAD_BYTES_PER_S, None
    token_s, talk_s = 2 * parameters / flops, 0.0
    if cuda and gpus > 1:
        layers, width = 32 * (parameters / 8e9) ** 0.4, 4096 * (parameters / 8e9) ** 0.3
        overhead += 2 * layers * GPU_ALL_REDUCE_S
        talk_s = 2 * layers * 2 * width * GPU_ALL_REDUCE_S_PER_BYTE * (1 if gpus == 2 else 2)
    prefill_s = token_s * prompt_tokens / max(answer_tokens, 1.0)
    return EngineCost(
        load_s=load_s, step_s=weight_bytes / memory + overhead,
        sequence_s=context_tokens * kv_bytes_per_token / memory + token_s + talk_s + prefill_s,
        reload_s=reload_s, wake_s=wake_s,
    )  # fmt: skip


def learned(
    prior: EngineCost,
    *,
    observed_tokens: int = 0,
    observed_s: float = 0.0,
    mean_batch: float = 1.0,
    load_s: float | None = None,
) -> EngineCost:
    """The prior scaled by what was seen: `observed_tokens` in `observed_s` seconds of generation with `mean_batch`
    sequences at a time, and the median of the measured loads.
    """
    predicted_s = prior.write_s(observed_tokens, mean_batch)
    scale = observed_s / predicted_s if predicted_s > 0 and observed_s > 0 else 1.0
    return replace(
        prior, step_s=prior.step_s * scale, sequence_s=prior.sequence_s * scale,
        load_s=prior.load_s if load_s is None else load_s,
    )  # fmt: skip
