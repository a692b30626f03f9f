"""Random models and adapters for tests of the machinery: a few layers, and weights from a seed that the name gives.

torch and transformers are imported only while one is made.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from symoe_ray.fingerprints import seed_of

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """Two random layers of an architecture with another model's tokenizer: for tests of the machinery."""

    model_type: str
    tokenizer_of: str
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyLora:
    """A random PEFT adapter over a tiny model, large enough to change most of its greedy tokens: for the same tests."""

    base: str
    rank: int = 8


def make_tiny(name: str, recipe: TinyModel, folder: Path, tokenizer: Path) -> None:
    """Random weights from a seed that the name alone determines."""
    log.info("%s: making random weights", name)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": False,
        "initializer_range": 0.2,  # wide enough for a clear most likely token
    }  # fmt: skip
    config = AutoConfig.for_model(recipe.model_type, **{**shape, **recipe.config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("tiny model", name))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    save_model(model, folder)
    for file in TOKENIZER_FILES:
        shutil.copy(tokenizer / file, folder)


def make_lora(name: str, recipe: TinyLora, folder: Path, base: Path) -> None:
    """A and B of every linear layer, normal with the base's own deviation, from a seed that the name alone determines.

    As PEFT writes them: A is [rank, in], B is [out, rank], and the layer adds alpha / rank x B A.
    """
    log.info("%s: making a random adapter", name)
    import torch
    from safetensors.torch import load_file, save_file

    linear = {
        key.removesuffix(".weight"): weight.shape
        for key, weight in load_file(base / "model.safetensors").items()
        if key.endswith("_proj.weight")
    }
    made = {}
    generator = torch.Generator().manual_seed(seed_of("tiny adapter", name))
    for layer, (out, into) in sorted(linear.items()):
        for part, shape in (("lora_A", (recipe.rank, into)), ("lora_B", (out, recipe.rank))):
            values = 0.2 * torch.randn(shape, generator=generator)
            made[f"base_model.model.{layer}.{part}.weight"] = values.to(torch.bfloat16)
    save_file(made, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": f"package:{recipe.base}",
        "r": recipe.rank, "lora_alpha": 2 * recipe.rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({layer.rsplit(".", 1)[-1] for layer in linear}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


def save_model(model: Any, folder: Path) -> None:
    """Write a transformers model, without the name of where it came from: equal shapes have equal config.json."""
    model.config.name_or_path = ""
    model.save_pretrained(folder)
