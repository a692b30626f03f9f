"""The six stages on real vLLM engines: four architectures with random weights, two slots, one Ray cluster."""

from __future__ import annotations

import json
import os
import signal

import pytest

from actors.models import prepared_folder
from tests.local_cluster.conftest import Symoe, alive, engines_of, wait_until

pytestmark = [pytest.mark.real_engine, pytest.mark.real_ray]
STAGES = ("annotate", "profile", "bench-aggregators", "answer", "aggregate")
RUN = ("run", "pool=tiny", "engine.slots=2", "--limit", "12", "--run", "r", "--json")


def test_a_run_outlives_its_engines_and_ends_complete(symoe: Symoe) -> None:
    if not prepared_folder("tiny-qwen3").is_dir():
        pytest.skip("package:tiny-qwen3 is not prepared (make setup)")
    run = symoe.run_folder("r")
    process = symoe.start(*RUN)
    wait_until(lambda: any(e["stage"] == "profile" for e in run.events("load")), process)
    engines = engines_of(process)
    assert engines
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, (err, (run.path / "logs" / "slot-0.log").read_text()[-3000:])
    assert run.json("results.json") == json.loads(out)
    for stage in STAGES:
        committed = run.committed(stage)
        assert set(committed) == run.requested(stage), stage
        assert set(committed.values()) <= {1}, stage
    loads = run.events("load")
    assert all(e["tier"] == "fork" or "signal 9" in e["message"] for e in loads)  # a killed load goes on to spawn
    assert {e["key"].rsplit("-", 1)[0] for e in loads} == {"tiny-llama", "tiny-qwen2", "tiny-gemma2", "tiny-qwen3"}
    assert all(e["bytes"] > 0 for e in loads)
    assert run.json("results.json")["symoe"]["grading"]["failed"] == 0
    assert not any(alive(pid) for pid in engines)
