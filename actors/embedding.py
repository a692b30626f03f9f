"""Sentence embeddings of skills: all-MiniLM-L6-v2 on the CPU, by the recipe of its sentence-transformers release."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.models import local_path, prepare, prepared_folder
from symoe_ray.core import ResourceError

log = logging.getLogger(__name__)

Embedder = Callable[[Sequence[str]], NDArray[np.float32]]

MINILM_IDS = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
MINILM_PACKAGE = "all-minilm-l6-v2"
MAX_TOKENS = 256  # the release's max_seq_length; the network itself would take 512
BATCH = 64


class MiniLM:
    """Texts to unit vectors: mean of the last hidden states over the text's tokens, then L2 normalisation.

    `folder` is a BERT-type encoder with its tokenizer; it is loaded at the first call. May be called from several
    threads, which then take turns (a fast tokenizer allows one at a time).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Float32 array of shape (len(texts), width), rows of length 1 in the order of `texts`."""
        with self._lock:
            tokenizer, model = self._loaded = self._loaded or self._load()
            vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
            by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding within a batch
            for start in range(0, len(texts), BATCH):
                rows = by_length[start : start + BATCH]
                vectors[rows] = _embed(tokenizer, model, [texts[i] for i in rows])
            return vectors

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        return tokenizer, AutoModel.from_pretrained(self._folder, dtype=torch.float32).eval()


def _embed(tokenizer: Any, model: Any, texts: list[str]) -> NDArray[np.float32]:
    """One batch."""
    import torch

    tokens = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.inference_mode():
        states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(means, p=2, dim=1).numpy()
    return vectors


def embedder(model: str) -> Embedder:
    """The embedding function for a model name; nothing is looked up or loaded before its first call.

    `model` is what `local_path` takes. all-MiniLM-L6-v2 has a copy in the package index with the same weights (equal
    SHA-256): that is taken where it is prepared already or where the hub cannot be reached.
    """
    lock = threading.Lock()
    found: list[MiniLM] = []

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        with lock:
            if not found:
                found.append(MiniLM(embedding_folder(model)))
        return found[0](texts)

    return embed


def embedding_folder(model: str) -> Path:
    if model not in MINILM_IDS:
        return local_path(model)
    if not prepared_folder(MINILM_PACKAGE).is_dir():
        try:
            return local_path(model)
        except ResourceError as error:
            log.info("%s", error)
    log.info("embedding with package:%s, the same weights as %s", MINILM_PACKAGE, model)
    return prepare(MINILM_PACKAGE)
