"""A run over several nodes that share nothing but an object store, one of which is lost and one of which joins late.

Where no namespaces may be made it is skipped; SYMOE_NODES=plain runs it on processes that share network and disk.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from symoe_ray.ledger import Commits
from symoe_ray.storage import Storage
from tests.nodes.conftest import BUCKET, KEYS, s3_server
from tests.nodes.machines import GCS_PORT, Machine, can_isolate, machines, wait_for

pytestmark = [pytest.mark.real_ray, pytest.mark.slow]
PLAIN = os.environ.get("SYMOE_NODES") == "plain"
STAGES = ("annotate", "profile", "answer", "aggregate")
RUN_TIMEOUT_S = 240.0
SLOW = (
    "task=demo", "pool=small", "engine.kind=fake", "cluster=auto", "engine.slots=1", "engine.chunk_rows=8",
    "engine.fake_tokens_per_s=20", "engine.fake_load_s=0.2", "baselines=off", "aggregator=SmolLM2",
    "task.demo.validation=12", "task.demo.test=48",
)  # fmt: skip


def test_a_run_outlives_a_lost_node_and_uses_one_that_joins_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node has its own network, address and disk; the driver's folder is hidden from all others."""
    if not PLAIN and not can_isolate():
        pytest.skip("network and mount namespaces cannot be made here (that takes root and `ip`)")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "driver"
    home.mkdir()
    (home / "note").write_text("for the driver's node alone")
    with s3_server(tmp_path) as port, machines(4, KEYS, hidden=[home], isolated=not PLAIN) as cluster:
        head, first, lost, late = cluster.all
        gcs = f"{head.address}:{GCS_PORT}"
        head.start_ray("--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=false")
        wait_for(lambda: _listens(head), "the head", tell=head.log)
        for machine in (first, lost):
            machine.start_ray(f"--address={gcs}", "--num-cpus=2")
        folder = f"output_dir=s3://{BUCKET}?endpoint_override={cluster.gateway}:{port}&scheme=http"
        arguments = ("run", *SLOW, f"cluster.address={gcs}", folder, "--run", "r", "--json")
        wait_for(lambda: _joined(first) and _joined(lost), "the nodes", tell=lambda: head.log() + first.log())
        driver = head.start(sys.executable, "-m", "pipelines", *arguments, folder=home, sees_all=True)

        run = Storage(f"s3://{BUCKET}/r?endpoint_override=127.0.0.1:{port}&scheme=http")
        _until(driver, head, lambda: {"slot-0", "slot-1"} <= _slots_at_work(run))
        lost.lose()
        late.start_ray(f"--address={gcs}", "--num-cpus=2")
        assert driver.wait(RUN_TIMEOUT_S) == 0, head.log()

        _check_each_row_once(run)
        assert run.read_json("status.json")["state"] == "finished"
        assert run.read_json("results.json")["symoe"]["grading"]["failed"] == 0
        events = [json.loads(line) for line in run.read_text("events.jsonl").splitlines()]
        assert {e["slot"] for e in events if e["event"] == "generate"} == {"slot-0", "slot-1", "slot-2"}
        assert [e["slot"] for e in events if e["event"] == "join"] == ["slot-2"]
        assert any("is lost" in e.get("message", "") for e in events if e["event"] == "crash")
        assert sorted(path.name for path in home.iterdir()) == ["note"]
        if cluster.isolated:
            seen = first.start("ls", str(home))
            seen.wait()
            assert "note" not in first.log()


def _listens(machine: Machine) -> bool:
    try:
        socket.create_connection((machine.address, GCS_PORT), timeout=1).close()
    except OSError:
        return False
    return True


def _joined(machine: Machine) -> bool:
    return "Ray runtime started" in machine.log()


def _until(driver: subprocess.Popen[str], head: Machine, condition: Callable[[], bool]) -> None:
    def told() -> bool:
        assert driver.poll() is None, head.log()
        return condition()

    wait_for(told, "work on both nodes", tell=head.log)


def _slots_at_work(run: Storage) -> set[str]:
    return {part.slot for stage in STAGES for part in Commits(run).parts(stage)}


def _check_each_row_once(run: Storage) -> None:
    """From requests, commits and parts alone."""
    for stage in STAGES:
        wanted = set()
        for name in run.names(f"requests/{stage}", ".parquet"):
            rows = run.read_table(name, ["request_id", "n"]).to_pylist()
            wanted |= {(row["request_id"], i) for row in rows for i in range(row["n"])}
        found: Counter[tuple[str, int]] = Counter()
        for part in Commits(run).parts(stage):
            rows = run.read_table(part.path, ["request_id", "sample"]).to_pylist()
            found.update((row["request_id"], row["sample"]) for row in rows)
        assert found == Counter(wanted), stage
        assert wanted, stage
