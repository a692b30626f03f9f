"""What settings must satisfy beyond their types: bounds, and keys that must agree with each other."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import reduce

from symoe_ray.baselines import GROUPS, NAMES
from symoe_ray.core import ExpertSpec, InputError
from symoe_ray.server_checks import check_server
from symoe_ray.settings import Settings
from symoe_ray.typed import Origin, nearest, wrong

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# Smallest allowed value of a whole number.
_AT_LEAST = {
    "k": 1, "moa_layers": 2, "seed": 0, "gpus": 0, "limit": 0, "max_tokens": 0, "max_failures": 0,
    "task.validation_questions": 0, "task.test_questions": 0,
    "cluster.num_cpus": 0, "cluster.object_store_bytes": 0, "cluster.node_wait_s": 0,
    "engine.slots": 1, "engine.seed": 0, "engine.max_num_seqs": 0, "engine.kv_cache_memory_bytes": 0,
    "engine.block_size": 0, "engine.threads": 0, "engine.chunk_rows": 1, "engine.max_attempts": 1,
    "engine.load_timeout_s": 1, "engine.stall_timeout_s": 1, "engine.fake_tokens_per_s": 0, "engine.fake_load_s": 0,
    "engine.max_sleeping": 0, "engine.memory_timeout_s": 0,
    "annotate.samples": 1, "annotate.min_count": 1, "annotate.max_characters": 1, "annotate.sampling_max_tokens": 1,
    "aggregate.min_experts": 1, "aggregate.max_draft_characters": 0,
    "serve.max_queue": 1, "serve.max_questions": 1, "serve.max_wait_s": 1,
    "serve.max_body_bytes": 1024, "serve.max_messages": 1, "serve.max_tokens": 1, "serve.max_n": 1,
    "serve.requests_per_minute": 0, "serve.concurrency": 0, "serve.drain_s": 0,
    "serve.annotate_timeout_s": 1, "serve.answer_timeout_s": 1, "serve.aggregate_timeout_s": 1,
}  # fmt: skip

# low < value <= high.
_WITHIN = {"temperature": (0.0, math.inf), "engine.gpu_memory_utilization": (0.0, 1.0), "serve.port": (0, 65535)}

# Engine arguments that an expert has a field of its own for: given twice, they could contradict each other.
_OWN_FIELDS = ("model", "revision", "max_model_len", "tensor_parallel_size", "trust_remote_code")

# Engine arguments that follow from the adapters of the experts that share an engine.
_FROM_LORA = ("enable_lora", "max_loras", "max_lora_rank")

# Arguments of a tokenizer's apply_chat_template that are no variables of a template.
_OF_RENDERING = (
    "conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)  # fmt: skip


def check(settings: Settings, origin: Origin) -> None:
    """InputError for the first thing that does not fit, with its key, value, place and what is allowed."""
    _check_numbers(settings, origin)
    _check_task(settings, origin)
    _check_pool(settings, origin)
    _check_seats(settings, origin)
    _check_baselines(settings, origin)


def _check_numbers(settings: Settings, origin: Origin) -> None:
    for key, least in _AT_LEAST.items():
        value = _value(settings, key)
        if value is not None and value < least:
            raise wrong(key, value, f"must be {least} or more", origin)
    for key, (low, high) in _WITHIN.items():
        value = _value(settings, key)
        if not low < value <= high:
            upper = "" if high == math.inf else f" and at most {high:g}"
            raise wrong(key, value, f"must be greater than {low:g}{upper}", origin)
    if not 0 <= settings.trim_threshold < 1:
        raise wrong("trim_threshold", settings.trim_threshold, "must be at least 0 and less than 1", origin)
    if len(set(settings.seeds)) < len(settings.seeds) or min(settings.seeds, default=0) < 0:
        raise wrong("seeds", list(settings.seeds), "must hold different integers, 0 or more", origin)


def _value(settings: Settings, key: str) -> float:
    number: float = reduce(getattr, key.split("."), settings)  # type: ignore[assignment]
    return number


def _check_task(settings: Settings, origin: Origin) -> None:
    task = settings.task
    _check_name("task.name", task.name, origin)
    if task.demo and (task.demo.validation < 0 or task.demo.test < 0 or task.demo.validation + task.demo.test < 1):
        raise wrong("task.demo", task.demo, "must ask for one question or more in all, and no negative number", origin)


def _check_name(key: str, name: str, origin: Origin) -> None:
    """Names become parts of file names, addresses and columns."""
    if not _NAME.fullmatch(name):
        raise wrong(key, name, "must be letters, digits, dots, dashes or underscores", origin)


def _check_pool(settings: Settings, origin: Origin) -> None:
    pool = settings.pool
    _check_name("pool.name", pool.name, origin)
    if not pool.experts:
        raise InputError(f"{origin('pool.experts')}: pool.experts is empty; it needs one expert or more")
    names = Counter(expert.name for expert in pool.experts)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(f"{origin('pool.experts')}: pool.experts has the name {twice[0]!r} {names[twice[0]]} times")
    for expert in pool.experts:
        _check_expert(expert, f"pool.experts[{expert.name}]", origin)
        check_server(expert, f"pool.experts[{expert.name}]", origin, required=settings.engine.kind == "openai")
    for key, name in (("pool.annotator", pool.annotator), ("annotator", settings.annotator)):
        _check_member(key, name, names, "", origin)
    _check_member("aggregator", settings.aggregator, names, "auto", origin)


def _check_member(key: str, name: str, experts: Iterable[str], also: str, origin: Origin) -> None:
    """`name` is an expert, empty, or the one word allowed beside."""
    if not name or name == also or name in (known := list(experts)):
        return
    near = nearest(name, known)
    hint = f" (did you mean {near}?)" if near else ""
    allowed = ", ".join([also, *known] if also else known)
    raise wrong(key, name, f"must be an expert of the pool: {allowed}{hint}", origin)


def _check_expert(expert: ExpertSpec, key: str, origin: Origin) -> None:
    _check_name(f"{key}.name", expert.name, origin)
    if expert.name in ("auto", "symoe"):
        raise wrong(f"{key}.name", expert.name, "must not be auto or symoe, which mean something else", origin)
    if not expert.model:
        raise wrong(f"{key}.model", expert.model, "must name a model", origin)
    for name in ("max_model_len", "tensor_parallel_size"):
        if getattr(expert, name) < 1:
            raise wrong(f"{key}.{name}", getattr(expert, name), "must be 1 or more", origin)
    for name in _OWN_FIELDS:
        if name in expert.engine_args:
            raise wrong(f"{key}.engine_args.{name}", expert.engine_args[name], f"must be given as {key}.{name}", origin)
    for name in _FROM_LORA:
        if name in expert.engine_args:
            value = expert.engine_args[name]
            raise wrong(
                f"{key}.engine_args.{name}", value, f"follows from the adapters; name one in {key}.lora", origin
            )
    for name in _OF_RENDERING:
        if name in expert.chat_template_kwargs:
            value = expert.chat_template_kwargs[name]
            raise wrong(f"{key}.chat_template_kwargs.{name}", value, "is set for each prompt by the project", origin)
    if expert.lora and expert.lora == expert.model:
        raise wrong(f"{key}.lora", expert.lora, "must be an adapter over the model, not the model itself", origin)
    if expert.trust_remote_code and not expert.revision:
        raise InputError(
            f"{origin(key)}: {key}.trust_remote_code is true without a revision; "
            f"name the commit whose code you have read in {key}.revision"
        )
    _check_sampling(expert, f"{key}.sampling", origin)


def unknown_engine_argument(expert: ExpertSpec, known: Collection[str]) -> str:
    """What to say of the first engine argument of an expert that is none of vLLM's `known`; "" where all are."""
    unknown = next((name for name in expert.engine_args if name not in known), None)
    if unknown is None:
        return ""
    key = f"pool.experts[{expert.name}]"
    near = nearest(unknown, known)
    place = key if near in _OWN_FIELDS else f"{key}.engine_args"
    hint = f"; did you mean {place}.{near}?" if near else ""
    return f"unknown key '{key}.engine_args.{unknown}': vLLM has no such engine argument{hint}"


