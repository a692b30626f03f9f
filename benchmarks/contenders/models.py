"""The models that the benchmarks compare contenders on: copies of the project's own small models, made once, kept in
the cache folder beside them.

None of them has an end-of-sequence token, so that every contender generates exactly `max_tokens`, by its own means.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.models import prepare, prepared_folder
from symoe_ray.fingerprints import digest, seed_of

BASE = "smollm2-135m-instruct"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
RELATIVE_NOISE = 0.02
_ENDLESS: Mapping[str, Mapping[str, object]] = {
    "config.json": {"eos_token_id": None},
    "generation_config.json": {"eos_token_id": None},
    "tokenizer_config.json": {"eos_token": None},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A copy of the prepared model `base`. `noise` other than 0 is the seed of a change to its weights; `untied` gives
    it output weights of its own.

    On the CPU only untied models can be reloaded: the packed output weights of a tied one stay the old ones.
    """

    name: str
    base: str
    noise: int = 0
    untied: bool = False


SWAP = tuple(Variant(name=f"smollm2-untied-{letter}", base=BASE, noise=n, untied=True) for n, letter in enumerate("ab"))
_TINY = ("tiny-llama", "tiny-llama-b", "tiny-qwen2", "tiny-qwen3", "tiny-gemma2", "tiny-phi3", "tiny-mistral")
TINY = (
    *(Variant(name=base, base=base) for base in _TINY),
    Variant(name="tiny-qwen2-b", base="tiny-qwen2", noise=1),
)
SMALL = tuple(Variant(name=f"smollm2-{n}", base=BASE, noise=n) for n in range(8))
RESIDENTS = (  # what a pool holds before a stage: none of its experts
    Variant(name="tiny-resident", base="tiny-mistral", noise=1),
    Variant(name="smollm2-resident", base=BASE, noise=8),
)


def folder_of(variant: Variant) -> Path:
    """The variant's folder, made first if it is not there. It appears whole or not at all."""
    recipe = digest(asdict(variant), RELATIVE_NOISE, _ENDLESS, size=4)
    folder = prepared_folder(variant.base).parents[1] / "benchmarks" / f"{variant.name}-{recipe}"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(prepare(variant.base), partial, ignore=shutil.ignore_patterns("checksums.json"))
        for name, changes in _ENDLESS.items():
            _change_json(partial / name, changes)
        if variant.untied:
            _change_json(partial / "config.json", {"tie_word_embeddings": False})
        if variant.noise or variant.untied:
            _change_weights(partial / "model.safetensors", variant)
        partial.rename(folder)
    return folder


def _change_json(path: Path, changes: Mapping[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def _change_weights(path: Path, variant: Variant) -> None:
    """Rewrite a safetensors file. Noise is relative to each weight, so a change neither adds nor removes a zero."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = load_file(path)
    if variant.untied and HEAD not in tensors:
        tensors[HEAD] = tensors[EMBEDDING].clone()
    if variant.noise:
        generator = torch.Generator().manual_seed(seed_of("benchmark model", variant.name))
        for name in sorted(tensors):
            drawn = torch.randn(tensors[name].shape, generator=generator, dtype=torch.float32)
            tensors[name] = (tensors[name] * (1 + RELATIVE_NOISE * drawn)).to(tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})
