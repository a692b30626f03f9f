"""LoRA adapters: found, measured, turned into engine arguments, and zeroed."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors import model_recipes
from actors.inspection import inspect_machine
from actors.lora import CONFIG, WEIGHTS, adapter_path, adapter_rank, lora_args, zero_adapter
from actors.model_recipes import RECIPES
from actors.tiny_models import TinyLora
from pipelines.run import generation_facts
from symoe_ray.config import load
from symoe_ray.core import ExpertSpec, InputError, ResourceError
from tests.unit.test_shapes import checkpoint


def adapter(folder: Path, rank: int = 8, **config: Any) -> Path:
    """An adapter of one layer of eight inputs, in two dtypes."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], **config}))
    a, b = np.full((rank, 8), 0.5, np.float32), np.full((8, rank), 2, np.float16)
    header = {
        "__metadata__": {"format": "pt"},
        "q_proj.lora_A.weight": {"dtype": "F32", "shape": list(a.shape), "data_offsets": [0, a.nbytes]},
        "q_proj.lora_B.weight": {
            "dtype": "F16", "shape": list(b.shape), "data_offsets": [a.nbytes, a.nbytes + b.nbytes],
        },
    }  # fmt: skip
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + a.tobytes() + b.tobytes())
    return folder


class TestPath:
    def spec(self, lora: str) -> ExpertSpec:
        return ExpertSpec(name="A", model="m", lora=lora)

    def test_a_folder_with_both_files(self, tmp_path: Path) -> None:
        assert adapter_path(self.spec(str(adapter(tmp_path / "a")))) == (tmp_path / "a").resolve()

    @pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
    def test_one_without_is_named(self, missing: str, tmp_path: Path) -> None:
        (adapter(tmp_path / "a") / missing).unlink()
        with pytest.raises(ResourceError, match=rf"adapter {tmp_path}/a of expert A: .* has no {missing}"):
            adapter_path(self.spec(str(tmp_path / "a")))


class TestArguments:
    @pytest.mark.parametrize(
        ("rank", "pattern", "largest"), [(8, {}, 8), (8, {"q_proj": 24}, 24), (16, {"q_proj": 4}, 16)]
    )
    def test_the_largest_rank_of_any_layer_counts(
        self, rank: int, pattern: dict[str, int], largest: int, tmp_path: Path
    ) -> None:
        assert adapter_rank(adapter(tmp_path / "a", rank, rank_pattern=pattern)) == largest

    @pytest.mark.parametrize("rank", [0, "8", None])
    def test_a_rank_that_is_none(self, rank: object, tmp_path: Path) -> None:
        folder = adapter(tmp_path / "a")
        (folder / CONFIG).write_text(json.dumps({"r": rank}))
        with pytest.raises(ResourceError, match="ranks"):
            adapter_rank(folder)

    @pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (65, 128), (257, 320), (512, 512)])
    def test_ranks_are_rounded_up_to_what_vllm_allows(self, rank: int, allowed: int, tmp_path: Path) -> None:
        folders = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", rank)]
        assert lora_args(folders, cuda=True) == {"enable_lora": True, "max_loras": 2, "max_lora_rank": allowed}

    def test_on_the_cpu_the_zero_adapter_has_its_place(self, tmp_path: Path) -> None:
        assert lora_args([adapter(tmp_path / "a")], cuda=False)["max_loras"] == 2

    def test_a_rank_beyond_vllms_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="a has rank 513; vLLM takes at most 512"):
            lora_args([adapter(tmp_path / "a", 513)], cuda=False)


