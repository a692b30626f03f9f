"""`symoe submit` as far as it needs no cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pathspec import PathSpec

from actors.jobs import STAYS_HERE, Ended, _Log, _translated
from pipelines import submit
from pipelines.cli import main
from symoe_ray.core import InputError, ResourceError


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        ("data/MMLU_Pro_test.json", True), ("runs/demo/manifest.json", True), (".git/HEAD", True),
        (".venv/bin/python", True), ("symoe_ray/data/x.py", False), ("conf/config.yaml", False), ("val.jsonl", False),
    ],
)  # fmt: skip
def test_what_is_uploaded(path: str, stays: bool) -> None:
    assert PathSpec.from_lines("gitwildmatch", STAYS_HERE).match_file(path) is stays


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "task=demo"], 2, "output_dir=runs: a job's own folder is gone with the job"),
        (["--", "answer", "--run", "runs/x"], 2, "output_dir=runs/x"),
        ([], 2, "give a command"),
        (["--stop", "a", "--", "run"], 2, "give a command"),
        (["--env", "NO_SUCH_VARIABLE", "--", "run", "output_dir=/x"], 2, "NO_SUCH_VARIABLE"),
        (["--working-dir", "/no/such", "--", "doctor"], 2, "/no/such"),
        (["--", "run", "output_dir=s3://bucket/runs"], 4, "no Ray job server answers at http://127.0.0.1:9"),
    ],
)
def test_what_is_refused_before_anything_is_sent(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *arguments]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, "http://127.0.0.1:9 (environment variable RAY_ADDRESS)"),
        (
            {"RAY_ADDRESS": "http://127.0.0.1:8", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"},
            "http://127.0.0.1:9 (--address or RAY_API_SERVER_ADDRESS)",
        ),
        ({}, "http://127.0.0.1:8265 (name another with --address)"),
    ],
)
def test_an_address_that_does_not_answer_is_named_with_what_it_is_from(
    variables: dict[str, str], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ResourceError, match=re.escape(f"no Ray job server answers at {where}: refused")), _translated():
        raise ConnectionError("refused")
    with pytest.raises(InputError, match=re.escape(f"the Ray job server at {where}: ValueError: bad")), _translated():
        raise ValueError("bad")


class Jobs:
    """Jobs that have ended in a given way."""

    def __init__(self, ended: Ended, arguments: list[str]) -> None:
        self._ended, self._arguments = ended, arguments

    def ended(self, _: str) -> Ended:
        return self._ended

    def arguments_of(self, _: str) -> list[str]:
        return self._arguments


@pytest.mark.parametrize(
    ("state", "exit_code", "status", "code"),
    [
        ("FAILED", 3, None, 3),
        ("SUCCEEDED", 0, None, 0),
        ("STOPPED", None, {"state": "interrupted", "exit_code": 143, "time": 9}, 143),
        ("STOPPED", None, {"state": "finished", "exit_code": 0, "time": 9}, 0),
        ("STOPPED", None, {"state": "running", "time": 9}, 137),
        ("STOPPED", None, {"state": "finished", "exit_code": 0, "time": 1}, 143),
        ("STOPPED", None, None, 143),
        ("FAILED", None, None, 1),
    ],
)
def test_the_exit_code_is_the_jobs_own(
    state: str, exit_code: int | None, status: dict[str, Any] | None, code: int, tmp_path: Path
) -> None:
    """Ray's where it knows one, else that in status.json if it is of this attempt."""
    (tmp_path / "r").mkdir()
    if status:
        (tmp_path / "r" / "status.json").write_text(json.dumps(status))
    arguments = ["run", "--limit", "3", "--run", "r", "--json", f"output_dir={tmp_path}"]
    ended = Ended(state=state, exit_code=exit_code, message="the head is lost", started=5.0)
    assert submit._code(Jobs(ended, arguments), "job-1") == code


async def _chunks(texts: list[str]) -> Any:
    for text in texts:
        yield text


class Client:
    """A job server whose connections show the log from its beginning, as far as it has come by then."""

    def __init__(self, *connections: list[str]) -> None:
        self._connections = list(connections)

    def tail_job_logs(self, _: str) -> Any:
        return _chunks(self._connections.pop(0))


def test_a_log_that_is_followed_over_two_connections_is_shown_once() -> None:
    import asyncio

    shown: list[str] = []
    log, client = _Log(shown.append), Client(["ab", "cd"], ["a", "bcde", "f"])
    asyncio.run(log.tail(client, "job"))
    asyncio.run(log.tail(client, "job"))
    assert "".join(shown) == "abcdef"
