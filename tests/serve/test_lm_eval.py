"""lm-eval's own client for chat completions, on the demo task's questions, against a running endpoint."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import yaml

from symoe_ray.config import load
from symoe_ray.prompts import answer_messages
from symoe_ray.tasks import load_task
from tests.serve.conftest import Served

pytestmark = [pytest.mark.real_ray, pytest.mark.slow]


def test_lm_eval_scores_the_endpoint_on_the_demo_task(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tenacity", reason="lm-eval's clients need the extra lm-eval[api]")
    evaluator = pytest.importorskip("lm_eval.evaluator")
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    questions = load_task(load(["task=demo"]).task, limit=6).test
    rows = [{"prompt": answer_messages(q)[0].content, "gold": q.gold[0]} for q in questions]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "symoe_demo", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 64, "temperature": 0.0, "do_sample": False},
        "filter_list": [
            {"name": "stated", "filter": [
                {"function": "regex", "regex_pattern": r"answer is \(?([A-Z]|\d+)\)?"}, {"function": "take_first"}
            ]}
        ],
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (tmp_path / "symoe_demo.yaml").write_text(yaml.safe_dump(task))
    results = evaluator.simple_evaluate(
        model="local-chat-completions",
        model_args={"base_url": f"{served.url}/v1/chat/completions", "model": "symoe", "num_concurrent": 3},
        tasks=["symoe_demo"], task_manager=tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=True, bootstrap_iters=0,
    )  # fmt: skip
    samples = results["samples"]["symoe_demo"]
    assert len(samples) == len(rows)
    assert all(sample["filtered_resps"] != ["[invalid]"] for sample in samples), "an answer could not be read"
    assert 0 <= results["results"]["symoe_demo"]["exact_match,stated"] <= 1
    assert httpx.get(f"{served.url}/metrics").text.count('status="500"') == 0
