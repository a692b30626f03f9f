"""Experts on a real server with OpenAI's API, which is another `symoe serve`: in a run, and behind an endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tests.serve.conftest import REPOSITORY, TIMEOUT_S, Served, end, make_run, start

pytestmark = pytest.mark.real_ray
KEY, VARIABLE = "sk-secret-of-the-test", "SYMOE_TEST_KEY"
POOL = """
name: mixed
annotator: Theirs
defaults:
  max_model_len: 1024
  sampling: {{max_tokens: 32}}
experts:
  - {{name: Ours, model: "package:tiny-llama"}}
  - {{name: Theirs, model: TinyQwen2, server: {{base_url: "{url}/v1", api_key_env: {variable}, max_concurrency: 8}}}}
"""


@pytest.fixture
def pool(served: Served, tmp_path: Path) -> str:
    """A pool of one expert of ours and one that is served by the session's endpoint."""
    path = tmp_path / "mixed.yaml"
    path.write_text(POOL.format(url=served.url, variable=VARIABLE))
    return f"pool={path}"


def answers(run: Path, stage: str) -> dict[str, list[dict[str, Any]]]:
    """The rows that a stage has generated, by expert."""
    rows = defaultdict(list)
    for file in sorted((run / "responses" / stage).rglob("*.parquet")):
        rows[file.parent.name.removeprefix("expert=")] += pq.read_table(file, partitioning=None).to_pylist()
    return rows


def test_a_run_mixes_an_expert_of_ours_with_one_elsewhere(pool: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pipelines", "run", pool, "engine.kind=fake", "task.demo.validation=8",
        "task.demo.test=8", "baselines=off", "--run", "mixed", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled", VARIABLE: KEY}
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert made.returncode == 0, made.stderr
    run = tmp_path / "runs" / "mixed"
    lists = answers(run, "annotate")
    assert {name: len(rows) for name, rows in lists.items()} == {"Theirs": 16 * 5}
    for expert, rows in answers(run, "profile").items():
        assert len(rows) == 8, expert
        assert all(r["failure"] is None and r["prompt_tokens"] and r["completion_tokens"] for r in rows)
        assert all("answer is" in r["text"] for r in rows)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    worked = {(e["slot"], e["expert"]) for e in events if e["event"] == "generate"}
    assert worked == {("slot-0", "Ours"), ("remote-0", "Theirs")}
    told = sum(e["prompt_tokens"] for e in events if e["event"] == "generate" and e["stage"] == "annotate")
    assert told == sum(r["prompt_tokens"] for r in lists["Theirs"])
    results = json.loads(made.stdout)["symoe"]
    assert results["grading"]["failed"] == 0
    assert results["engine"]["loads"].keys() == {"Ours"}
    holders = [f for f in run.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]
    assert holders == []
    assert KEY not in made.stdout + made.stderr


def test_an_endpoint_asks_an_expert_elsewhere(pool: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run" / "made", "engine.kind=fake", pool)
    running = start(folder, environment={VARIABLE: KEY})
    try:
        address = f"{running.url}/v1/chat/completions"
        messages = [{"role": "user", "content": "What is 2 + 2?"}]
        alone = httpx.post(address, json={"model": "Theirs", "messages": messages, "n": 2}, timeout=60).json()
        assert [len(c["message"]["content"]) > 0 for c in alone["choices"]] == [True, True]
        assert alone["usage"]["prompt_tokens"] == 2 * len(messages[0]["content"].split())
        question = {"model": "symoe:Theirs", "messages": messages, "stream": True}
        with httpx.stream("POST", address, json=question, timeout=60) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
        text = "".join(c["delta"].get("content") or "" for line in lines for c in json.loads(line)["choices"])
        assert "answer is" in text
        assert KEY not in (tmp_path / "run" / "serve.log").read_text()
    finally:
        end(running)
    assert {e["expert"]: e["tier"] for e in running.events("load")}["Theirs"] == "remote"
