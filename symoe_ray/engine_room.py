"""How many sequences an engine works on at once: as many as it may, or as its KV cache holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean

from symoe_ray.length_estimates import SIGMA

PROMPT_TOKENS = 300.0  # of a prompt, where none was seen
GPU_ENGINE_BYTES = 1536 << 20  # what an engine has on a GPU beside weights and KV cache: activations and graphs
LARGE_GPU_BYTES = 70 << 30
_PARTS = 100


def gpu_sequences(gpu_bytes: int) -> int:
    """The most sequences in a step of a GPU of that memory, unless the settings say otherwise.

    vLLM's own default is 256, and 1,024 from 70 GiB on, but for the A100
    (https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/engine/arg_utils.py). Here it is half of that, on the A100
    too: an 8B model of short answers has room for 700 in 80 GB, and a step of up to 512 is a CUDA graph.
    """
    return 512 if gpu_bytes >= LARGE_GPU_BYTES else 256


@dataclass(frozen=True, slots=True)
class Room:
    """Of an engine: the most sequences in a step (`max_num_seqs`), and the tokens in its KV cache (0: not known)."""

    max_num_seqs: int
    kv_tokens: int = 0

    def sequences(self, prompt_tokens: float, answer_tokens: float, samples: float = 1.0) -> int:
        """How many sequences of these mean lengths run at once, where the `samples` of a request share its prompt.

        One at least.
        """
        if not self.kv_tokens:
            return self.max_num_seqs
        each = running_tokens(prompt_tokens / max(1.0, samples), answer_tokens)
        return max(1, min(self.max_num_seqs, int(self.kv_tokens / each)))


def running_tokens(prompt_tokens: float, answer_tokens: float, sigma: float = SIGMA) -> float:
    """KV cache of a sequence that is met in a running batch, in tokens, from the mean lengths of prompts and answers.

    It has written half its answer, and long answers are met more often: E[L^2] / (2 E[L]), which is half the mean times
    exp(sigma^2) where lengths are lognormal (inspection paradox).
    """
    return max(1.0, prompt_tokens + answer_tokens * math.exp(sigma**2) / 2)


@lru_cache(maxsize=256)
def last_over_mean(samples: float, sigma: float = SIGMA) -> float:
    """How many times as long as an answer the longest of so many is, on average: so long a request is at work.

    Of lognormal lengths: the mean of the quantiles u^(1/samples), for u in the middle of equal parts of (0, 1).
    """
    if samples <= 1:
        return 1.0
    normal = NormalDist(-(sigma**2) / 2, sigma)
    return fmean(math.exp(normal.inv_cdf(((i + 0.5) / _PARTS) ** (1 / samples))) for i in range(_PARTS))
