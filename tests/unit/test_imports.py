"""The import direction pipelines -> actors -> symoe_ray, and that symoe_ray stays pure."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
CLUSTER = {"ray", "vllm", "torch", "transformers"}
CONNECTING = {
    "opening",
    "doctor",
    "models_command",
    "serve",
    "submit",
}  # the modules of pipelines that may import actors


def modules(package: str) -> list[Path]:
    """The package's Python files."""
    return sorted((REPO / package).rglob("*.py"))


def imported(source: str) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, wherever in the code it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and _is_import_call(node):
            yield node.lineno, str(ast.literal_eval(node.args[0])).partition(".")[0]


def _is_import_call(node: ast.Call) -> bool:
    """`__import__("x")` or `import_module("x")`, with a literal."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"__import__", "import_module"} and bool(node.args) and isinstance(node.args[0], ast.Constant)


def breaches(package: str, forbidden: set[str], allowed_modules: frozenset[str] = frozenset()) -> list[str]:
    """`file:line imports name` for each forbidden import of a package."""
    return [
        f"{path.relative_to(REPO)}:{line} imports {name}"
        for path in modules(package)
        if path.stem not in allowed_modules
        for line, name in imported(path.read_text())
        if name in forbidden
    ]


def test_symoe_ray_is_pure() -> None:
    assert breaches("symoe_ray", {*CLUSTER, "actors", "pipelines"}) == []


def test_actors_do_not_know_the_pipelines() -> None:
    assert breaches("actors", {"pipelines"}) == []


def test_stages_do_not_import_actors() -> None:
    assert breaches("pipelines", {"actors"}, frozenset(CONNECTING)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import ray.data as rd",
        "from ray import serve",
        "from ray.serve import api",
        "def f():\n    import ray",
        "if True:\n    from ray.util import state",
        "import importlib\nimportlib.import_module('ray.data')",
    ],
)
def test_the_guard_sees_every_form_of_import(source: str) -> None:
    assert "ray" in {name for _, name in imported(source)}


def test_the_guard_is_not_fooled_by_names_alike() -> None:
    assert {name for _, name in imported("import symoe_ray\nfrom . import ray\nx = 'import ray'")} == {"symoe_ray"}


def test_importing_symoe_ray_loads_no_cluster_code() -> None:
    names = [".".join(path.relative_to(REPO).with_suffix("").parts) for path in modules("symoe_ray")]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(json.dumps(sorted({CLUSTER | {'actors', 'pipelines'}!r} & sys.modules.keys())))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
