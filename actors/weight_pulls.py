"""The models of a pool, pulled onto this node or onto every node of the cluster, each node once."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.embedding import embedding_folder
from actors.models import PACKAGE, found, local_path
from actors.node_cache import check_room
from actors.weight_sources import is_address, source_of
from actors.weights import Staged, missing_bytes, stage
from symoe_ray.core import ExpertSpec, ResourceError

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model that a run needs: its name, its revision, and who needs it."""

    model: str
    revision: str
    users: tuple[str, ...]
    embedding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What became of a model on a node: where it is and what was fetched, or the problem."""

    node: str
    model: str
    users: tuple[str, ...]
    folder: str = ""
    version: str = ""
    size_bytes: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0
    problem: str = ""


def wanted_models(experts: Sequence[ExpertSpec], embedding_model: str = "") -> list[Wanted]:
    """The models and adapters of these experts, each once, and the embedding model."""
    users: dict[tuple[str, str], list[str]] = {}
    for spec in experts:
        if not spec.is_remote:
            users.setdefault((spec.model, spec.revision), []).append(spec.name)
            if spec.lora:
                users.setdefault((spec.lora, ""), []).append(spec.name)
    wanted = [Wanted(model=m, revision=r, users=tuple(names)) for (m, r), names in users.items()]
    if embedding_model:
        wanted.append(Wanted(model=embedding_model, revision="", users=("the embedding of skills",), embedding=True))
    return wanted


def pull(wanted: Sequence[Wanted], on_total: OnBytes, on_bytes: OnBytes) -> Iterator[Pulled]:
    """Have each model on this node; a problem with one is told and the others are pulled nevertheless.

    The room for all of them is checked before the first: ResourceError. `on_total` is told how many bytes are
    missing.
    """
    sources, problems = {}, {}
    for item in wanted:
        if not item.embedding and _has_source(item):
            try:
                sources[item] = source_of(item.model, item.revision)
            except ResourceError as error:
                problems[item] = str(error)
    missing = sum(missing_bytes(item.model, source) for item, source in sources.items())
    check_room(missing, f"{len(sources)} models")
    on_total(missing)
    for item in wanted:
        made = Pulled(node=socket.gethostname(), model=item.model, users=item.users)
        try:
            if item in sources:
                yield _pulled(made, stage(item.model, item.revision, source=sources[item], on_bytes=on_bytes))
            else:
                yield _there(made, item, problems.get(item, ""))
        except ResourceError as error:
            yield replace(made, problem=str(error))


def _has_source(item: Wanted) -> bool:
    """Whether a model is fetched from elsewhere: not made here, no folder of this machine's."""
    local = item.model.startswith((PACKAGE, "/", ".", "~")) or Path(item.model).is_dir()
    return is_address(item.model) or not local


def _there(made: Pulled, item: Wanted, problem: str) -> Pulled:
    """A model without a source that answers: what is here of it, else the problem."""
    if item.embedding:
        folder = embedding_folder(item.model)
    elif problem:
        here = found(item.model, item.revision)
        if here is None:
            return replace(made, problem=problem)
        folder = here
    else:
        folder = local_path(item.model, item.revision)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return replace(made, folder=str(folder), size_bytes=size)


def _pulled(made: Pulled, staged: Staged) -> Pulled:
    return replace(
        made, folder=str(staged.folder), version=staged.version, size_bytes=staged.size_bytes,
        fetched_bytes=staged.fetched_bytes, seconds=staged.seconds,
    )  # fmt: skip


def pull_everywhere(wanted: Sequence[Wanted]) -> Iterator[Pulled]:
    """The same on every node that may have a slot (those with GPUs, where any has one), one task a node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node["Resources"].get("GPU")]
    task = ray.remote(_pull_all)
    running = {
        task.options(
            num_cpus=0, max_retries=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False),
        ).remote(list(wanted)): node["NodeManagerHostname"]
        for node in with_gpu or nodes
    }  # fmt: skip
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        node = running.pop(done)
        try:
            yield from ray.get(done)
        except ray.exceptions.RayError as error:  # the node is lost, or has no room
            problem = " ".join(str(getattr(error, "cause", None) or error).split())[:500]
            yield Pulled(node=node, model="all", users=(), problem=problem)


def _pull_all(wanted: list[Wanted]) -> list[Pulled]:
    return list(pull(wanted, lambda _: None, lambda _: None))
