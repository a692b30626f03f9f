"""The cluster's nodes as Ray tells them, and slots put where they belong: a node's CPU, or GPUs reserved there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from symoe_ray.core import ResourceError
from symoe_ray.slot_places import Node, Place, Size

log = logging.getLogger(__name__)

POLL_S = 1.0
NODE_LABEL = "ray.io/node-id"
KIND = "accelerator_type:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Options that put an actor into its place, and the GPUs that are reserved for it until they are released."""

    options: dict[str, Any]
    group: PlacementGroup | None = None

    def release(self) -> None:
        """Give the GPUs back."""
        if self.group is not None:
            remove_placement_group(self.group)


def nodes() -> list[Node]:
    """The nodes that are alive; ResourceError for one that offers a fraction of a GPU."""
    found = []
    for row in ray.nodes():
        if row["Alive"]:
            has = row["Resources"]
            gpus = has.get("GPU", 0.0)
            if gpus != int(gpus):
                raise ResourceError(
                    f"node {row['NodeManagerAddress']} offers {gpus:g} GPUs: slots hold whole GPUs, as an engine sizes "
                    "its memory by them; start its Ray with a whole --num-gpus"
                )
            kind = next((name.removeprefix(KIND) for name in has if name.startswith(KIND)), "")
            found.append(Node(id=row["NodeID"], cpus=has.get("CPU", 0.0), gpus=int(gpus), kind=kind))
    return found


def bundles_of(sizes: Iterable[Size], gpus: int) -> list[dict[str, float]]:
    """So many GPUs as slots of the largest engine, and single ones for the rest; of the kind, if all want the same."""
    wanted = list(sizes)
    largest, kinds = max(size for size, _ in wanted), {kind for _, kind in wanted}
    of_kind = {f"{KIND}{next(iter(kinds))}": 0.001} if len(kinds) == 1 and "" not in kinds else {}
    return [{"GPU": float(size), **of_kind} for size in [largest] * (gpus // largest) + [1] * (gpus % largest)]


def nodes_with(gpus: int, bundles: list[dict[str, float]], wait_s: float) -> list[Node]:
    """The nodes, once they have so many GPUs together; ResourceError where they do not within `wait_s`.

    Ray's autoscaler is asked for these bundles; a cluster without one may still be starting. It keeps one wish for the
    whole cluster, so it is asked again and again, lest another run's takes ours away. Afterwards nothing is asked for:
    what uses the nodes keeps them.
    """
    deadline, here = time.monotonic() + wait_s, nodes()
    if sum(node.gpus for node in here) >= gpus:
        return here
    if wait_s:
        log.warning("waiting up to %.0f s for %d GPUs (cluster.node_wait_s)", wait_s, gpus)
    try:
        while (there := sum(node.gpus for node in here)) < gpus:
            if time.monotonic() >= deadline:
                after = f" after {wait_s:.0f} s (cluster.node_wait_s)" if wait_s else ""
                raise ResourceError(f"gpus={gpus} was asked for, but the cluster has {there}{after}")
            request_resources(bundles=bundles)
            time.sleep(POLL_S)  # nobody tells of a node that has joined
            here = nodes()
    finally:
        if wait_s:
            request_resources(bundles=[])
    return here


async def reserve(place: Place, timeout_s: float) -> Reservation:
    """Reserve a slot's GPUs in a placement group on its node; ResourceError where others hold them.

    A slot without GPUs needs nothing reserved: it takes no CPUs either, which Ray Data needs.
    """
    if not place.gpus:
        pinned = NodeAffinitySchedulingStrategy(place.node, soft=False) if place.node else "SPREAD"
        return Reservation(options={"scheduling_strategy": pinned})
    bundle = {"GPU": float(place.gpus)}
    group = placement_group([bundle], strategy="STRICT_PACK", bundle_label_selector=[{NODE_LABEL: place.node}])
    if not await asyncio.to_thread(group.wait, timeout_s):
        remove_placement_group(group)
        raise ResourceError(
            f"a slot of {place.gpus} GPUs on node {place.node} was not free within {timeout_s:.0f} s: does something "
            "else hold the cluster's GPUs?"
        )
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    return Reservation(options={"num_gpus": place.gpus, "scheduling_strategy": strategy}, group=group)
