"""GPU memory as the driver tells it, through NVML: CUDA is not touched, so that a process may still fork."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from symoe_ray.core import ResourceError


def gpu_memory(index: int) -> Any:
    """`total`, `used` and `free` bytes of the `index`-th GPU that this process may use; ResourceError without it."""
    nvml = _nvml()
    try:
        return nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, index))
    except nvml.NVMLError as error:
        raise ResourceError(f"GPU {index}: {error}") from error


def gpu_and_driver(index: int) -> str:
    """The name of the `index`-th GPU that this process may use, and the driver's version; ResourceError without it."""
    nvml = _nvml()
    try:
        return f"{nvml.nvmlDeviceGetName(_handle(nvml, index))}, driver {nvml.nvmlSystemGetDriverVersion()}"
    except nvml.NVMLError as error:
        raise ResourceError(f"GPU {index}: {error}") from error


def gpu_count() -> int:
    """GPUs that the driver shows here, whatever CUDA_VISIBLE_DEVICES says; ResourceError where there is no driver."""
    nvml = _nvml()
    try:
        return int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError as error:
        raise ResourceError(f"the NVIDIA driver does not answer: {error}") from error


def driver_cuda() -> tuple[int, int]:
    """The newest CUDA that the driver runs, major and minor; ResourceError where there is no driver."""
    nvml = _nvml()
    try:
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError as error:
        raise ResourceError(f"the NVIDIA driver does not answer: {error}") from error
    return number // 1000, number % 1000 // 10


def _handle(nvml: Any, index: int) -> Any:
    """NVML's handle of a visible GPU: CUDA_VISIBLE_DEVICES holds numbers (taken in PCI order, as Ray does) or UUIDs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if index >= len(names):
        raise ResourceError(f"GPU {index}: CUDA_VISIBLE_DEVICES={visible} shows {len(names)}")
    name = names[index]
    if name.lstrip("-").isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(_whole_uuid(nvml, name))


def _whole_uuid(nvml: Any, name: str) -> str:
    """CUDA takes the beginning of a GPU's UUID for the whole."""
    if name.startswith("MIG-"):
        return name
    handles = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount()))
    uuids = (uuid if isinstance(uuid, str) else uuid.decode() for uuid in map(nvml.nvmlDeviceGetUUID, handles))
    return next((uuid for uuid in uuids if uuid.startswith(name)), name)


@functools.cache
def _nvml() -> Any:
    """NVML's Python module, started; it stays so, because the first start may take a second."""
    module = _nvml_module()
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        raise ResourceError(f"the NVIDIA driver does not answer: {error}") from error
    return module


def _nvml_module() -> Any:
    """The module of nvidia-ml-py, or vLLM's copy of it, read from its file so that vLLM is not imported."""
    vllm = importlib.util.find_spec("vllm")
    for folder in (vllm.submodule_search_locations or ()) if vllm else ():
        path = Path(folder, "third_party", "pynvml.py")
        spec = importlib.util.spec_from_file_location("symoe_nvml", path) if path.is_file() else None
        if spec and spec.loader:
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # it looks itself up there
            spec.loader.exec_module(module)
            return module
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise ResourceError("GPU memory cannot be read: neither vLLM nor nvidia-ml-py is installed") from error
