"""Sizes for a plan: of the models, without fetching or making one, and of the machine that would run them."""

from __future__ import annotations

import os
import re

from actors.inspection import present
from actors.memory import gpu_total_bytes, host_available_bytes
from actors.models import engine_dtype, kv_bytes_per_token, weight_bytes
from actors.platform import cpu_dtype, visible_gpus
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.planning import Machine, ModelSize
from symoe_ray.settings import Settings
from symoe_ray.slot_places import Node, slot_rule

# A model without a size in its name counts as 8 billion parameters in 16 bits. KV: 32 layers x 8 heads x 128 x 2 x 2.
GUESSED_BILLIONS = 8.0
GUESSED_KV_BYTES = 131_072
GUESSED_GPU_BYTES = 80 * 10**9
FAKE_BYTES = 1_000_000
NODE_GPUS = 8  # of a node that is not here


def sizes_of(settings: Settings, machine: Machine) -> dict[str, ModelSize]:
    """The size of each expert's model as engines of that machine compute with it; of fake ones next to nothing."""
    fake, dtype = settings.engine.kind == "fake", settings.engine.dtype
    return {e.name: size_of(e, fake=fake, dtype=dtype, cuda=machine.cuda) for e in settings.pool.experts}


def size_of(spec: ExpertSpec, *, fake: bool = False, dtype: str = "auto", cuda: bool = True) -> ModelSize:
    """The size of an expert's model, from its files' headers where they are here, else from its name; in 32 bits twice
    what it is in 16.
    """
    if spec.is_remote:
        return ModelSize(weight_bytes=0, kv_bytes_per_token=0, is_remote=True)
    if fake:
        return ModelSize(weight_bytes=FAKE_BYTES, kv_bytes_per_token=1)
    try:
        folder = present(spec.model, spec.revision)
        if folder is not None:
            dtype = engine_dtype(spec, folder, dtype, cuda=cuda)
            held = weight_bytes(folder) * (2 if dtype == "float32" else 1)
            return ModelSize(weight_bytes=held, kv_bytes_per_token=kv_bytes_per_token(folder, dtype=dtype))
    except (ResourceError, OSError, ValueError):
        pass
    found = re.search(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", spec.model.lower())
    billions = float(found[1]) / (1 if found[2] == "b" else 1000) if found else GUESSED_BILLIONS
    kv = round(GUESSED_KV_BYTES * min(1.0, billions / GUESSED_BILLIONS))
    twice = 2 if "float32" in (dtype, "" if cuda else cpu_dtype(dtype)) else 1
    return ModelSize(weight_bytes=twice * int(billions * 2e9), kv_bytes_per_token=twice * kv, guessed=True)


def machine_of(settings: Settings) -> Machine:
    """The machine that these settings ask for: GPUs if `gpus` names some or any are here, else CPU slots."""
    if not settings.pool.local:
        return Machine()
    here = visible_gpus()
    gpus = settings.gpus or here
    if not gpus or settings.engine.kind == "fake":
        slots = settings.gpus or settings.engine.slots
        cores = len(os.sched_getaffinity(0))
        return Machine(cpu_slots=slots, cores=cores, room_bytes=host_available_bytes() // slots)
    each = max(here, NODE_GPUS)
    nodes = [Node(id=str(n), gpus=min(each, gpus - n)) for n in range(0, gpus, each)]
    room = gpu_total_bytes(0) if here else 0
    cut = tuple(place.gpus for place in slot_rule(settings, any_kind=True).places(nodes))
    return Machine(gpus=cut or (gpus,), room_bytes=room or GUESSED_GPU_BYTES, guessed=not room)
