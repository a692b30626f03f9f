"""Which engine arguments the installed vLLM takes, read from its source: to import it would take seconds."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from symoe_ray.config_checks import unknown_engine_argument
from symoe_ray.core import ExpertSpec

SOURCE = ("engine", "arg_utils.py")
CLASS = "EngineArgs"


@cache
def known_arguments() -> frozenset[str]:
    """The fields of vLLM's EngineArgs; none where it is not installed, or looks otherwise than it did."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        return frozenset()
    try:
        tree = ast.parse(Path(vllm.origin).parent.joinpath(*SOURCE).read_bytes())
    except (OSError, SyntaxError):
        return frozenset()
    return fields_of(tree)


def fields_of(tree: ast.Module) -> frozenset[str]:
    """The public fields of the dataclass in a module's source; none where it is not there."""
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == CLASS]
    targets = [node.target for body in bodies for node in body if isinstance(node, ast.AnnAssign)]
    return frozenset(name.id for name in targets if isinstance(name, ast.Name) and not name.id.startswith("_"))


def argument_problem(spec: ExpertSpec) -> str:
    """Which engine argument of an expert the vLLM of this machine, if there is one, does not take; "" for none."""
    known = known_arguments() if spec.engine_args else ()
    return unknown_engine_argument(spec, known) if known else ""
