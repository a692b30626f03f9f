"""A checkpoint that names SentencePiece's class beside a byte-level tokenizer keeps the spaces of its prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from actors.engine import SPACED, _check_spaces
from actors.tokenizer_repair import sound_tokenizer

TEXT = "Hey, are you conscious?\n  x = 3.14"


def put_model(folder: Path, *, tokenizer_class: str, byte_level: bool = True) -> Path:
    """A model's folder, of which only the tokenizer is there."""
    made = Tokenizer(models.BPE())
    pre: Any = pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.Metaspace()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre])
    made.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else ["▁"]
    made.train_from_iterator([TEXT, SPACED], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_the_copy_reads_what_the_file_says(name: str, tmp_path: Path) -> None:
    model = put_model(tmp_path / "model", tokenizer_class=name)
    folder = sound_tokenizer(model, tmp_path / "cache")
    assert folder is not None
    assert folder == sound_tokenizer(model, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode(TEXT) == Tokenizer.from_file(str(model / "tokenizer.json")).encode(TEXT).ids
    assert tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], tokenize=False) == TEXT
    _check_spaces(tokenizer)


def test_others_are_left_as_they_are(tmp_path: Path) -> None:
    for name, byte_level in (("PreTrainedTokenizerFast", True), ("GPT2Tokenizer", True), ("LlamaTokenizer", False)):
        model = put_model(tmp_path / f"{name}-{byte_level}", tokenizer_class=name, byte_level=byte_level)
        assert sound_tokenizer(model, tmp_path / "cache") is None
    (tmp_path / "empty").mkdir()
    assert sound_tokenizer(tmp_path / "empty", tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def test_another_configuration_of_the_same_tokenizer_is_another_copy(tmp_path: Path) -> None:
    model = put_model(tmp_path / "model", tokenizer_class="LlamaTokenizer")
    before = sound_tokenizer(model, tmp_path / "cache")
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"bos_token": "x"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert sound_tokenizer(model, tmp_path / "cache") != before


def test_an_engine_whose_tokenizer_loses_spaces_does_not_start() -> None:
    class Broken:
        def encode(self, text: str, **_: object) -> list[str]:
            return text.split()

        def decode(self, ids: list[str], **_: object) -> str:
            return "".join(ids)

    with pytest.raises(ValueError, match=r"the tokenizer \(Broken\) reads 'one two.* as 'onetwothree'"):
        _check_spaces(Broken())
