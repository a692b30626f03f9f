"""The tokenizer of the demo's experts: whole words of the task's own text, digits and capital letters singly, bytes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from symoe_ray.demo_task import FAMILIES
from symoe_ray.prompts import render_question
from training.examples import fixed_texts, question_of, training_items, worked_answer

PAD, END, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + ('assistant' if message['role'] == 'assistant' else 'user') + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
# A digit, a capital letter, a name, a word or sign with the space before it, line ends, a space. What is copied from
# place to place (digits, letters, names) takes no space along: it is the same token wherever it stands.
_PIECE = r"\d|\p{Lu}(?!\p{Ll})|\p{Lu}\p{Ll}+| ?\p{Ll}+|\n+| ?[^\s\p{L}\p{N}]|\s"
_OF_REPLIES = ("\nThe answer is", "\\boxed{")
_SELDOM = 5
_ITEMS = 20_000


def make_tokenizer() -> Tokenizer:
    """The words of training items, all bytes for what else there is, and each fixed sentence of the prompts as a token.

    No merges are learned: their order would differ from run to run, and with it the number of every token.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = Counter(piece for text in _texts() for piece, _ in splitter.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = sorted(word for word, count in words.items() if count >= _SELDOM and len(word) > 1)
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet, *known])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*fixed_texts(), *_OF_REPLIES)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """The files that transformers and vLLM read."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD, "model_max_length": context,
        "clean_up_tokenization_spaces": False, "add_bos_token": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n")


def chat(prompt: str) -> str:
    """A prompt as the chat template renders it."""
    return f"{USER}{prompt}{END}{ASSISTANT}"


def _texts() -> list[str]:
    """Questions and replies, without the fixed sentences around them."""
    texts = []
    for family, item in itertools.islice(training_items("tokenizer", list(FAMILIES)), _ITEMS):
        question = question_of(family, item)
        texts += [render_question(question), worked_answer(question, item), ", ".join(item.skills)]
    return texts
