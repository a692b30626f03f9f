"""What lies in cluster/: manifests against their schemas, scripts with stand-ins for Slurm and Ray."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from symoe_ray.config import load
from tools import setup

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
SCHEMAS = REPOSITORY.parent / "shared" / "schemas" / "kuberay"  # KubeRay's CRDs, of August 2026
KUBERAY = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
DOCKERFILES = [file for file in sorted((CLUSTER / "docker").iterdir()) if file.suffix != ".dockerignore"]


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """Every document of cluster/kuberay, with the file that it is in."""
    files = sorted((CLUSTER / "kuberay").glob("*.yaml"))
    return [(file.name, document) for file in files for document in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for _, document in manifests() if document["kind"] == kind]
    return found


def closed(schema: Any) -> Any:
    """A schema that refuses fields it does not name: the API server would drop them without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), Mapping) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("kind", KUBERAY)
def test_manifests_are_what_kuberays_schemas_ask_for(kind: str) -> None:
    file = SCHEMAS / f"ray.io_{KUBERAY[kind]}.yaml"
    if not file.is_file():
        pytest.skip(f"KubeRay's schemas are not at {SCHEMAS}")
    versions = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    validator = jsonschema.Draft202012Validator(closed(schema))
    assert [f"{e.json_path}: {e.message}" for e in validator.iter_errors(of_kind(kind))] == []
    misspelt = of_kind(kind) | {"spec": of_kind(kind)["spec"] | {"rayVersio": "2"}}
    assert not validator.is_valid(misspelt)


@pytest.mark.parametrize("kind", KUBERAY)
def test_tokens_tls_and_no_root_are_the_default_on_kubernetes(kind: str) -> None:
    spec = of_kind(kind)["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["tlsOptions"] == {"enabled": True}
    assert cluster["rayVersion"] == _version("ray")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]


