"""The demo's experts: what each learns, from whom it starts, and its shape, which those of one architecture share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from symoe_ray.demo_task import FAMILIES
from symoe_ray.fingerprints import seed_of

CONTEXT = 1024
_HEADS, _HEAD_SIZE = 5, 32
# Granite with biases of queries, keys and values, and with its multipliers as Llama has them. Not Qwen2, which is
# the same but for the output's bias: transformers gives that the tokenizer of Qwen2 whatever tokenizer.json says.
_OWN_SETTINGS = {
    "granite": {
        "attention_bias": True, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
        "attention_multiplier": _HEAD_SIZE**-0.5,
    }
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """One expert: `steps` of training on questions of its `families`.

    `base` names the expert whose weights it starts from ("": random ones); architectures may differ as long as the
    weights have the same names (what only the new one has, biases, starts at zero). `annotates` gives a fifth of its
    examples to naming skills; `aggregates`: it learns to write worked answers with drafts of others in sight. The first
    `recites` of its steps go to repeating what the prompt says: copying is half of every skill, and learned fastest so.
    """

    model_type: str
    families: tuple[str, ...] = ()
    base: str = "generalist"
    steps: int = 900
    recites: int = 0
    batch: int = 24
    annotates: bool = False
    aggregates: bool = False


EXPERTS: Mapping[str, Expert] = {
    "generalist": Expert(
        model_type="llama", families=tuple(FAMILIES), base="", steps=1000, recites=300, annotates=True
    ),
    "arithmetic": Expert(
        model_type="llama", families=("addition", "subtraction", "roman numerals", "roman numerals and addition")
    ),
    "measures": Expert(
        model_type="llama", families=("unit conversion", "unit conversion and addition", "addition", "calendar")
    ),
    "letters": Expert(model_type="granite", families=("strings", "strings", "roman numerals", "logic")),
    "science": Expert(model_type="granite", families=("elements", "elements and addition", "unit conversion")),
    "travel": Expert(model_type="mistral", families=("capitals", "calendar", "elements")),
    "detective": Expert(model_type="mistral", families=("logic", "subtraction", "capitals", "strings")),
    "editor": Expert(model_type="mistral", aggregates=True, steps=2400, batch=16),
}


def untrained(name: str, vocabulary: int, end: int, pad: int) -> Any:
    """A transformers model with random weights that the name alone determines.

    Input and output embeddings are not tied, but begin equal: what attention copies is then the same token.
    Attention is computed by plain matrix products: on short sequences torch's fused kernels are slower on a CPU.
    """
    model_type = EXPERTS[name].model_type
    config = AutoConfig.for_model(
        model_type, vocab_size=vocabulary, hidden_size=_HEADS * _HEAD_SIZE, intermediate_size=448,
        num_hidden_layers=4, num_attention_heads=_HEADS, num_key_value_heads=_HEADS, head_dim=_HEAD_SIZE,
        max_position_embeddings=CONTEXT, eos_token_id=end, pad_token_id=pad, bos_token_id=None,
        tie_word_embeddings=False, rope_theta=10000.0, sliding_window=None, **_OWN_SETTINGS.get(model_type, {}),
    )  # fmt: skip
    torch.manual_seed(seed_of("demo expert", name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    for parameter, weights in model.named_parameters():
        weights.requires_grad_(not parameter.endswith("o_proj.bias"))
    return model


def start_from(model: Any, base: Any) -> None:
    """Copy the weights of another expert. ValueError where one of these has no place in the model."""
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    if unexpected or any(not key.endswith(".bias") for key in missing):
        raise ValueError(f"{type(base).__name__} cannot start {type(model).__name__}: {[*missing, *unexpected]}")
