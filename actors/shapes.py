"""Same-shape groups: checkpoints that differ in weights only, so that a live engine may take the other's weights.

A reload changes the weights and nothing else: tokenizer, chat template, end tokens, rope, norms, windows and graphs
stay those of the first checkpoint. So all of these must be equal, and the architecture must be one that reloads right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.checkpoints import kept_sha256, language_config, read_json, tensors, weight_files
from symoe_ray.core import ResourceError
from symoe_ray.fingerprints import digest

# What config.json says about where it came from, or how transformers (not vLLM) answers.
_NAMES = {
    "_name_or_path", "name_or_path", "transformers_version", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "_attn_implementation_autoset",
}  # fmt: skip
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model",
    "chat_template.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_TOKENIZER_KEYS = (
    "chat_template", "bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token",
    "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "add_prefix_space", "tokenizer_class",
    "clean_up_tokenization_spaces", "legacy",
)  # fmt: skip
_QUANTISATION_FILES = ("quantize_config.json", "hf_quant_config.json")
_LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "runai_streamer")
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention")
_LAYER_LISTS = ("layer_types", "layers_block_type", "block_types")
_RECURRENT = re.compile(
    r"mamba|(^|_)ssm|rwkv|(^|_)lru|linear_(num|key|value|conv|attn)|_linear$|conv_(L_cache|kernel)|hybrid_override|"
    r"lightning|attn_type_list"
)
_MIXTURE = re.compile(r"num_(local_|routed_)?experts|n_routed_experts|moe_")


def shape_of(folder: Path, args: Mapping[str, object], *, vllm_version: str, cuda: bool) -> str:
    """A digest that two checkpoints share if one may take the other's place in a live engine with these arguments.

    "" where reloading is known, or must be feared, to be wrong; `why_not` says why.
    """
    if why_not(folder, args, cuda=cuda):
        return ""
    return digest(checkpoint_digest(folder), {k: v for k, v in args.items() if k != "model"}, vllm_version, cuda)


def checkpoint_digest(folder: Path) -> str:
    """A digest of all of a checkpoint but the values of its weights."""
    generation = read_json(folder / "generation_config.json")
    tokenizer = read_json(folder / "tokenizer_config.json")
    return digest(
        _plain(read_json(folder / "config.json")),
        [read_json(folder / name) for name in _QUANTISATION_FILES],
        {name: kept_sha256(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()},
        {key: tokenizer[key] for key in _TOKENIZER_KEYS if key in tokenizer},
        generation.get("eos_token_id"),
        {path.name: kept_sha256(path) for path in sorted(folder.glob("*.py"))},  # code of trust_remote_code
        {name: [tensor["dtype"], tensor["shape"]] for name, tensor in tensors(folder).items()},
    )


def why_not(folder: Path, args: Mapping[str, object], *, cuda: bool) -> str:
    """Why the weights of a live engine must not be replaced by this checkpoint's, or others by them; "" if they may."""
    try:
        config = read_json(folder / "config.json")
        if not config.get("architectures") or not weight_files(folder):
            return "its config.json names no architecture, or there are no safetensors files"
        return (
            _engine_reason(args) or _architecture_reason(config) or ("" if cuda else _cpu_reason(folder, config, args))
        )
    except ResourceError as error:
        return str(error)


def _engine_reason(args: Mapping[str, object]) -> str:
    if args.get("enable_lora"):
        return "the engine serves LoRA adapters"
    if args.get("load_format", "auto") not in _LOAD_FORMATS:
        return f"load_format {args['load_format']} does not read safetensors again"
    if args.get("speculative_config"):
        return "a reload leaves the draft model of speculative decoding as it is"
    return ""


def _architecture_reason(config: Mapping[str, Any]) -> str:
    """Recurrent layers (state-space and others) are damaged: https://github.com/vllm-project/vllm/pull/48284."""
    for key, value in _items(config):
        kinds = set(value) - set(_ATTENTION) if key in _LAYER_LISTS and isinstance(value, list) else set()
        if kinds or (value and _RECURRENT.search(key)):
            return f"reloading damages layers that are not plain attention (config.json: {key})"
    if _RECURRENT.search(str(config.get("model_type", ""))):
        return f"reloading damages recurrent layers (model_type {config['model_type']})"
    return ""


def _cpu_reason(folder: Path, config: Mapping[str, Any], args: Mapping[str, object]) -> str:
    """Where vLLM 0.32 keeps packed copies of weights on the CPU that a reload does not renew, or may not."""
    tied = language_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings"))
    heads = [name for name in tensors(folder) if name.endswith("lm_head.weight")]
    if tied is not False or not heads:
        return (
            "on the CPU the packed copy of tied embeddings keeps the old weights (untied: config.json says "
            "tie_word_embeddings: false, and there is an lm_head.weight)"
        )
    if args.get("quantization") or any(key == "quantization_config" and value for key, value in _items(config)):
        return "reloading packed quantised weights on the CPU was not tried"
    if any(value and _MIXTURE.search(key) for key, value in _items(config)):
        return "reloading the packed experts of a mixture model on the CPU was not tried"
    return ""


def _items(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of a configuration with its value, nested ones too."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _items(value)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without names, with one spelling of the dtype. A null stays: it is not always the default."""
    plain: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("torch_dtype", "dtype"):
            plain["dtype"] = str(value).removeprefix("torch.")
        elif key not in _NAMES:
            plain[key] = _plain(value) if isinstance(value, Mapping) else value
    return plain
