"""What slots on other nodes learn of the driver's environment."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

from actors.cluster import connected, driver_environment
from symoe_ray.config import load

OURS = {"HF_TOKEN": "hf_x", "HF_HOME": "/h", "HF_ENDPOINT": "http://hub", "SYMOE_CACHE": "/c", "VLLM_USE_X": "1"}


def test_where_models_are_and_how_engines_run_holds_on_every_node() -> None:
    assert driver_environment(OURS | {"PATH": "/bin", "SYMOE_API_KEYS": "a: b", "NOT_VLLM_": "1"}) == OURS


def test_a_job_has_an_environment_of_its_own() -> None:
    assert driver_environment(OURS | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}) == {}


@pytest.mark.parametrize(("environment", "expected"), [({}, None), (OURS, {"env_vars": OURS})])
def test_joining_a_cluster_passes_it_on(
    environment: dict[str, str], expected: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    for name in driver_environment(os.environ) | {"RAY_JOB_CONFIG_JSON_ENV_VAR": ""}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    with connected(load(["cluster=auto"])):
        assert (given["address"], given["runtime_env"]) == ("auto", expected)
