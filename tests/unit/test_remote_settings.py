"""The settings of experts on servers elsewhere, and what a plan says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.run import generation_facts
from symoe_ray.config import load, to_yaml
from symoe_ray.core import InputError
from symoe_ray.remote_planning import TOKENS_PER_S
from symoe_ray.settings import Settings

POOL = """
name: mixed
annotator: Ours
defaults: {server: {max_concurrency: 4, timeout_s: 20}}
experts:
  - {name: Ours, model: "package:tiny-llama"}
  - {name: Theirs, model: big, server: {base_url: "https://host/v1", api_key_env: THE_KEY, extra_body: {seed: null}}}
"""


def settings(tmp_path: Path, *overrides: str, pool: str = POOL) -> Settings:
    path = tmp_path / "pool.yaml"
    path.write_text(pool)
    return load([f"pool={path}", *overrides])


def test_defaults_merge_and_only_an_address_makes_an_expert_remote(tmp_path: Path) -> None:
    ours, theirs = settings(tmp_path).pool.experts
    assert (ours.is_remote, theirs.is_remote) == (False, True)
    assert (theirs.server.max_concurrency, theirs.server.timeout_s, theirs.server.retries) == (4, 20.0, 4)
    assert theirs.server.extra_body == {"seed": None}
    assert settings(tmp_path).pool.local == (ours,)


def test_they_are_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(settings(tmp_path)))
    assert load(base=path) == settings(tmp_path)


def test_an_address_for_all_makes_a_pool_of_servers(tmp_path: Path) -> None:
    made = settings(tmp_path, "engine.kind=openai", "pool.defaults.server.base_url=http://gateway/v1")
    assert made.pool.local == ()
    assert [e.server.base_url for e in made.pool.experts] == ["http://gateway/v1", "https://host/v1"]


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("base_url: host/v1", "server.base_url is 'host/v1'; it must be http(s)://HOST[:PORT]/PATH"),
        ("base_url: 'http://host:x/v1'", "server.base_url is no address"),
        ("base_url: 'http://host/v1?a=b'", "without a query"),
        ("base_url: 'http://me:sk-123@host/v1'", "server.base_url holds a name or password"),
        ("base_url: 'http://h', api_key_env: sk-123", "must be the name of an environment variable, not a key"),
        ("base_url: 'http://h', max_concurrency: 0", "server.max_concurrency is 0; it must be 1 or more"),
        ("base_url: 'http://h', timeout_s: 0.5", "server.timeout_s is 0.5; it must be 1 or more"),
        (
            "base_url: 'http://h'}, chat_template_kwargs: {a: 1",
            "chat_template_kwargs is {'a': 1}; it is for engines of",
        ),
        ("base_url: 'http://h', retries: -1", "server.retries is -1; it must be 0 or more"),
        ("base_url: 'http://h', token_limit: tokens", "it must be one of max_tokens, max_completion_tokens"),
        ("base_url: 'http://h', extra_body: {n: 2}", "server.extra_body.n is 2; it is set by each request itself"),
        ("base_url: 'http://h'}, lora: {a: b", "lora"),
        ("base_url: 'http://h'}, engine_args: {dtype: half", "engine_args is {'dtype': 'half'}; it is for engines of"),
        ("base_url: 'http://h'}, add_bos: true, sampling: {top_p: 1", "add_bos is True"),
    ],
)
def test_a_mistake_is_named_and_a_key_is_not_repeated(tmp_path: Path, server: str, message: str) -> None:
    pool = f"name: p\nexperts: [{{name: A, model: m, server: {{{server}}}}}]"
    with pytest.raises(InputError) as caught:
        settings(tmp_path, pool=pool)
    assert message in str(caught.value)
    assert "sk-123" not in str(caught.value)


def test_without_addresses_there_is_no_pool_of_servers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"experts\[Ours\].server.base_url is missing: with engine.kind=openai"):
        settings(tmp_path, "engine.kind=openai")


def test_how_a_server_is_asked_is_no_fact_of_generation(tmp_path: Path) -> None:
    facts = generation_facts(settings(tmp_path))
    assert facts["pool.Theirs.server"] == {"base_url": "https://host/v1", "extra_body": {"seed": None}}
    assert "pool.Ours.server" not in facts
    assert "THE_KEY" not in json.dumps(facts)


class TestPlan:
    def made(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, object]:
        settings(tmp_path)
        pool = f"pool={tmp_path / 'pool.yaml'}"
        assert cli.main(["plan", pool, "engine.kind=fake", "baselines=off", "--json", *overrides]) == 0
        plan: dict[str, object] = json.loads(capsys.readouterr().out)
        return plan

    def test_a_server_needs_nothing_here(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plan = self.made(tmp_path, capsys)
        assert [e["experts"] for e in plan["engines"]] == [["Ours"]]  # type: ignore[attr-defined]
        stages = {s["stage"]: s for s in plan["stages"]}  # type: ignore[attr-defined]
        first, second, _ = stages.values()
        for stage in (first, second):
            assert {span["slot"] for span in stage["spans"]} == {"slot-0", "remote-0"}
        assert [load["experts"] for load in first["loads"]] == [["Ours"]]
        assert second["loads"] == []
        assert any("on a server, which needs nothing here: Theirs, 50 tokens/s" in n for n in plan["notes"])  # type: ignore[attr-defined]

    def test_its_time_follows_from_its_requests_at_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def seconds(at_once: int) -> float:
            plan = self.made(
                tmp_path, capsys, "engine.kind=openai", f"pool.defaults.server.max_concurrency={at_once}",
                "pool.defaults.server.base_url=http://h/v1", "pool.defaults.sampling.max_tokens=100",
            )  # fmt: skip
            assert (plan["slots"], plan["engines"]) == (0, [])
            stages = {s["stage"]: s for s in plan["stages"]}  # type: ignore[attr-defined]
            answer = stages["bench-aggregators+answer"]
            least = answer["tokens"] / 2 / TOKENS_PER_S / at_once
            assert 0.99 * least < answer["seconds"] < 1.3 * least + 100 / TOKENS_PER_S
            return float(answer["seconds"])

        assert seconds(1) > 3 * seconds(4)