def _check_sampling(expert: ExpertSpec, key: str, origin: Origin) -> None:
    sampling = expert.sampling
    for name, value, right, need in (
        ("temperature", sampling.temperature, sampling.temperature >= 0, "0 or more"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "greater than 0 and at most 1"),
        ("top_k", sampling.top_k, sampling.top_k >= -1, "-1 or 0 (off), or more"),
        ("max_tokens", sampling.max_tokens, sampling.max_tokens >= 1, "1 or more"),
        ("repetition_penalty", sampling.repetition_penalty, sampling.repetition_penalty > 0, "greater than 0"),
        ("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "at least 0 and at most 1"),
        ("presence_penalty", sampling.presence_penalty, abs(sampling.presence_penalty) <= 2, "from -2 to 2"),
        ("frequency_penalty", sampling.frequency_penalty, abs(sampling.frequency_penalty) <= 2, "from -2 to 2"),
    ):
        if not right:
            raise wrong(f"{key}.{name}", value, f"must be {need}", origin)


def _check_seats(settings: Settings, origin: Origin) -> None:
    experts = len(settings.pool.experts)
    if not settings.replacement and settings.k > experts:
        raise wrong(
            "k", settings.k, f"must be at most {experts}, the experts of the pool, with replacement=false", origin
        )
    if settings.aggregate.min_experts > settings.k:
        key = "aggregate.min_experts"
        raise wrong(key, settings.aggregate.min_experts, f"must be at most k={settings.k}", origin)
    if settings.annotate.min_count > settings.annotate.samples:
        key = "annotate.min_count"
        raise wrong(
            key, settings.annotate.min_count, f"must be at most annotate.samples={settings.annotate.samples}", origin
        )


def _check_baselines(settings: Settings, origin: Origin) -> None:
    if not settings.baselines or (len(settings.baselines) > 1 and set(settings.baselines) & set(GROUPS)):
        need = f"must be one of {', '.join(GROUPS)}, or a list of {', '.join(NAMES)}"
        raise wrong("baselines", list(settings.baselines), need, origin)
    if "debate" in settings.baselines and settings.moa_layers < 3:
        raise wrong("moa_layers", settings.moa_layers, "must be 3 or more for a debate", origin)
