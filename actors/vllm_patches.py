"""Small changes to vLLM that make an engine start faster. Each is optional: without it the engine works, only slower.

They are applied where the version is one they were tried on; elsewhere vLLM runs as it is.
"""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable
from typing import Any

TRIED_ON = ("0.32.",)
log = logging.getLogger(__name__)


def _applies() -> bool:
    import vllm

    return str(vllm.__version__).startswith(TRIED_ON)


def _try(name: str, change: Callable[[], None]) -> None:
    try:
        change()
    except (ImportError, AttributeError, TypeError) as error:
        log.warning("vLLM patch %s was not applied: %s", name, error)


def patch_zygote() -> None:
    """Before the first fork: do once what every engine would do again."""
    if _applies():
        _try("triton_overrides", _register_triton_overrides_once)


def patch_engine() -> None:
    """In an engine process, before the engine is built."""
    gc.freeze = gc.unfreeze = _nothing
    if _applies():
        _try("single_tokenizer", _keep_one_tokenizer)
        _try("inspect_in_process", _inspect_models_in_process)


def _nothing(*_: object) -> None:
    """Stands for `gc.freeze` and `gc.unfreeze`: vLLM unfreezes, and its collections then walk all import-time objects.

    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/engine/core.py
    """


def _register_triton_overrides_once() -> None:
    """The scan for Triton kernels on the CPU reads all of sys.modules at each engine's start (0.4 s).

    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/worker_base.py
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        current_platform.register_triton_kernel_overrides()
        type(current_platform).register_triton_kernel_overrides = classmethod(_nothing)


def _keep_one_tokenizer() -> None:
    """The renderer deep-copies its tokenizer for threads that this engine does not have (0.4 s at 49k words).

    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/renderers/hf.py
    """

    def same(tokenizer: Any, copies: int = 1) -> Any:
        return tokenizer

    renderer: Any = importlib.import_module("vllm.renderers.hf")
    renderer.maybe_make_thread_pool = same


def _inspect_models_in_process() -> None:
    """A model class is inspected in a subprocess, so that its parent stays free of CUDA (9 s at its first use).

    An engine process may touch CUDA, so it can look for itself.
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/models/registry.py
    """

    def here(inspect: Callable[[], Any]) -> Any:
        return inspect()

    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = here
