"""The prepared models as transformers and the embedder see them (no vLLM here)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.embedding import MiniLM, embedder
from actors.model_recipes import RECIPES
from actors.models import prepared_folder, weight_bytes
from actors.tiny_models import TinyModel

TINY = [name for name, recipe in RECIPES.items() if isinstance(recipe, TinyModel)]


def prepared(name: str) -> Path:
    """A prepared model's folder; the test is skipped where `make setup` has not made it."""
    folder = prepared_folder(name)
    if not folder.is_dir():
        pytest.skip(f"package:{name} is not prepared (make setup)")
    return folder


def continuation(folder: Path, token_ids: list[int], num_tokens: int) -> str:
    """The greedy continuation of a prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([token_ids])
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=num_tokens, do_sample=False)
    text: str = AutoTokenizer.from_pretrained(folder).decode(made[0, len(token_ids) :], skip_special_tokens=True)
    return text


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
def test_smollm2_answers_through_its_chat_template() -> None:
    folder = prepared("smollm2-135m-instruct")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer_of(folder).apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    assert "Paris" in continuation(folder, ids, 24)


@pytest.mark.slow
def test_gemma_completes_text() -> None:
    folder = prepared("gemma3-270m")
    assert "Paris" in continuation(folder, tokenizer_of(folder)("The capital of France is the city of").input_ids, 8)


def test_gemmas_tokenizer_puts_bos_first() -> None:
    tokenizer = tokenizer_of(prepared("gemma3-270m"))
    assert tokenizer("x").input_ids == [2, 236781]
    assert tokenizer("x", add_special_tokens=False).input_ids == [236781]


def test_smollm2s_tokenizer_reads_digits_singly_and_keeps_control_tokens_whole() -> None:
    tokenizer = tokenizer_of(prepared("smollm2-135m-instruct"))
    assert tokenizer.tokenize("12345 + 67") == ["1", "2", "3", "4", "5", "Ġ+", "Ġ", "6", "7"]
    assert tokenizer("<|im_start|>user<|im_end|>").input_ids[0::2] == [1, 2]


def test_smollm2s_weights_are_bfloat16_and_stay_tied() -> None:
    folder = prepared("smollm2-135m-instruct")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    # A vocabulary of 49,152 x 576; 30 layers with q and o 576 x 576, k and v 576 x 192, three of 576 x 1,536 and two
    # norms of 576; a last norm of 576: 134,515,008 weights of two bytes.
    per_layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert weight_bytes(folder) == 2 * (49152 * 576 + 30 * per_layer + 576) == 269_030_016


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_share_a_tokenizer_and_generate(name: str) -> None:
    folder = prepared(name)
    assert (folder / "tokenizer.json").read_bytes() == (
        prepared("smollm2-135m-instruct") / "tokenizer.json"
    ).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert len(config["architectures"]) == 1
    assert continuation(folder, [1, 100, 200], 4)


def test_the_two_tiny_llamas_differ_in_weights_only() -> None:
    first, second = prepared("tiny-llama"), prepared("tiny-llama-b")
    assert (first / "config.json").read_bytes() == (second / "config.json").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()
    assert json.loads((first / "config.json").read_text())["tie_word_embeddings"] is False


def test_embeddings_equal_the_published_similarities() -> None:
    # https://www.sbert.net/docs/quickstart.html prints these for all-MiniLM-L6-v2.
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = MiniLM(prepared("all-minilm-l6-v2"))(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=1e-4)


def test_an_embedding_does_not_depend_on_its_neighbours_or_their_order() -> None:
    embed = MiniLM(prepared("all-minilm-l6-v2"))
    texts = [f"skill {'very ' * (i % 7)}{i}" for i in range(150)]  # three batches
    np.testing.assert_allclose(embed(texts)[::-1], embed(texts[::-1]), atol=1e-6)
    np.testing.assert_allclose(embed(["algebra"])[0], embed(["algebra", "a much longer text " * 30])[0], atol=1e-6)
    assert embed([]).shape == (0, 384)


def test_the_package_copy_stands_in_for_the_hubs(caplog: pytest.LogCaptureFixture) -> None:
    folder = prepared("all-minilm-l6-v2")
    with caplog.at_level(logging.INFO, logger="actors"):
        vectors = embedder("sentence-transformers/all-MiniLM-L6-v2")(["algebra"])
    np.testing.assert_array_equal(vectors, MiniLM(folder)(["algebra"]))
    assert "package:all-minilm-l6-v2" in caplog.text


def test_embedding_leaves_the_number_of_threads_alone() -> None:
    import torch

    before = torch.get_num_threads()
    MiniLM(prepared("all-minilm-l6-v2"))(["algebra"])
    assert torch.get_num_threads() == before
