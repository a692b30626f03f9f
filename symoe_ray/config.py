"""Settings from conf/, a saved run and `key=value` overrides: read once, at the entry.

`load` merges plain values, resolves `${...}`, and only then makes the typed `Settings`; `to_yaml` writes them so that
loading gives them back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from symoe_ray.config_checks import check
from symoe_ray.config_files import GROUPS, find_conf_dir, find_group_file, first_line, read_yaml
from symoe_ray.core import ExpertSpec, InputError
from symoe_ray.overrides import COMMAND_LINE, Override, parse_overrides, put
from symoe_ray.settings import Settings
from symoe_ray.typed import Origin, build, convert, hints, joined, unknown_key, wrong

# What `compat` stands for; each key can still be set beside it on the command line.
_COMPAT: dict[str, dict[str, Any]] = {
    "reference": {
        "router": "reference",
        "sampler": "reference",
        "replacement": True,
        "trim_threshold": 0.0,
        "no_skills": "uniform",
        "grader": "reference",
    },
}


@dataclass
class _Tree:
    """Plain values while they are merged, and for each key or group the place that set it."""

    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where a key was set: the place of its longest known prefix."""
        parts = re.split(r"[.\[]", key)
        prefixes = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
        return next((self.places[prefix] for prefix in prefixes if prefix in self.places), COMMAND_LINE)


def load(overrides: Sequence[str] = (), *, conf_dir: Path | None = None, base: Path | None = None) -> Settings:
    """The settings of a run.

    They start from conf_dir/config.yaml (./conf, else the installed copy) with the task, pool and cluster files it
    names, or from `base`, a saved run's config.yaml. `task=`, `pool=` and `cluster=` then replace whole groups, and
    `key=value` single keys. InputError names the key, the place and the allowed values of whatever is wrong.
    """
    given = parse_overrides(overrides)
    selected = {override.key: str(override.value) for override in given if override.key in GROUPS}
    single = [override for override in given if override.key not in GROUPS]
    if base:
        tree = _Tree(read_yaml(base), {"": str(base)})
        _refuse_without_effect(tree, selected, single)
        _select(tree, selected, conf_dir)
    else:
        folder = conf_dir or find_conf_dir()
        tree = _Tree(read_yaml(folder / "config.yaml"), {"": str(folder / "config.yaml")})
        named = {group: tree.values[group] for group in GROUPS if isinstance(tree.values.get(group), str)}
        _select(tree, {**named, **selected}, folder)
        _apply_compat(tree, "default")
    before = str(tree.values.get("compat", "default"))
    for override in sorted(single, key=lambda override: override.key != "compat"):  # a stable sort: compat comes first
        put(tree.values, override)
        tree.places[override.key] = COMMAND_LINE
        if override.key == "compat":
            _apply_compat(tree, before)
    if {"seed", "seeds"} & {override.key for override in single} == {"seed"}:
        tree.values["seeds"] = []  # else those of a saved run would stand, and the seed that was asked for be ignored
    return _typed(tree)


def to_yaml(settings: Settings) -> str:
    """The settings in full, as YAML that `load(base=...)` reads back to equal settings."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(asdict(settings))))


def _refuse_without_effect(tree: _Tree, selected: Mapping[str, str], single: Sequence[Override]) -> None:
    """A saved run holds its file paths and its experts in full: what they were made from cannot be changed alone."""
    for override in single:
        moved = override.key == "data_dir" and override.value != tree.values.get("data_dir")
        if moved and "task" not in selected:
            raise InputError(f"{COMMAND_LINE}: data_dir does not move a saved run's task files; give task=NAME with it")
        if override.key.startswith("pool.defaults.") and "pool" not in selected:
            raise InputError(
                f"{COMMAND_LINE}: {override.key} does not reach a saved run's experts; give pool=NAME with it"
            )


def _select(tree: _Tree, selected: Mapping[str, str], conf_dir: Path | None) -> None:
    """Put the chosen files' values in place of the groups."""
    for group, value in selected.items():
        path = find_group_file(conf_dir or find_conf_dir(), group, value)
        tree.values[group] = read_yaml(path)
        tree.places[group] = str(path)


def _apply_compat(tree: _Tree, before: str) -> None:
    """Set the keys that `compat` stands for; going back from one sets Settings' own defaults."""
    name = str(tree.values.get("compat", "default"))
    place = f"{tree.origin('compat')} (compat: {name})"
    defaults = {key: getattr(Settings, key) for key in _COMPAT.get(before, {})}
    for key, value in _COMPAT.get(name, defaults if name != before else {}).items():
        tree.values[key] = value
        tree.places[key] = place


def _typed(tree: _Tree) -> Settings:
    values = _resolved(tree)
    if isinstance(values.get("pool"), Mapping):
        values["pool"] = _with_defaults(values["pool"], tree.origin)
    settings = build(Settings, values, "", tree.origin)
    check(settings, tree.origin)
    experts = tuple(_with_template(expert, tree.origin) for expert in settings.pool.experts)
    return replace(settings, pool=replace(settings.pool, experts=experts))


def _with_template(expert: ExpertSpec, origin: Origin) -> ExpertSpec:
    """The expert with the template's text where `chat_template` is a file's path, as vLLM's --chat-template may be."""
    given, key = expert.chat_template, f"pool.experts[{expert.name}].chat_template"
    if not given or _is_template(given):
        return expert
    path = Path(given).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        need = f"must be Jinja text, or a file that holds it: {path.absolute()} cannot be read"
        raise wrong(key, given, f"{need} ({getattr(error, 'strerror', None) or error})", origin) from None
    if not _is_template(text):
        raise wrong(key, given, f"must name a Jinja template, but {path.absolute()} has no {{ in it", origin)
    return replace(expert, chat_template=text)


def _is_template(text: str) -> bool:
    return "{" in text


def _with_defaults(pool: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """A pool file's values with its `defaults` under every expert's own; sampling and engine_args merge key by key."""
    defaults, experts = pool.get("defaults") or {}, pool.get("experts") or []
    fields = {name: hint for name, hint in hints(ExpertSpec).items() if name != "name"}
    if not isinstance(defaults, Mapping):
        raise wrong("pool.defaults", defaults, "must be a mapping", origin)
    for name, value in defaults.items():
        key = joined("pool.defaults", str(name))
        if name not in fields:
            raise unknown_key(key, [joined("pool.defaults", known) for known in fields], origin(key))
        convert(fields[name], value, key, origin)
    if not isinstance(experts, list) or not all(isinstance(expert, Mapping) for expert in experts):
        raise wrong("pool.experts", experts, "must be a list of mappings, each with a name and a model", origin)
    own = {key: value for key, value in pool.items() if key != "defaults"}
    return {**own, "experts": [_merged(defaults, expert) for expert in experts]}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _resolved(tree: _Tree) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree.values), resolve=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "")
        raise InputError(f"{tree.origin(key)}: {key or 'a value'}: {first_line(error)}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _escaped(value: Any) -> Any:
    """Texts with `${` as OmegaConf must find them to leave them alone."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return value
