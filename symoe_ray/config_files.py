"""The YAML files of the configuration: where conf/ is, and reading one of its files into plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from symoe_ray.core import InputError

GROUPS = ("task", "pool", "cluster")


def find_conf_dir() -> Path:
    """./conf if it has a config.yaml; else the copy inside the installed package; else the one of the source tree."""
    package = Path(__file__).resolve().parent
    candidates = [Path("conf"), package / "conf", package.parent / "conf"]
    for folder in candidates:
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(f"no conf/config.yaml found; looked in {', '.join(str(folder) for folder in candidates)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's mapping with interpolations as they stand. InputError with line and column where it is malformed."""
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: not valid YAML: {error.problem or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from None
    values = OmegaConf.to_container(loaded, resolve=False)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a mapping of keys to values")
    return {str(key): value for key, value in values.items()}


def find_group_file(conf_dir: Path, group: str, value: str) -> Path:
    """The file of `group=value`: NAME in conf_dir/group/, or a path to FILE.yaml. InputError lists the names."""
    path = Path(value).expanduser() if value.endswith((".yaml", ".yml")) else conf_dir / group / f"{value}.yaml"
    if value and path.is_file():
        return path
    names = sorted(file.stem for file in (conf_dir / group).glob("*.yaml"))
    raise InputError(
        f"{group}={value}: there is no {path}; available: {', '.join(names) or '(none)'}, or a path to your FILE.yaml"
    )


def first_line(error: Exception) -> str:
    """The first line of an exception's message: OmegaConf adds several of its own state."""
    return str(error).strip().split("\n", 1)[0]
