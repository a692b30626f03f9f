"""Engine arguments that vLLM does not have are told before an engine is loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from actors import engine_arguments
from actors.engine_arguments import argument_problem, fields_of, known_arguments
from actors.inspection import inspect_machine
from actors.platform import engine_args
from pipelines import cli
from pipelines.signals import USAGE
from symoe_ray.config import load
from symoe_ray.config_checks import unknown_engine_argument
from symoe_ray.core import ExpertSpec
from symoe_ray.settings import EngineSettings

SOURCE = """
class Other:
    elsewhere: int = 0

class EngineArgs:
    model: str
    quantization: str | None = None
    _count: int = 0
    plain = 3
    def method(self) -> None: ...
"""


def expert(**engine_args: object) -> ExpertSpec:
    return ExpertSpec(name="A", model="m", engine_args=engine_args)


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """`pool=` of a file with an expert whose argument is misspelt."""
    path = tmp_path / "pool.yaml"
    path.write_text("name: p\nexperts: [{name: A, model: nowhere/at-all, engine_args: {quantisation: fp8}}]\n")
    return f"pool={path}"


class TestFields:
    def test_are_the_public_annotated_ones_of_the_class(self) -> None:
        assert fields_of(ast.parse(SOURCE)) == {"model", "quantization"}
        assert fields_of(ast.parse("x = 1")) == frozenset()

    def test_what_the_project_sets_itself_is_known_to_the_installed_vllm(self) -> None:
        known = known_arguments()
        if not known:
            pytest.skip("vLLM is not installed")
        for cuda in (False, True):
            own = engine_args(expert(), "/m", EngineSettings(), cuda=cuda, kv_bytes_per_token=1)
            assert own.keys() <= known

    def test_to_read_them_imports_no_vllm(self) -> None:
        code = "import sys; from actors.engine_arguments import known_arguments as k; k(); print('vllm' in sys.modules)"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == "False"


class TestUnknownArgument:
    KNOWN = ("quantization", "max_num_seqs", "max_model_len", "enable_lora")

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("quantisation", "; did you mean pool.experts[A].engine_args.quantization?"),
            ("max-num-seqs", "; did you mean pool.experts[A].engine_args.max_num_seqs?"),
            ("max_modl_len", "; did you mean pool.experts[A].max_model_len?"),
            ("zzzz", "vLLM has no such engine argument"),
        ],
    )
    def test_is_named_with_the_nearest(self, name: str, hint: str) -> None:
        problem = unknown_engine_argument(expert(quantization="fp8", **{name: 1}), self.KNOWN)
        assert problem.startswith(f"unknown key 'pool.experts[A].engine_args.{name}'")
        assert problem.endswith(hint)

    def test_none_is_no_problem(self) -> None:
        assert unknown_engine_argument(expert(quantization="fp8"), self.KNOWN) == ""

    def test_without_vllm_nothing_is_known_to_be_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_arguments, "known_arguments", frozenset)
        assert argument_problem(expert(quantisation="fp8")) == ""


class TestCommands:
    @pytest.fixture(autouse=True)
    def _some_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_arguments, "known_arguments", lambda: frozenset(["quantization"]))

    @pytest.mark.parametrize("command", [("run", "--dry-run"), ("run",), ("annotate",), ("plan",)])
    def test_that_would_run_engines_refuse_it(
        self, command: tuple[str, ...], pool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([*command, pool, f"output_dir={tmp_path / 'runs'}"]) == USAGE
        assert "did you mean pool.experts[A].engine_args.quantization?" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()

    def test_fake_engines_take_anything(self, pool: str) -> None:
        assert cli.main(["run", "--dry-run", pool, "engine.kind=fake"]) == 0

    def test_doctor_finds_it(self, pool: str) -> None:
        (found,) = (finding for finding in inspect_machine(load([pool])) if finding.what == "expert A")
        assert not found.fine
        assert "unknown key 'pool.experts[A].engine_args.quantisation'" in found.value
