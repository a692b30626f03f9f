"""Which checkpoints may take each other's place in a live engine. Folders are made here: headers without tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from actors.shapes import checkpoint_digest, shape_of, why_not

ARGS: dict[str, object] = {"model": "x", "max_model_len": 1024, "dtype": "auto"}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "_name_or_path": "me/a",
}  # fmt: skip
TENSORS = {"model.embed_tokens.weight": [100, 64], "lm_head.weight": [100, 64]}


def write_tensors(path: Path, shapes: dict[str, list[int]], dtype: str = "BF16") -> None:
    header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def checkpoint(
    folder: Path, *, config: dict[str, Any] | None = None, tokenizer: str = "{}", **files: dict[str, Any]
) -> Path:
    """A folder; `config` changes keys of CONFIG (None removes one), `files` are JSON files beside."""
    folder.mkdir(exist_ok=True)
    merged = {key: value for key, value in (CONFIG | (config or {})).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(merged))
    (folder / "tokenizer.json").write_text(tokenizer)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    write_tensors(folder / "model.safetensors", TENSORS)
    return folder


def shape(folder: Path, args: dict[str, object] | None = None, *, cuda: bool = False, version: str = "0.32") -> str:
    return shape_of(folder, ARGS | (args or {}), vllm_version=version, cuda=cuda)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "a")


class TestSame:
    def test_names_and_spelling_do_not_count(self, base: Path, tmp_path: Path) -> None:
        other = {"_name_or_path": "me/b", "transformers_version": "5.1", "torch_dtype": None, "dtype": "bfloat16"}
        fine_tune = checkpoint(tmp_path / "b", config=other)
        assert shape(base) == shape(fine_tune, {"model": "y"}) != ""

    def test_how_the_weights_are_spread_over_files_does_not_count(self, base: Path, tmp_path: Path) -> None:
        sharded = checkpoint(tmp_path / "b")
        (sharded / "model.safetensors").unlink()
        names = {}
        for number, (name, size) in enumerate(TENSORS.items()):
            names[name] = f"model-{number}.safetensors"
            write_tensors(sharded / names[name], {name: size})
        write_tensors(sharded / "consolidated.safetensors", {"tok_embeddings.weight": [100, 64]})
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        assert shape(base) == shape(sharded)

    def test_a_nested_configuration_is_read_too(self, tmp_path: Path) -> None:
        text = {"hidden_size": 64, "tie_word_embeddings": False}
        one = checkpoint(tmp_path / "a", config={"text_config": text | {"torch_dtype": "torch.bfloat16"}})
        two = checkpoint(tmp_path / "b", config={"text_config": text | {"dtype": "bfloat16", "use_cache": True}})
        assert shape(one) == shape(two) != ""


class TestOther:
    @pytest.mark.parametrize(
        "changes",
        [
            {"config": {"rms_norm_eps": 1e-5}},
            {"config": {"rope_scaling": {"type": "linear", "factor": 2}}},
            {"config": {"sliding_window": 128}},
            {"config": {"torch_dtype": "float16"}},
            {"tokenizer": '{"version": "1"}'},
            {"tokenizer_config": {"chat_template": "{{ messages }}"}},
            {"tokenizer_config": {"eos_token": "</s>"}},
            {"generation_config": {"eos_token_id": [1, 2]}},
            {"hf_quant_config": {"quantization": {"quant_algo": "FP8"}}},
        ],
    )
    def test_whatever_stays_in_an_engine_counts(self, changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
        other = checkpoint(tmp_path / "b", **changes)
        assert shape(base, cuda=True) != shape(other, cuda=True) != ""

    def test_a_tokenizers_name_and_sampling_defaults_do_not(self, base: Path, tmp_path: Path) -> None:
        beside: dict[str, Any] = {"tokenizer_config": {"name_or_path": "b"}, "generation_config": {"temperature": 0.6}}
        assert shape(base) == shape(checkpoint(tmp_path / "b", **beside))

    @pytest.mark.parametrize(
        ("shapes", "dtype"),
        [({**TENSORS, "q.bias": [64]}, "BF16"), ({**TENSORS, "lm_head.weight": [101, 64]}, "BF16"), (TENSORS, "F16")],
    )
    def test_other_tensors_are_another_shape(
        self, shapes: dict[str, list[int]], dtype: str, base: Path, tmp_path: Path
    ) -> None:
        other = checkpoint(tmp_path / "b")
        write_tensors(other / "model.safetensors", shapes, dtype)
        assert shape(base) != shape(other) != ""

    def test_engine_arguments_vllm_and_device_count(self, base: Path) -> None:
        shapes = [
            shape(base),
            shape(base, {"max_model_len": 2048}),
            shape(base, version="0.33"),
            shape(base, cuda=True),
        ]
        assert len(set(shapes)) == 4

    def test_a_file_that_changes_is_read_again(self, base: Path) -> None:
        before = checkpoint_digest(base)
        (base / "tokenizer.json").write_text('{"added": true}')
        assert checkpoint_digest(base) != before


class TestNotReloadable:
    def refused(self, folder: Path, reason: str, *, cuda: bool = True, args: dict[str, object] | None = None) -> None:
        assert reason in why_not(folder, ARGS | (args or {}), cuda=cuda)
        assert shape(folder, args, cuda=cuda) == ""

    @pytest.mark.parametrize("tied", [True, None])
    def test_tied_embeddings_on_the_cpu(self, tied: bool | None, tmp_path: Path) -> None:
        folder = checkpoint(tmp_path / "a", config={"tie_word_embeddings": tied})
        self.refused(folder, "tied embeddings", cuda=False)
        assert shape(folder, cuda=True) != ""

    def test_a_head_that_is_not_in_the_files_is_tied_on_the_cpu(self, base: Path) -> None:
        write_tensors(base / "model.safetensors", {"model.embed_tokens.weight": [100, 64]})
        self.refused(base, "tied embeddings", cuda=False)

    @pytest.mark.parametrize(
        "config",
        [
            {"model_type": "mamba2"},
            {"model_type": "kimi_linear"},
            {"attn_type_list": [0, 1]},
            {"mamba_d_state": 16},
            {"ssm_cfg": {"layer": "Mamba1"}},
            {"hybrid_override_pattern": "M-M*"},
            {"layer_types": ["linear_attention", "full_attention"]},
            {"layers_block_type": ["attention", "recurrent"]},
            {"text_config": {"linear_num_value_heads": 4, "tie_word_embeddings": False}},
        ],
    )
    def test_recurrent_layers(self, config: dict[str, Any], tmp_path: Path) -> None:
        self.refused(checkpoint(tmp_path / "a", config=config), "layers")

    def test_plain_and_sliding_attention_may(self, tmp_path: Path) -> None:
        kinds = {"layer_types": ["sliding_attention", "full_attention"]}
        assert why_not(checkpoint(tmp_path / "a", config=kinds), ARGS, cuda=False) == ""

    @pytest.mark.parametrize(
        ("args", "reason"),
        [
            ({"enable_lora": True}, "LoRA"),
            ({"load_format": "dummy"}, "load_format dummy"),
            ({"speculative_config": {"model": "d"}}, "draft model"),
        ],
    )
    def test_engines_that_hold_more_than_the_weights(self, args: dict[str, object], reason: str, base: Path) -> None:
        self.refused(base, reason, args=args)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [({"quantization_config": {"quant_method": "awq"}}, "quantised"), ({"num_local_experts": 8}, "mixture")],
    )
    def test_what_the_cpu_packs_and_was_not_tried(self, config: dict[str, Any], reason: str, tmp_path: Path) -> None:
        folder = checkpoint(tmp_path / "a", config=config)
        self.refused(folder, reason, cuda=False)
        assert shape(folder, cuda=True) != ""

    def test_an_unknown_or_broken_folder(self, base: Path) -> None:
        (base / "config.json").write_text('{"model_type": "x"}')
        self.refused(base, "no architecture")
        (base / "config.json").write_text("{")
        self.refused(base, "config.json: cannot be read")
        (base / "config.json").unlink()
        self.refused(base, "no architecture")

    def test_a_download_that_was_cut_off(self, base: Path) -> None:
        names = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
        (base / "model.safetensors.index.json").write_text(json.dumps(names))
        self.refused(base, "model-1.safetensors is missing")
