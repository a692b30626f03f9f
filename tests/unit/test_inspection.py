"""What `symoe doctor` says of a machine and of a model's files, without an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors import inspection
from actors.inspection import GIB, inspect_machine
from pipelines.doctor import doctor
from pipelines.signals import DONE, MISSING
from symoe_ray.config import load
from symoe_ray.findings import Finding
from tests.unit.test_engine_plans import model


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU, and no cluster to join."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(inspection, "_gpus", lambda: [("H100", 80 * GIB)])


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
