"""Tokenizers that transformers would build wrongly, read as their own tokenizer.json says."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

from actors.checkpoints import kept_sha256, read_json

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SENTENCEPIECE_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
AS_THE_FILE_SAYS = "PreTrainedTokenizerFast"
_BESIDE = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json")


def sound_tokenizer(model: Path, cache: Path) -> Path | None:
    """A folder below `cache` with a model's tokenizer for transformers to load, None where the model's own will do.

    transformers 5 builds a `LlamaTokenizer` anew as SentencePiece's, whatever tokenizer.json says (seen in 5.19,
    models/llama/tokenization_llama.py). Checkpoints that name this class beside the byte-level tokenizer of Llama 3, as
    DeepSeek-R1-Distill-Llama-8B does, then lose every space of a prompt, without a word. The copy names the class that
    takes the file as it is.
    """
    config = read_json(model / CONFIG)
    if config.get("tokenizer_class") not in SENTENCEPIECE_CLASSES or not (model / TOKENIZER).is_file():
        return None
    stat = (model / TOKENIZER).stat()
    if not _is_byte_level(model / TOKENIZER, stat.st_size, stat.st_mtime_ns):
        return None
    whole = "-".join(kept_sha256(model / name)[:16] for name in (TOKENIZER, CONFIG))
    folder = cache / whole
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=cache, prefix=".partial-"))
        partial.chmod(0o755)  # whoever shares the cache may read it
        for name in (TOKENIZER, *_BESIDE):
            if (model / name).is_file():
                shutil.copy(model / name, partial)
        (partial / CONFIG).write_text(json.dumps(config | {"tokenizer_class": AS_THE_FILE_SAYS}, indent=2))
        try:
            os.rename(partial, folder)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    return folder


@functools.lru_cache(maxsize=256)
def _is_byte_level(path: Path, size: int, mtime_ns: int) -> bool:
    """Whether a tokenizer.json splits text into bytes, as GPT-2's and Llama 3's do and SentencePiece's do not."""
    step = read_json(path).get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    return any(each.get("type") == "ByteLevel" for each in steps)