class TestExpert:
    def test_experts_over_one_base_share_an_engine(self) -> None:
        base, a, b = (ExpertSpec(name=name, model="m", lora=lora) for name, lora in (("m", ""), ("a", "x"), ("b", "y")))
        assert base.engine_key == a.engine_key == b.engine_key
        assert base.engine_key != replace(a, max_model_len=1024).engine_key

    @pytest.fixture
    def pool(self, tmp_path: Path) -> str:
        """`pool=` of a file with one expert: an adapter over a model folder."""
        base = checkpoint(tmp_path / "base")
        text = f"name: p\nexperts: [{{name: A, model: {base}, lora: {adapter(tmp_path / 'adapter')}}}]\n"
        (tmp_path / "pool.yaml").write_text(text)
        return f"pool={tmp_path / 'pool.yaml'}"

    def test_a_run_remembers_the_adapter(self, pool: str, tmp_path: Path) -> None:
        assert generation_facts(load([pool]))["pool.A.lora"] == str(tmp_path / "adapter")

    def test_doctor_shows_it_or_says_that_it_is_missing(self, pool: str, tmp_path: Path) -> None:
        (found,) = (finding for finding in inspect_machine(load([pool])) if finding.what == "expert A")
        assert f"with adapter {tmp_path / 'adapter'}" in found.value
        shutil.rmtree(tmp_path / "adapter")
        (found,) = (finding for finding in inspect_machine(load([pool])) if finding.what == "expert A")
        assert not found.fine
        assert f"model {tmp_path / 'adapter'}: there is no such folder" in found.advice


class TestZeroAdapter:
    def test_it_has_the_same_tensors_all_zero(self, tmp_path: Path) -> None:
        like = adapter(tmp_path / "a")
        zeros, original = (load_file(folder / WEIGHTS) for folder in (zero_adapter(like, tmp_path / "z"), like))
        assert {name: (t.shape, t.dtype) for name, t in zeros.items()} == {
            name: (t.shape, t.dtype) for name, t in original.items()
        }
        assert not any(tensor.any() for tensor in zeros.values())
        assert all(tensor.all() for tensor in original.values())

    def test_it_is_made_once_and_anew_for_another_adapter(self, tmp_path: Path) -> None:
        into = tmp_path / "z"
        first = zero_adapter(adapter(tmp_path / "a"), into)
        time_ns = (first / WEIGHTS).stat().st_mtime_ns
        assert zero_adapter(tmp_path / "a", into) == first
        assert (first / WEIGHTS).stat().st_mtime_ns == time_ns
        assert zero_adapter(adapter(tmp_path / "b", 16), into) != first
        assert len(list(into.iterdir())) == 2

    def test_its_rank_is_that_of_its_model(self, tmp_path: Path) -> None:
        assert adapter_rank(zero_adapter(adapter(tmp_path / "a", 24), tmp_path / "z")) == 24

    def test_one_that_cannot_be_made_leaves_nothing(self, tmp_path: Path) -> None:
        like = adapter(tmp_path / "a")
        (like / WEIGHTS).write_bytes(b"\x01")
        with pytest.raises(ResourceError, match="no safetensors file"):
            zero_adapter(like, tmp_path / "z")
        assert not (tmp_path / "z").exists()


class TestRecipe:
    def test_both_adapters_stand_over_the_tiny_llama(self) -> None:
        assert {name for name, recipe in RECIPES.items() if isinstance(recipe, TinyLora)} == {
            "tiny-llama-lora-a",
            "tiny-llama-lora-b",
        }
        assert all(recipe.base in RECIPES for recipe in RECIPES.values() if isinstance(recipe, TinyLora))

    def test_their_weights_follow_from_the_name(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file
        from torch import zeros

        (base := tmp_path / "base").mkdir()
        save_file(
            {"model.layers.0.mlp.up_proj.weight": zeros(6, 4), "lm_head.weight": zeros(9, 4)},
            base / "model.safetensors",
        )
        made: dict[str, bytes] = {}
        for name in ("tiny-llama-lora-a", "tiny-llama-lora-b", "tiny-llama-lora-a"):
            folder = tmp_path / f"{len(made)}-{name}"
            folder.mkdir()
            model_recipes.build(name, folder, tmp_path, lambda _: base)
            made[folder.name] = (folder / WEIGHTS).read_bytes()
            assert adapter_rank(folder) == 8
            assert json.loads((folder / CONFIG).read_text())["target_modules"] == ["up_proj"]
        first, other, again = made.values()
        assert first == again != other
        assert b"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" in first
        assert b"lm_head" not in first
