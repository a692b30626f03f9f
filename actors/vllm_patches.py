"""Small changes to vLLM that make an engine start faster. Each is optional: without it the engine works, only slower.

They are applied where the version is one they were tried on; elsewhere vLLM runs as it is.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import mmap
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
        _try("logging", _configure_logging_once)
        _try("single_tokenizer", _keep_one_tokenizer)
        _try("inspect_in_process", _inspect_models_in_process)


def patch_engine() -> None:
    """In an engine process, before the engine is built."""
    gc.freeze = gc.unfreeze = _nothing
    if _applies():
        _try("single_tokenizer", _keep_one_tokenizer)
        _try("inspect_in_process", _inspect_models_in_process)
        _try("token_ranks", _count_token_ranks_without_compiling)
        _try("kv_cache_pages", _take_kv_cache_from_fresh_pages)
        _try("embedding_pack", _pack_embeddings_at_first_use)


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


def _configure_logging_once() -> None:
    """An engine whose logging is set up as asked for leaves the hundreds of loggers alone (0.1 s).

    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/logger.py
    """
    from vllm.config.logging import LoggingConfig
    from vllm.logger import configure_logging_if_needed

    configure_logging_if_needed(LoggingConfig())


def _keep_one_tokenizer() -> None:
    """The renderer copies its tokenizer, and again for threads that this engine does not have (0.4 s at 49k words).

    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/renderers/hf.py, and `copy.copy` of a cached tokenizer makes
    its tables anew: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/tokenizers/hf.py
    """

    def same(tokenizer: Any, copies: int = 1) -> Any:
        return tokenizer

    renderer: Any = importlib.import_module("vllm.renderers.hf")
    renderer.maybe_make_thread_pool = same
    tokenizers: Any = importlib.import_module("vllm.tokenizers.hf")
    tokenizers.get_cached_tokenizer = functools.cache(tokenizers.get_cached_tokenizer)


def _inspect_models_in_process() -> None:
    """A model class is inspected in a subprocess, so that its parent stays free of CUDA (9 s at its first use).

    An engine process may touch CUDA, so it can look for itself; a zygote checks itself after every import.
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/models/registry.py
    """

    def here(inspect: Callable[[], Any]) -> Any:
        return inspect()

    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = here


def _count_token_ranks_without_compiling() -> None:
    """The first answer with log probabilities compiles a kernel for the ranks of tokens (2 s in every process).

    Only the canary asks for them, and a row at a time needs no kernel of its own.
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/ops/logprobs.py
    """

    def count(logits: Any, values: Any) -> Any:
        return (logits >= values).sum(-1)

    sampler: Any = importlib.import_module("vllm.v1.sample.sampler")
    sampler.batched_count_greater_than = count


def _take_kv_cache_from_fresh_pages() -> None:
    """On the CPU the KV cache is written full of zeros at the start (0.3 to 1.8 s a GiB); fresh pages are zero anyway.

    They come as the cache fills, so that a cache which is never full costs less memory, too.
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/utils.py
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return

    class FreshPages(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return (fresh_zeros if func is torch.zeros else func)(*args, **(kwargs or {}))

    runner: Any = importlib.import_module("vllm.v1.worker.gpu_model_runner")
    allocate = runner.allocate_kv_cache

    def allocate_from_fresh_pages(*args: Any, **kwargs: Any) -> Any:
        with FreshPages():
            return allocate(*args, **kwargs)

    runner.allocate_kv_cache = allocate_from_fresh_pages


def fresh_zeros(size: int, *, dtype: Any, device: Any) -> Any:
    """As `torch.zeros(size, dtype=dtype, device=device)` for the CPU, in pages that come when they are touched."""
    import torch

    if size == 0:
        return torch.zeros(size, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size * dtype.itemsize)
    with contextlib.suppress(AttributeError, OSError):  # a system without huge pages has small ones
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype)


def _pack_embeddings_at_first_use() -> None:
    """On the CPU an embedding table is packed for matrix products as if it were the output layer (0.1 to 0.7 s).

    Models that use the table for their output as well have it packed at the first product.
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/layers/vocab_parallel_embedding.py
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    embedding: Any = importlib.import_module("vllm.model_executor.layers.vocab_parallel_embedding")
    method = embedding.UnquantizedEmbeddingMethod
    process = method.process_weights_after_loading

    def process_later(self: Any, layer: Any) -> None:
        def pack_and_multiply(x: Any, weight: Any, bias: Any) -> Any:
            process(self, layer)
            return layer.cpu_linear(x, weight, bias)

        if type(layer) is embedding.VocabParallelEmbedding:
            layer.cpu_linear = pack_and_multiply
        else:
            process(self, layer)

    method.process_weights_after_loading = process_later
