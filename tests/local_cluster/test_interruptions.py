"""Runs that are killed, interrupted or given bad questions, on a real Ray cluster with fake engines."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest

from symoe_ray.testing import CRASH
from tests.local_cluster.conftest import FAKE, Symoe, alive, engines_of, slots_of, wait_until

pytestmark = pytest.mark.real_ray
SLOW = (*FAKE, "engine.fake_tokens_per_s=15", "engine.chunk_rows=8", "baselines=minimal")
RUN = ("run", *SLOW, "--run", "r")


def test_a_killed_driver_loses_nothing_and_nothing_is_generated_twice(symoe: Symoe) -> None:
    run = symoe.run_folder("r")
    process = symoe.start(*RUN)
    wait_until(lambda: len(run.parts("profile")) >= 3, process)
    engines = engines_of(process)
    assert engines
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {stage: run.committed(stage) for stage in ("annotate", "profile")}
    assert 0 < len(before["profile"]) < len(run.requested("profile"))
    resumed = symoe(*RUN)
    assert resumed.code == 0, resumed.err
    for stage in ("annotate", "profile", "answer", "aggregate"):
        now = run.committed(stage)
        assert set(now) == run.requested(stage), stage
        assert set(now.values()) == {1}, stage
    assert not any(alive(pid) for pid in engines), "engines of the killed driver are still there"
    assert run.json("status.json")["state"] == "finished"


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


def test_engines_that_are_killed_at_work_are_replaced(symoe: Symoe) -> None:
    run = symoe.run_folder("r")
    process = symoe.start(*RUN)
    for stage in ("annotate", "profile", "answer"):
        wait_until(lambda stage=stage: len(run.parts(stage)) >= 2, process)  # type: ignore[misc]
        for pid in engines_of(process):
            os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    for stage in ("annotate", "profile", "answer", "aggregate"):
        assert run.committed(stage) == Counter(run.requested(stage)), stage
    assert run.json("results.json")["symoe"]["grading"]["failed"] == 0
    assert run.events("crash")


def test_a_slot_actor_that_is_killed_comes_back(symoe: Symoe) -> None:
    """The only slot there is: nothing else could take its work."""
    run = symoe.run_folder("r")
    process = symoe.start(*RUN, "engine.slots=1", "--limit", "16")
    wait_until(lambda: len(run.parts("profile")) >= 1, process)
    (slot,) = slots_of(process)
    os.kill(slot, signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    for stage in ("annotate", "profile", "answer", "aggregate"):
        assert run.committed(stage) == Counter(run.requested(stage)), stage
    assert "slot actor" in " ".join(e["message"] for e in run.events("crash"))


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
    failures = [d["failure"]["kind"] for d in run.rows("drafts") if d["failure"]]
    assert set(failures) == {"engine_died", "prompt_too_long"}
    assert run.json("results.json")["symoe"]["failures"]["drafts"] == len(failures)
    answers = [a for a in run.rows("answers") if a["method"] == "symoe"]
    assert len(answers) == 8
    assert sum(a["failure"] is not None for a in answers) == 2
    assert symoe("run", *FAKE, *task, "max_failures=100", "--run", "r").code == 0


def test_profiles_of_another_run_serve_a_task_without_validation_questions(symoe: Symoe) -> None:
    assert symoe("run", *FAKE, "--limit", "8", "--run", "a").code == 0
    questions = [{"question": f"What is {i} plus 1?", "gold_answer": str(i + 1)} for i in range(4)]
    (symoe.folder / "test.json").write_text(json.dumps(questions))
    task = ("task.name=unseen", "task.kind=integer", "task.test=test.json")
    command = symoe("run", *FAKE, *task, "profiles=a", "--run", "b")
    assert command.code == 0, command.err
    run = symoe.run_folder("b")
    assert run.json("profiles/profiles.json") == symoe.run_folder("a").json("profiles/profiles.json")
    assert run.parts("profile") == []
    assert len(run.rows("recruits")) == 4
