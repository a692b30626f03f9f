"""`serve deploy cluster/serve.yaml` on a cluster that was started with `ray start --head`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml

from tests.processes import family, kill
from tests.serve.conftest import REPOSITORY, TIMEOUT_S, free_port, make_run
from tests.serve.test_endpoint import MESSAGES, wait_for

pytestmark = [pytest.mark.real_ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPOSITORY),
}  # fmt: skip


def answers(url: str) -> bool:
    """Whether something says 200 there."""
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of a cluster's dashboard, which takes deployments."""
    folder, port = tempfile.mkdtemp(prefix="ray-"), free_port()
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
            f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}",
        ],
        env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/version"))
        yield f"http://127.0.0.1:{port}"
    finally:
        kill(pid for pid, _, _ in family(process.pid))  # asked to end, `ray start` takes half a minute
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def every_engine_has_ended(events: Path) -> bool:
    """Whether the last thing that is noted of the slot's engines is that one was unloaded."""
    kinds = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    return [kind for kind in kinds if kind in ("load", "reload", "unload")][-1] == "unload"


def test_the_config_file_is_deployed_and_answers(tmp_path: Path, dashboard: str) -> None:
    port = free_port()
    config = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"]["run"] = str(make_run(tmp_path / "made", "engine.kind=fake", "pool=tiny"))
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(
        [BIN / "serve", "deploy", tmp_path / "serve.yaml", "--address", dashboard],
        env=ENVIRONMENT, check=True, timeout=TIMEOUT_S, capture_output=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: answers(f"{url}/readyz"))
    body = {"model": "symoe", "messages": MESSAGES}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["symoe"]["recruitment"]["experts"]) == 3
    subprocess.run(
        [BIN / "serve", "shutdown", "--yes", "--address", dashboard],
        env=ENVIRONMENT, check=True, timeout=TIMEOUT_S, capture_output=True,
    )  # fmt: skip
    wait_for(lambda: every_engine_has_ended(tmp_path / "made-serving" / "events.jsonl"))
