"""What is read ahead of an engine's load."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import read_ahead as module
from actors.read_ahead import read_ahead


def test_weights_configuration_and_tokenizer_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 8)
    sizes = {"a.safetensors": 20, "b.safetensors": 8, "config.json": 3, "tokenizer.model": 1, "empty.json": 0}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert read_ahead(tmp_path) == 32


def test_what_no_engine_loads_is_left_alone(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.gguf", "README.md"):
        (tmp_path / name).write_bytes(bytes(100))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.safetensors").write_bytes(bytes(100))
    (tmp_path / "runs.json").mkdir()
    assert read_ahead(tmp_path) == 0


def test_weights_that_are_there_a_second_time_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_bytes(bytes(100))
    (tmp_path / "model-1.safetensors").write_bytes(bytes(20))
    assert read_ahead(tmp_path) == 20
    index = '{"weight_map": {"w": "model-2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "model-2.safetensors").write_bytes(bytes(5))
    assert read_ahead(tmp_path) == 5 + len(index)


def test_a_folder_of_links_is_read_through(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blob").write_bytes(bytes(7))
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blob")
    assert read_ahead(tmp_path / "snapshot") == 7


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ahead(tmp_path / "none")
