"""What `symoe doctor` says of a machine and of a model's files, without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from actors import inspection, memory, nvml
from actors.inspection import inspect_machine
from actors.memory import GIB
from pipelines.doctor import doctor
from pipelines.signals import DONE, MISSING
from symoe_ray.config import load
from symoe_ray.findings import Finding
from tests.unit.test_engine_plans import model
from tests.unit.test_memory import Nvml, NVMLError


class Gpus(Nvml):
    """NVML of a machine with a GPU of 80 GiB for each entry of `free`, in GiB (-1: it cannot be read)."""

    free: ClassVar[list[int]] = [79]

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVML's spelling
        return len(self.free)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        if self.free[handle] < 0:
            raise NVMLError("Insufficient Permissions")
        return SimpleNamespace(free=self.free[handle] * GIB, total=80 * GIB)


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU, and no cluster to join."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml, "_nvml", Gpus)
    monkeypatch.setattr(memory, "host_available_bytes", lambda: 64 * GIB)


def found(what: str, *overrides: str) -> list[Finding]:
    return [finding for finding in inspect_machine(load(overrides)) if finding.what == what]


class TestGpus:
    def test_more_than_are_here_fail_as_the_run_would(self, capsys: pytest.CaptureFixture[str]) -> None:
        (finding,) = found("gpus", "gpus=8")
        assert doctor([finding], as_json=False) == MISSING
        assert "FAIL gpus  gpus=8 was asked for, but this machine has 1" in capsys.readouterr().out

    @pytest.mark.parametrize("given", [("gpus=1",), (), ("gpus=8", "cluster=auto"), ("gpus=8", "engine.kind=fake")])
    def test_what_is_here_or_elsewhere_is_fine(self, given: tuple[str, ...]) -> None:
        assert found("gpus", *given) == []

    def test_in_a_cluster_that_is_there_others_may_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert found("gpus", "gpus=8") == []

    def test_hidden_ones_do_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        (finding,) = found("gpus", "gpus=1")
        assert finding.value.endswith("has 0")

    def test_the_visible_ones_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Gpus, "free", [79, 12])
        assert [f.value for f in found("gpu 1")] == ["H100, driver 580.65.06, 12.0 GiB free"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert [f.value for f in found("gpu 0")] == ["H100, driver 580.65.06, 12.0 GiB free"]
        assert found("gpu 1") == []

    def test_one_that_cannot_be_read_is_told_and_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Gpus, "free", [-1])
        (finding,) = found("gpu 0")
        assert (finding.fine, finding.advice) == (False, "GPU 0: Insufficient Permissions")


class TestFit:
    @pytest.fixture
    def pool(self, tmp_path: Path) -> str:
        model(tmp_path / "m")
        (tmp_path / "pool.yaml").write_text(f"name: p\nexperts: [{{name: A, model: {tmp_path / 'm'}}}]\n")
        return f"pool={tmp_path / 'pool.yaml'}"

    @pytest.mark.parametrize(("visible", "fine"), [(None, False), ("0", False), ("1", True), ("1,0", False)])
    def test_the_fullest_visible_gpu_decides(
        self, visible: str | None, fine: bool, pool: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Gpus, "free", [0, 79])
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [f.fine for f in found("expert A", pool)] == [fine]

    def test_the_share_that_vllm_asks_for_must_be_free(self, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Gpus, "free", [60])
        (finding,) = found("expert A", pool)
        assert not finding.fine
        assert "72.75 GiB of GPU memory and 60.00 GiB are free" in finding.advice
        assert found("expert A", pool, "engine.gpu_memory_utilization=0.7")[0].fine

    @pytest.mark.parametrize(("weights_gib", "fine"), [(70, True), (71, False), (75, False), (90, False)])
    def test_weights_must_leave_room_for_a_context(
        self, weights_gib: int, fine: bool, pool: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inspection, "weight_bytes", lambda folder: weights_gib * GIB)
        (finding,) = found("expert A", pool)
        assert (finding.fine, finding.advice.startswith("the KV cache would have 0.00 GiB")) == (fine, not fine)
        wide = Path(pool.removeprefix("pool="))
        wide.write_text(wide.read_text().replace("}]", ", tensor_parallel_size: 2}]"))
        assert found("expert A", pool)[0].fine

    def test_a_gpu_that_cannot_be_read_fits_nothing(self, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Gpus, "free", [-1])
        (finding,) = found("expert A", pool)
        assert (finding.fine, finding.advice) == (False, "GPU 0: Insufficient Permissions")

    def test_on_the_cpu_host_memory_decides(self, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert found("expert A", pool)[0].fine
        monkeypatch.setattr(memory, "host_available_bytes", lambda: GIB // 2)
        (finding,) = found("expert A", pool)
        assert not finding.fine
        assert "GiB of host memory and 0.50 GiB are free" in finding.advice


class TestOwnCode:
    def expert(self, folder: Path, more: str = "") -> Finding:
        path = folder.parent / "pool.yaml"
        path.write_text(f"name: p\nexperts: [{{name: A, model: {folder}{more}}}]\n")
        (finding,) = found("expert A", f"pool={path}")
        return finding

    def test_a_model_with_code_beside_it_is_remarked_on_unless_it_is_trusted(self, tmp_path: Path) -> None:
        folder = tmp_path / "m"
        model(folder)
        assert self.expert(folder).advice == ""
        model(folder, auto_map={"AutoConfig": "code.Config"})
        config = self.expert(folder)
        assert config.fine
        assert config.advice.startswith("config.json: auto_map names Python code")
        assert "trust_remote_code" in config.advice
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {}}))
        both = self.expert(folder)
        assert both.advice.startswith("config.json and tokenizer_config.json: auto_map")
        assert self.expert(folder, ", trust_remote_code: true, revision: v1").advice == ""
        assert doctor([both], as_json=False) == DONE
