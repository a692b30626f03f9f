"""Canaries: what a freshly loaded engine answers to a fixed prompt, kept to recognise its weights again.

After a reload or a wake the engine is asked the same; another answer means other weights than the expert's, and the
engine is given up before it serves a token.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.checkpoints import weight_files
from actors.node_cache import cache_folder
from actors.shapes import checkpoint_digest
from symoe_ray.fingerprints import digest

PROMPT = "Rain, 1969; def f(x): because Ada said"  # hard to continue: small changes of weights show
NUM_TOKENS = 8
# On a CPU the same weights gave the same bits, whatever the threads; a GPU may differ in the last ones.
TOLERANCE = 0.02
# Arguments with which one prompt alone is answered the same.
_WITHOUT_EFFECT = {
    "model", "served_model_name", "seed", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes",
    "gpu_memory_utilization", "enable_sleep_mode", "disable_log_stats", "safetensors_load_strategy",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Canary:
    """The tokens of a greedy answer, and the natural logarithm of each one's probability."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def agrees(expected: Canary, seen: Canary, other: Canary | None = None, tolerance: float = TOLERANCE) -> bool:
    """Whether an engine that answered `seen` holds the weights that answered `expected`.

    The tokens are equal, each logprob is within `tolerance`, and `other`, the outgoing expert's canary, is not nearer:
    fine-tunes of one base may answer a prompt with the same tokens.
    """
    gap = distance(expected, seen)
    return (
        bool(expected.tokens)
        and math.isfinite(gap)
        and gap <= tolerance
        and (other is None or gap <= distance(other, seen))
    )


def distance(one: Canary, another: Canary) -> float:
    """The largest difference of two canaries' logprobs; infinite where tokens differ or a logprob is no number."""
    if one.tokens != another.tokens or len(one.logprobs) != len(another.logprobs):
        return math.inf
    gaps = [abs(a - b) for a, b in zip(one.logprobs, another.logprobs, strict=True)]
    return max(gaps, default=0.0) if all(map(math.isfinite, gaps)) else math.inf


def canary_key(folder: Path, args: Mapping[str, object], *software: str) -> str:
    """What a canary depends on: the very weight files (name, size, mtime), the rest of the checkpoint, arguments.

    And `software`: vLLM's version, and the GPU with its driver.
    """
    stats = [(path.name, path.stat()) for path in weight_files(folder)]
    return digest(
        [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        checkpoint_digest(folder),
        {key: value for key, value in args.items() if key not in _WITHOUT_EFFECT},
        software,
        [PROMPT, NUM_TOKENS],
    )


def default_folder() -> Path:
    """Where canaries are kept."""
    return cache_folder() / "canaries"


class CanaryBook:
    """Canaries on disk, one file for each key. Any number of processes may use one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Canary | None:
        """The canary of that key; None where there is none, or its file is damaged."""
        try:
            read = json.loads((self._folder / f"{key}.json").read_bytes())
            canary = Canary(tuple(map(int, read["tokens"])), tuple(map(float, read["logprobs"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = (
            canary.tokens and len(canary.tokens) == len(canary.logprobs) and all(map(math.isfinite, canary.logprobs))
        )
        return canary if whole else None

    def put(self, key: str, canary: Canary) -> None:
        """Keep a canary: the file appears whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"tokens": canary.tokens, "logprobs": canary.logprobs})
        descriptor, partial = tempfile.mkstemp(prefix=f".{key}.", dir=self._folder)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            os.replace(partial, self._folder / f"{key}.json")
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
