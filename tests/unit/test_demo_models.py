"""The shipped experts of the demo: whole folders, small, of one tokenizer, and some of one shape."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from actors.models import local_path, prepare_all, prepared_folder, weight_bytes
from actors.shapes import checkpoint_digest, why_not
from symoe_ray.config import load
from symoe_ray.demo_task import FAMILIES
from training.examples import answered, fixed_texts, question_of, training_items
from training.tokenizer import chat

EXPERTS = {expert.name: expert.model for expert in load(["pool=demo"]).pool.experts}
FOLDERS = {name: local_path(model) for name, model in EXPERTS.items()}


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_what_engines_load(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", False)
    assert 2_000_000 < weight_bytes(folder) < 4_000_000
    assert why_not(folder, {}, cuda=False) == ""


def test_all_together_are_under_30_megabytes() -> None:
    assert sum(path.stat().st_size for folder in FOLDERS.values() for path in folder.iterdir()) < 30_000_000


def test_architectures_differ_and_shapes_are_shared() -> None:
    types = {json.loads((folder / "config.json").read_text())["model_type"] for folder in FOLDERS.values()}
    assert len(types) >= 3
    assert max(Counter(map(checkpoint_digest, FOLDERS.values())).values()) >= 2
    weights = {(folder / "model.safetensors").read_bytes() for folder in FOLDERS.values()}
    assert len(weights) == len(FOLDERS)


def test_a_fixed_sentence_is_one_token_and_digits_letters_and_names_are_the_same_wherever_they_stand() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDERS["Generalist"] / "tokenizer.json"))
    assert all(len(tokenizer.encode(text).ids) == 1 for text in fixed_texts())
    assert tokenizer.encode("907 KTR Max").tokens == [*"907", "Ġ", *"KTR", "Ġ", "Max"]
    for family, item in islice(training_items("test", list(FAMILIES)), 100):
        prompt = answered(question_of(family, item), item).prompt
        assert tokenizer.decode(tokenizer.encode(prompt).ids) == prompt


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_transformers_takes_the_tokenizer_as_it_is_and_not_one_that_it_has_for_the_architecture(folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    ((family, item),) = islice(training_items("test", ["logic"]), 1)
    prompt = answered(question_of(family, item), item).prompt
    wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(chat(prompt)).ids
    chatted = [{"role": "user", "content": prompt}]
    loaded = AutoTokenizer.from_pretrained(str(folder))
    assert loaded.apply_chat_template(chatted, add_generation_prompt=True, return_dict=False) == wanted
    assert loaded.decode(wanted, skip_special_tokens=False) == chat(prompt)


def test_shipped_models_are_served_from_the_package_and_never_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYMOE_CACHE", str(tmp_path))
    prepare_all([model.removeprefix("package:") for model in EXPERTS.values()])
    assert list(tmp_path.iterdir()) == []
    assert {prepared_folder(model.removeprefix("package:")) for model in EXPERTS.values()} == set(FOLDERS.values())
