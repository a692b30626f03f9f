"""Runs that are interrupted, meet each other or are given bad questions, on a real Ray cluster with fake engines.

What kills them is in test_chaos.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from symoe_ray.testing import CRASH
from tests.local_cluster.conftest import FAKE, Symoe, wait_until

pytestmark = pytest.mark.real_ray
SLOW = (*FAKE, "engine.fake_tokens_per_s=15", "engine.chunk_rows=8", "baselines=minimal")
RUN = ("run", *SLOW, "--run", "r")


def test_an_interrupt_exits_130_and_the_run_goes_on(symoe: Symoe) -> None:
    run = symoe.run_folder("r")
    process = symoe.start(*RUN)
    wait_until(lambda: len(run.parts("annotate")) >= 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert run.json("status.json")["state"] == "interrupted"
    assert "Traceback" not in out + err
    resumed = symoe(*RUN)
    assert resumed.code == 0, resumed.err
    assert set(run.committed("annotate").values()) == {1}


def test_a_second_driver_is_refused_while_the_first_works(symoe: Symoe) -> None:
    process = symoe.start(*RUN)
    wait_until(lambda: (symoe.folder / "runs/r/manifest.json").exists(), process)
    second = symoe(*RUN)
    assert second.code == 4
    assert "another process" in second.err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143


def test_hopeless_questions_are_failed_rows_and_the_others_are_answered(symoe: Symoe) -> None:
    """One question kills its engine, one has 50,000 words."""
    good = [{"question": f"What is {i} plus 1?", "gold_answer": str(i + 1)} for i in range(6)]
    bad = [
        {"question": f"{CRASH} What is 1 plus 1?", "gold_answer": "2"},
        {"question": "word " * 50_000, "gold_answer": "3"},
    ]
    for split, questions in (("validation", good), ("test", good + bad)):
        (symoe.folder / f"{split}.json").write_text(json.dumps(questions))
    task = ("task.name=mine", "task.kind=integer", "task.validation=validation.json", "task.test=test.json")
    command = symoe("run", *FAKE, *task, "--run", "r")
    assert command.code == 3, command.err
    assert "failed rows, max_failures is 0" in command.err
    assert "Traceback" not in command.out + command.err
    run = symoe.run_folder("r")
    failures = [d["failure"] for d in run.rows("drafts") if d["failure"]]
    assert {(f["boundary"], f["kind"]) for f in failures} == {("engine", "engine_died"), ("engine", "prompt_too_long")}
    assert {f["attempt"] for f in failures if f["kind"] == "engine_died"} == {3}
    assert all(f["message"] and f["attempt"] in (1, 2, 3) for f in failures)  # one may have been beside the other
    assert run.json("results.json")["symoe"]["failures"]["drafts"] == len(failures)
    answers = [a for a in run.rows("answers") if a["method"] == "symoe"]
    assert len(answers) == 8
    assert sum(a["failure"] is not None for a in answers) == 2
    assert symoe("run", *FAKE, *task, "max_failures=100", "--run", "r").code == 0


def test_profiles_of_another_run_serve_a_task_without_validation_questions(symoe: Symoe) -> None:
    assert symoe("run", *FAKE, "--limit", "8", "--run", "a").code == 0
    questions = [{"question": f"What is {i} plus 1?", "gold_answer": str(i + 1)} for i in range(3)]
    profiled = symoe.run_folder("a").rows("questions/validation")
    known = next(row for row in profiled if row["kind"] == "integer")
    questions.append({"question": known["text"], "gold_answer": known["gold"][0]})
    (symoe.folder / "test.json").write_text(json.dumps(questions))
    task = ("task.name=unseen", "task.kind=integer", "task.test=test.json")
    command = symoe("run", *FAKE, *task, "profiles=a", "--run", "b")
    assert command.code == 0, command.err
    run = symoe.run_folder("b")
    assert run.json("profiles/profiles.json") == symoe.run_folder("a").json("profiles/profiles.json")
    assert run.parts("profile") == []
    assert len(run.rows("recruits")) == 4
    warnings = run.json("results.json")["symoe"]["notes"]["warnings"]
    assert any(f"1 of {len(profiled)} validation questions occur in the test set" in text for text in warnings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk that cannot be written")
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(symoe: Symoe) -> None:
    runs = symoe.folder / "runs"
    runs.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(runs))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        refused = symoe("run", *FAKE, "--run", "r")
    finally:
        subprocess.run(["umount", str(runs)], check=True)
    assert refused.code == 2
    assert refused.err.strip() == f"symoe: run {runs}/r: the folder cannot be made: Read-only file system"