def workers(kind: str) -> list[dict[str, Any]]:
    spec = of_kind(kind)["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return list(cluster["workerGroupSpecs"])


@pytest.mark.parametrize("kind", KUBERAY)
def test_pods_can_write_what_lies_on_the_nodes_own_disk(kind: str) -> None:
    """Kubernetes makes the folder of a hostPath for root alone, and fsGroup does not reach it."""
    for group in workers(kind):
        pod = group["template"]["spec"]
        (cache,) = [volume["name"] for volume in pod["volumes"] if "hostPath" in volume]
        (made,), (worker,) = pod["initContainers"], pod["containers"]
        (mount,) = made["volumeMounts"]
        assert mount["name"] == cache
        assert mount in worker["volumeMounts"]
        user = pod["securityContext"]
        assert made["command"] == ["chown", f"{user['runAsUser']}:{user['runAsGroup']}", mount["mountPath"]]
        assert made["image"] == worker["image"]
        assert made["securityContext"] == {
            "runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
        }  # fmt: skip
        assert made["resources"]["requests"] == made["resources"]["limits"]


@pytest.mark.parametrize("kind", KUBERAY)
def test_nothing_promises_nodes_that_no_autoscaler_brings(kind: str) -> None:
    for group in workers(kind):
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_examples_ask_for_the_gpus_that_their_workers_have() -> None:
    """A head is up before its workers: without a number a run takes what is there when it starts."""

    def gpus(kind: str) -> int:
        return sum(
            int(container["resources"]["limits"]["nvidia.com/gpu"]) * group["replicas"]
            for group in workers(kind) for container in group["template"]["spec"]["containers"]
        )  # fmt: skip

    job = load([w for w in of_kind("RayJob")["spec"]["entrypoint"].split()[4:] if "=" in w])
    (service,) = yaml.safe_load(of_kind("RayService")["spec"]["serveConfigV2"])["applications"]
    for kind, settings in (("RayJob", job), ("RayService", load(service["args"]["settings"]))):
        assert settings.gpus == gpus(kind)
        assert settings.cluster.node_wait_s > 0
    commands = re.findall(r"^#   symoe submit .*$", (CLUSTER / "kuberay" / "raycluster.yaml").read_text(), re.MULTILINE)
    assert [f" gpus={gpus('RayCluster')} " in command for command in commands] == [True]
    for file in (CLUSTER / "launcher").glob("*.yaml"):
        assert re.search(r"^#   symoe submit .* gpus=\d+ ", file.read_text(), re.MULTILINE), file.name


def test_the_served_application_is_what_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    mine = yaml.safe_load(of_kind("RayService")["spec"]["serveConfigV2"])
    alone = yaml.safe_load((CLUSTER / "serve.yaml").read_text())
    for config in (mine, alone):
        (application,) = ServeDeploySchema.model_validate(config).applications
        assert application.import_path == "pipelines.serve:build"
        assert load(application.args["settings"]).serve.max_wait_s == 60


def test_the_jobs_command_line_is_understood() -> None:
    words = of_kind("RayJob")["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "pipelines", "run"]
    settings = load([w for w in words[4:] if "=" in w])
    assert settings.output_dir.startswith("/")
    assert len(settings.pool.experts) == 16


@pytest.mark.parametrize("file", sorted((CLUSTER / "launcher").glob("*.yaml")), ids=lambda file: file.stem)
def test_launcher_files_are_what_rays_own_schema_asks_for(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(file.read_text())
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config | {"head_node_typo": "x"}))
    text = file.read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "RAY_USE_TLS=1" in text
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (REPOSITORY / local).is_file()


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_built_from_what_is_there(file: Path) -> None:
    text = re.sub(r"\\\n", " ", file.read_text())
    ignored = Path(f"{file}.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY --chown=symoe (.*) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (REPOSITORY / source).exists(), source
            assert f"!{source}" in ignored, source
    assert (
        f"# The versions that the tests passed with (Python {_python(text)}"
        in (REPOSITORY / "constraints.txt").read_text()
    )
    assert ("cpu" in file.name) == (setup.TORCH_CPU in text)
    assert text.index("USER symoe") < text.index("pip install")


def test_there_are_images_and_scripts_to_look_at() -> None:
    assert [file.name for file in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]
    assert [file.name for file in SCRIPTS] == ["slurm.sh", "tls.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_certificates_are_of_one_authority_and_for_the_addresses_given(tmp_path: Path) -> None:
    for arguments in (("ca", tmp_path), ("node", tmp_path, "10.0.0.1", "10.0.0.2")):
        subprocess.run([CLUSTER / "tls.sh", *arguments], check=True)
    told = subprocess.run([CLUSTER / "tls.sh", "env", tmp_path], capture_output=True, text=True, check=True).stdout
    assert f"RAY_TLS_CA_CERT={tmp_path}/ca.crt" in told
    assert "RAY_USE_TLS=1" in told
    names = _openssl("x509", "-in", tmp_path / "tls.crt", "-noout", "-ext", "subjectAltName")
    assert all(f"IP Address:{address}" in names for address in ("127.0.0.1", "10.0.0.1", "10.0.0.2"))
    assert "OK" in _openssl("verify", "-CAfile", tmp_path / "ca.crt", tmp_path / "tls.crt")
    assert (tmp_path / "tls.key").stat().st_mode & 0o077 == 0


STANDINS = {
    # scontrol names two nodes; srun runs here what it was to run there; all write down what they were called with
    "scontrol": 'echo "scontrol $*" >>"$LOG"; [ "$1" != show ] || printf "node-a\\nnode-b\\n"',
    "srun": 'echo "srun $*" >>"$LOG"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": 'if [ "$1" = -I ]; then echo 127.0.0.1; else echo here; fi',
    "ray": 'echo "ray $* token=$RAY_AUTH_MODE tls=$RAY_USE_TLS pid=$$" >>"$LOG"; exec sleep 60',
    "python": "exit 0",
    "symoe": 'echo "symoe $* $RAY_ADDRESS" >>"$LOG"; trap "exit 143" TERM; [ "$1" != run ] || sleep 60 & wait; exit 3',
}


BOTH_UP = 'until [ "$(grep -c pid= "$LOG")" = 2 ]; do sleep 0.05; done; exit 3'
"""A run that ends as soon as Ray runs on both nodes."""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands of Slurm and Ray are stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STANDINS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "cluster").symlink_to(CLUSTER)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_SUBMIT_DIR": str(tmp_path),
    }  # fmt: skip


def test_slurm_starts_ray_on_every_node_and_ends_as_the_run_does(slurm: dict[str, str], tmp_path: Path) -> None:
    symoe = tmp_path / "bin" / "symoe"
    symoe.write_text(symoe.read_text().replace("sleep 60 & wait; exit 3", BOTH_UP))
    done = subprocess.run([CLUSTER / "slurm.sh", "task=demo", "--run", "r"], env=slurm, timeout=60, check=False)
    assert done.returncode == 3
    log = (tmp_path / "log").read_text()
    head = "ray start --head --block --port=20123 --node-ip-address=127.0.0.1"
    assert re.search(rf"{head} .* token=token tls=1", log)
    assert re.search(r"srun .*--nodelist=node-b ray start --block --address=127\.0\.0\.1:20123", log)
    assert "symoe run cluster=auto task=demo --run r 127.0.0.1:20123" in log
    assert "requeue" not in log
    assert not list(tmp_path.glob(".symoe-*")), "the token and the key are still there"
    pids = re.findall(r"pid=(\d+)", log)
    assert len(pids) == 2
    assert not any(Path("/proc", pid).exists() for pid in pids), "Ray is still there"


def test_at_slurms_time_limit_the_run_is_told_and_queued_again(slurm: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen([CLUSTER / "slurm.sh", "task=demo"], env=slurm)
    deadline = time.monotonic() + 60
    while "symoe run" not in (Path(slurm["LOG"]).read_text() if Path(slurm["LOG"]).exists() else ""):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # Slurm's --signal=B:TERM
    assert process.wait(60) == 143
    assert "scontrol requeue 123" in Path(slurm["LOG"]).read_text()


def _openssl(*arguments: object) -> str:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def _version(package: str) -> str:
    (found,) = re.findall(rf"^{package}==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    return str(found)


def _python(dockerfile: str) -> str:
    (found,) = re.findall(r"^FROM python:(\d+\.\d+)-", dockerfile, re.MULTILINE)
    return str(found)
