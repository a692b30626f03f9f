"""Which commit of each hub model a run uses: asked once, by its driver, so that all nodes and all attempts agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from actors.models import PACKAGE, found
from actors.weight_sources import COMMIT, hub_commit, is_address, split_revision
from symoe_ray.core import ExpertSpec, ResourceError
from symoe_ray.settings import Settings


def commits(experts: Sequence[ExpertSpec], known: Mapping[str, str]) -> dict[str, str]:
    """The commit of every model and adapter of the hub, by `MODEL` or `MODEL@REVISION`; "" where it cannot be told.

    What is `known` stays. Without the hub it is the commit that this machine has.
    """
    names = sorted({_name(*which) for spec in experts for which in _wanted(spec)})
    unknown = [name for name in names if not known.get(name)]
    with ThreadPoolExecutor(8) as threads:
        return {**known, **dict(zip(unknown, threads.map(_commit, unknown), strict=True))}


def with_commits(settings: Settings, commits: Mapping[str, str]) -> Settings:
    """The settings with each hub model of the pool at its commit, where that is known."""
    experts = tuple(pinned(spec, commits) for spec in settings.pool.experts)
    return replace(settings, pool=replace(settings.pool, experts=experts))


def pinned(spec: ExpertSpec, commits: Mapping[str, str]) -> ExpertSpec:
    """The expert with the revisions of its model and its adapter replaced by their commits."""
    changes: dict[str, str] = {}
    for which in _wanted(spec):
        commit = commits.get(_name(*which), "")
        if commit and which == (spec.model, spec.revision):
            changes |= {"model": split_revision(spec.model, "")[0], "revision": commit}
        elif commit:
            changes |= {"lora": f"{split_revision(spec.lora, '')[0]}@{commit}"}
    return replace(spec, **changes) if changes else spec  # type: ignore[arg-type]


def _wanted(spec: ExpertSpec) -> list[tuple[str, str]]:
    """The model and the adapter of an expert with their revisions, where they are the hub's."""
    if spec.is_remote:
        return []
    both = [(spec.model, spec.revision), *([(spec.lora, "")] if spec.lora else [])]
    return [which for which in both if _is_hub_id(which[0])]


def _is_hub_id(model: str) -> bool:
    if model.startswith((PACKAGE, "/", ".", "~")) or is_address(model):
        return False
    return not Path(model).is_dir()


def _name(model: str, revision: str) -> str:
    name, revision = split_revision(model, revision)
    return f"{name}@{revision}" if revision else name


def _commit(name: str) -> str:
    model, revision = split_revision(name, "")
    try:
        return hub_commit(model, revision)
    except ResourceError:
        here = found(model, revision)
    return here.name if here is not None and COMMIT.fullmatch(here.name) else ""
