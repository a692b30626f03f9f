"""LoRA experts: PEFT adapters over one base model, which share one engine and run in one batch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from actors.checkpoints import header, header_bytes, kept_sha256, read_json
from actors.models import local_path
from symoe_ray.core import ExpertSpec, InputError, ResourceError
from symoe_ray.fingerprints import digest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# MaxLoRARanks of https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/config/lora.py
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def adapter_path(spec: ExpertSpec) -> Path:
    """The folder of an expert's adapter, found as a model is; ResourceError where its two files are not there."""
    folder = local_path(spec.lora)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ResourceError(f"adapter {spec.lora} of expert {spec.name}: {folder} has no {name}")
    return folder


def adapter_rank(folder: Path) -> int:
    """The largest rank in an adapter: that of its configuration, or of a layer that has one of its own."""
    config = read_json(folder / CONFIG)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise ResourceError(f"{folder / CONFIG}: the ranks (r, rank_pattern) must be whole numbers greater than 0")
    return int(max(ranks))


def lora_args(folders: Sequence[Path], *, cuda: bool) -> dict[str, object]:
    """vLLM's engine arguments for a base model that serves these adapters in one batch.

    One place for each of `folders`, and on the CPU one more for the zero adapter (see `zero_adapter`). InputError for a
    rank above 512.
    """
    rank, folder = max((adapter_rank(folder), folder) for folder in folders)
    allowed = [possible for possible in RANKS if possible >= rank]
    if not allowed:
        raise InputError(f"adapter {folder} has rank {rank}; vLLM takes at most {RANKS[-1]}")
    return {"enable_lora": True, "max_loras": len(folders) + (0 if cuda else 1), "max_lora_rank": allowed[0]}


def zero_adapter(like: Path, into: Path) -> Path:
    """An adapter with the tensors of `like`, all zero: a folder under `into`, made where it is not there.

    On the CPU, vLLM 0.32 computes wrong tokens for rows without an adapter that are batched with rows that have one:
    their index -1 picks the adapter in the last place. Such rows are given this adapter instead.
    https://github.com/vllm-project/vllm/issues/48421
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/lora/ops/torch_ops/lora_ops.py
    """
    folder = into / digest(kept_sha256(like / CONFIG), dict(header(like / WEIGHTS)))
    if (folder / WEIGHTS).is_file():
        return folder
    into.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=into))
    try:
        shutil.copyfile(like / CONFIG, partial / CONFIG)
        _write_zeros(like / WEIGHTS, partial / WEIGHTS)
        partial.rename(folder)
    except OSError:
        if not (folder / WEIGHTS).is_file():  # else another process has just made it
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_zeros(like: Path, path: Path) -> None:
    """A safetensors file with the header of `like`; zero is all zero bits in every dtype."""
    begin = header_bytes(like)
    size = max((tensor["data_offsets"][1] for tensor in header(like).values()), default=0)
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(len(begin) + size)
