"""`symoe submit` on a real Ray cluster with a dashboard, token authentication and TLS; fake engines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.local_cluster.conftest import REPOSITORY, Command, RunFolder, wait_until

pytestmark = [pytest.mark.real_ray, pytest.mark.slow]
TIMEOUT_S = 240.0
FAKE = (
    "engine.kind=fake", "engine.slots=1", "pool=small", "task.demo.validation=12", "task.demo.test=12",
)  # fmt: skip


@dataclass(frozen=True)
class Submitter:
    """Runs `symoe submit` in the source tree against a cluster; runs lie in `folder`."""

    folder: Path
    temporary: Path
    environment: dict[str, str]
    head: subprocess.Popen[str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A submission under way."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "submit", *arguments], cwd=REPOSITORY, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def __call__(self, *arguments: str) -> Command:
        """A submission, to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return Command(process.returncode, out, err)

    def stage(self, stage: str, name: str, *settings: str) -> tuple[str, ...]:
        """The command line of a stage of a run."""
        return ("--python", sys.executable, "--", stage, *FAKE, f"output_dir={self.folder}", "--run", name, *settings)

    def uploaded(self) -> set[str]:
        """The names at the top of the working directories that jobs ran in."""
        folders = (self.temporary / "session_latest" / "runtime_resources" / "working_dir_files").glob("_ray_pkg_*")
        return {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answers(url: str, token: str) -> bool:
    """Whether a server is there and takes the token."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    """A cluster as cluster/README.md starts one: a token, TLS, the job server on this machine's own address."""
    folder = tmp_path_factory.mktemp("submit")
    certificates = folder / "tls"
    for action in ("ca", "node"):
        subprocess.run([str(REPOSITORY / "cluster" / "tls.sh"), action, str(certificates)], check=True)
    token = folder / "auth_token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    temporary = Path(tempfile.mkdtemp(prefix="symoe-", dir="/tmp"))  # the paths of Ray's sockets must be short
    port, jobs, agent, client = free_ports(4)
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(certificates / "tls.crt"), "RAY_TLS_SERVER_KEY": str(certificates / "tls.key"),
        "RAY_TLS_CA_CERT": str(certificates / "ca.crt"), "RAY_USAGE_STATS_ENABLED": "0",
        "SYMOE_CACHE": str(folder / "cache"),
    }  # fmt: skip
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={jobs}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--num-cpus=2",
            "--object-store-memory=100000000", f"--temp-dir={temporary}",
        ],
        env=environment, start_new_session=True, text=True, stdout=(folder / "head.txt").open("w"),
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{jobs}"}
    submitter = Submitter(folder, temporary, environment | address, head)
    try:
        while not answers(f"http://127.0.0.1:{jobs}/api/version", token.read_text()):
            assert head.poll() is None, (folder / "head.txt").read_text()
            with suppress(subprocess.TimeoutExpired):
                head.wait(0.2)
        yield submitter
    finally:
        for process in submitter.started:
            process.kill()
            process.communicate()
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def job_of(process: subprocess.Popen[str]) -> str:
    """The id of the job that a submission has just made."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("symoe submit: job "):
            return line.split()[-1]
    raise AssertionError(process.communicate())


def test_a_job_that_one_leaves_goes_on_can_be_stopped_and_is_resumed(submit: Submitter) -> None:
    run = RunFolder(submit.folder / "r")
    slow = ("engine.fake_tokens_per_s=1", "engine.chunk_rows=2", "engine.max_num_seqs=4")
    process = submit.start(*submit.stage("annotate", "r", *slow))
    job = job_of(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert f"detached, job {job} goes on" in err
    wait_until(lambda: len(run.parts("annotate")) >= 1, submit.head)
    stopped = submit("--stop", job)
    assert stopped.code == 143, stopped.err
    status = run.json("status.json")
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)
    assert 0 < len(run.committed("annotate")) < len(run.requested("annotate"))

    resumed = submit("--python", sys.executable, "--resume", job, "engine.fake_tokens_per_s=0")
    assert resumed.code == 0, resumed.err
    assert "== annotate" in resumed.out
    assert set(run.committed("annotate")) == run.requested("annotate")
    assert set(run.committed("annotate").values()) == {1}
    assert (run.json("manifest.json")["attempts"], run.json("status.json")["exit_code"]) == (2, 0)
    assert submit.uploaded() >= {"pipelines", "actors", "symoe_ray", "conf"}
    assert submit.uploaded().isdisjoint({"data", "runs", "tests", ".git", ".venv"})


def test_models_are_pulled_on_the_nodes_and_the_jobs_exit_code_is_returned(submit: Submitter) -> None:
    """The code is 4, of which `ray job submit` makes 1: one of the two models is nowhere."""
    (shared := submit.folder / "shared").mkdir()
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (shared / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    (shared / "config.json").write_text("{}")
    experts = [{"name": "A", "model": shared.as_uri()}, {"name": "B", "model": (submit.folder / "absent").as_uri()}]
    (submit.folder / "pool.yaml").write_text(json.dumps({"name": "p", "experts": experts}))
    pull = ("models", "pull", "A", "B", "--every-node", f"pool={submit.folder}/pool.yaml", "cluster=auto")
    done = submit("--python", sys.executable, "--", *pull)
    assert done.code == 4, done.err
    assert "job symoe-" in done.err
    assert "exit code 4" in done.err
    assert f"{socket.gethostname()}: B: model {experts[1]['model']} cannot be read" in done.out
    (copy,) = (submit.folder / "cache" / "weights").glob("shared-*/*/model.safetensors")
    assert copy.read_bytes() == (shared / "model.safetensors").read_bytes()


def test_another_token_is_refused(submit: Submitter) -> None:
    stranger = replace(submit, environment=submit.environment | {"RAY_AUTH_TOKEN": "f" * 64})
    refused = stranger("--stop", "symoe-1")
    assert refused.code == 4
    assert "token" in refused.err.lower()
