"""Slots that claim several GPUs, of the kind that an expert wants, on a real Ray cluster that has them in name only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from actors.cluster import connected, slot_plan
from actors.pool_client import pool
from symoe_ray.config import load
from symoe_ray.core import Message, ResourceError
from symoe_ray.ledger import missing_chunks
from symoe_ray.requests import make_request
from symoe_ray.settings import Settings
from symoe_ray.storage import Storage
from symoe_ray.tables import REQUESTS, request_row, table_of

pytestmark = pytest.mark.real_ray
QUIET = {"include_dashboard": False, "object_store_memory": 80_000_000}
EXPERTS = (
    {"name": "One", "model": "org/one"},
    {"name": "Two", "model": "org/two", "tensor_parallel_size": 2, "accelerator_type": "H100"},
    {"name": "Four", "model": "org/four", "tensor_parallel_size": 4},
)
ROWS = 40


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of six A100 and two H100, as far as Ray knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        head = {"num_cpus": 1, "num_gpus": 6, "resources": {"accelerator_type:A100": 1}, **QUIET}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(
                num_cpus=1, num_gpus=2, resources={"accelerator_type:H100": 1}, object_store_memory=80_000_000
            )
            yield cluster.address
        finally:
            cluster.shutdown()


def settings_of(folder: Path, address: str, *experts: dict[str, Any], gpus: int = 8) -> Settings:
    file = folder / "pool.yaml"
    file.write_text(json.dumps({"name": "sizes", "experts": list(experts)}))
    return load(
        ["task=demo", f"pool={file}", "engine.kind=fake", f"gpus={gpus}", "cluster=auto", f"cluster.address={address}"]
    )


def put_requests(storage: Storage, settings: Settings) -> dict[str, list[str]]:
    files = {}
    for spec in settings.pool.experts:
        messages = (Message(role="user", content="What is 1 plus 1?"),)
        rows = [make_request(spec, f"q{n}", messages, spec.sampling, run_seed=0) for n in range(ROWS)]
        files[spec.name] = [f"requests/answer/expert={spec.name}/part-0000000-000000.parquet"]
        own = [{k: v for k, v in request_row(r, 0, 0).items() if k in REQUESTS.names} for r in rows]
        storage.write_table(files[spec.name][0], table_of(own, REQUESTS))
    return files


def test_engines_of_one_two_and_four_gpus_share_a_cluster(tmp_path: Path, address: str) -> None:
    settings, storage = settings_of(tmp_path, address, *EXPERTS), Storage(str(tmp_path / "run"))
    storage.write_json("manifest.json", {})
    files = put_requests(storage, settings)
    estimate = {e.name: 10 for e in settings.pool.experts}
    chunks = list(missing_chunks(storage, "answer", files, chunk_rows=10, estimate=estimate))
    with connected(settings):
        places = slot_plan(settings).places
        assert sorted((p.gpus, p.kind) for p in places) == [(1, "A100"), (1, "A100"), (2, "H100"), (4, "A100")]
        with pool(settings, storage.uri, epoch=1, started=time.time()) as client:
            summary = client.generate("answer", chunks)
            groups = [g for g in placement_group_table().values() if g["state"] == "CREATED"]
            assert sorted(g["bundles"][0]["GPU"] for g in groups) == [1, 1, 2, 4]
            assert all(len(g["bundles"]) == 1 for g in groups)
            where = {(g["bundles_to_node_id"][0], int(g["bundles"][0]["GPU"])) for g in groups}
            assert where == {(p.node, p.gpus) for p in places}
            assert ray.available_resources().get("GPU", 0) == 0
        assert (summary.rows, summary.failed) == (3 * ROWS, 0)
        events = [json.loads(line) for line in storage.read_text("events.jsonl").splitlines()]
        loads = [(e["expert"], places[int(e["slot"].removeprefix("slot-"))]) for e in events if e["event"] == "load"]
        assert {place.gpus for expert, place in loads if expert == "Four"} == {4}
        assert {place.kind for expert, place in loads if expert == "Two"} == {"H100"}
        assert 1 in {place.gpus for expert, place in loads if expert == "One"}
        deadline = time.monotonic() + 30
        while ray.available_resources().get("GPU", 0) < 8:
            assert time.monotonic() < deadline, "the slots' GPUs were not given back"
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("expert", "gpus", "said"),
    [
        ({"tensor_parallel_size": 8}, 8, "needs tensor_parallel_size=8 GPUs on one node; the nodes have"),
        ({"accelerator_type": "B200"}, 8, "GPUs of kind B200"),
        ({"tensor_parallel_size": 4}, 3, "gpus=3 may be used"),
    ],
)
def test_what_no_node_can_hold_is_a_resource_error(
    expert: dict[str, Any], gpus: int, said: str, tmp_path: Path, address: str
) -> None:
    settings = settings_of(tmp_path, address, {"name": "Big", "model": "org/big", **expert}, gpus=gpus)
    with connected(settings), pytest.raises(ResourceError, match=said):
        slot_plan(settings)


def test_a_node_that_offers_a_part_of_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ray start --num-gpus` once took it, and other tools of a cluster may still declare it."""
    row = {"Alive": True, "NodeID": "n", "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 2.0, "GPU": 0.5}}
    monkeypatch.setattr(ray, "nodes", lambda: [row])
    with pytest.raises(ResourceError, match=r"10\.0\.0\.1 offers 0\.5 GPUs: slots hold whole GPUs"):
        slot_plan(load(["task=demo", "pool=small", "engine.kind=fake"]))
