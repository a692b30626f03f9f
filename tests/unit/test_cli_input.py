"""What the command line says of wrong input: one message that names file and place, an exit code, never a traceback."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import cli, questions, signals, stage_commands
from pipelines.cli import UNREAD
from symoe_ray.config import load

GOOD = [{"id": "v1", "question": "What is 2+2?", "gold_answer": "4"}]
TEST = [{"id": "t1", "question": "What is 2+3?", "gold_answer": "5"}]
COLOUR = {"id": "v1", "question": "Which colour?", "choices": ["red", "blue"], "gold_answer": "B"}


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def refusal(self, code: int = signals.USAGE) -> str:
        """The one message of a command that was refused."""
        assert self.code == code
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("symoe: ")
        return lines[0].removeprefix("symoe: ")


Command = Callable[..., Said]


def _no_ray(*_: object) -> None:
    raise AssertionError("Ray is started for input that is wrong")


@pytest.fixture
def symoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command line in an empty working directory, on fake engines, where starting Ray is an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SYMOE_DATA_DIR", raising=False)
    monkeypatch.setitem(sys.modules, "actors.cluster", SimpleNamespace(connected=_no_ray))
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as ended:  # argparse's own way
            code = int(str(ended.code))
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, before)


def files(validation: object = GOOD, test: object = TEST, *, suffix: str = ".json") -> tuple[str, str]:
    """Both files of a task in the working directory, as settings; texts and bytes are written as they are."""
    for name, content in (("validation", validation), ("test", test)):
        raw = (
            content
            if isinstance(content, bytes)
            else (content if isinstance(content, str) else json.dumps(content)).encode()
        )
        Path(name + suffix).write_bytes(raw)
    return f"task.validation=validation{suffix}", f"task.test=test{suffix}"


BAD_FILES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "truncated JSON": (
        {"validation": '[\n {"question": "2+2?", "gold_answer": "4"},\n {"question": "2+'},
        ("validation.json, line 3, column 15", "not valid JSON"),
    ),
    "a truncated line": (
        {"test": '{"question": "2+3?"}\n{"question"', "validation": json.dumps(GOOD[0]), "suffix": ".jsonl"},
        ("test.jsonl, line 2, column 12", "not valid JSON"),
    ),
    "no list": ({"validation": {"questions": GOOD}}, ("validation.json: must hold a list of questions",)),
    "no gold": (
        {"validation": [*GOOD, {"id": "v2", "question": "2+5?"}]},
        ("validation.json, item 2", "a validation question needs a gold answer in 'gold_answer'"),
    ),
    "gold under another name": (
        {"validation": [{"question": "2+5?", "gold_answers": "7"}]},
        ("validation.json, item 1", "did you mean 'gold_answers'?"),
    ),
    "gold that is no option": (
        {"validation": [COLOUR | {"gold_answer": "C"}]},
        ("validation.json, item 1", "gold 'C'", "neither one of the question's letters (A, B)"),
    ),
    "conflicting ids in a file": (
        {"test": [*TEST, {"id": "t1", "question": "What is 2+9?", "gold_answer": "11"}]},
        ("test.json", "the id 't1' stands for two different questions", "2+3", "2+9"),
    ),
    "conflicting ids of both files": (
        {"test": [{"id": "v1", "question": "What is 2+9?", "gold_answer": "11"}]},
        ("validation.json and test.json", "the id 'v1' stands for two different questions"),
    ),
    "a choice question without options": (
        {"test": [{"id": "t1", "question": "Which colour?", "kind": "choice"}]},
        ("test.json, item 1", "a choice question needs two options or more", "it has 0"),
    ),
    "an empty file": ({"test": ""}, ("test.json: the file is empty",)),
    "blanks alone": ({"validation": " \n"}, ("validation.json: the file is empty",)),
    "no questions": ({"test": "[]"}, ("test.json: the file holds no questions",)),
    "wrong encoding": (
        {"test": '[{"question": "Größe?", "gold_answer": "5"}]'.encode("latin-1")},
        ("test.json: not UTF-8 text: byte 17 is 0xf6",),
    ),
    "no question": ({"test": [{"prompt": "2+3?"}]}, ("test.json, item 1", "has no 'question' field")),
    "a question that is no text": ({"test": [{"question": 5}]}, ("test.json, item 1", "must be a text")),
    "a row that is no object": ({"test": ["2+3?"]}, ("test.json, item 1", "must be an object")),
    "half a character": (
        {"test": r'[{"question": "smile \ud83d", "gold_answer": "5"}]'},
        ("test.json, item 1", "half of a character"),
    ),
    "no Parquet": (
        {"test": b"PAR1 and then nothing", "validation": b"PAR1", "suffix": ".parquet"},
        ("validation.parquet: not a readable Parquet file",),
    ),
    "an unknown kind of file": ({"suffix": ".csv"}, ("validation.csv: unknown kind of file '.csv'", ".jsonl")),
}


class TestQuestionFiles:
    @pytest.mark.parametrize("command", [("run", "--json"), ("run", "--dry-run")], ids=" ".join)
    @pytest.mark.parametrize("bad", BAD_FILES)
    def test_a_bad_file_is_one_message_with_its_place(self, bad: str, command: tuple[str, ...], symoe: Command) -> None:
        given, expected = BAD_FILES[bad]
        settings = files(**given)
        message = symoe(*command, *settings, "engine.kind=fake", "--run", "./here").refusal()
        assert all(part in message for part in expected), message

    @pytest.mark.parametrize("command", [("run",), ("run", "--dry-run")], ids=" ".join)
    def test_a_split_that_is_missing_is_named(self, command: tuple[str, ...], symoe: Command) -> None:
        validation, test = files()
        given = (*command, "task=aime24", "engine.kind=fake", "--run", "./here")
        assert "'AIME24' has no test questions" in symoe(*given, validation, "task.test=").refusal()
        without = symoe(*given, test, "task.validation=").refusal()
        assert "'AIME24' has no validation questions" in without
        assert "profiles=RUN" in without

    def test_a_file_that_is_not_there_is_named(self, symoe: Command) -> None:
        validation, _ = files()
        message = symoe(
            "run", "engine.kind=fake", validation, "task.test=elsewhere/t.json", "--run", "./here"
        ).refusal()
        assert message == "elsewhere/t.json: no such file"

    def test_a_run_that_has_generated_nothing_takes_corrected_files(self, symoe: Command) -> None:
        settings = files(test="[")
        assert "test.json, line 1" in symoe("run", *settings, "engine.kind=fake", "--run", "./here").refusal()
        other = symoe("run", settings[0], "task.test=other.json", "engine.kind=fake", "--run", "./here").refusal()
        assert other == "other.json: no such file"
        status = json.loads(Path("here/status.json").read_text())
        assert (status["state"], status["attempt"]) == ("failed", 2)
        assert "no such file" in status["error"]


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "expected"),
        [
            ("sead=1", "unknown key 'sead'; did you mean seed?"),
            ("engine.slot=2", "unknown key 'engine.slot'; did you mean engine.slots?"),
            ("task.tests=x.json", "unknown key 'task.tests'; did you mean task.test?"),
            ("pool.defaults.max_len=5", "did you mean pool.defaults.max_model_len?"),
            ("k=three", "k is 'three'; it must be an integer"),
            ("gpus=0.5", "gpus is 0.5; it must be an integer: a slot holds whole GPUs"),
            ("k=0", "k is 0; it must be 1 or more"),
            ("router=fast", "router is 'fast'; it must be one of reference, paper"),
            ("aggregator=Leters", "did you mean Letters?"),
            ("limit=-1", "limit is -1; it must be 0 or more"),
            ("=5", "is not of the form key=value"),
        ],
    )
    def test_a_wrong_key_or_value_is_named_with_the_nearest(self, setting: str, expected: str, symoe: Command) -> None:
        for command in (("run",), ("recruit",), ("run", "--print-config"), ("run", "--dry-run")):
            message = symoe(*command, setting).refusal()
            assert message.startswith("the command line: ")
            assert expected in message

    @pytest.mark.parametrize(
        ("setting", "expected"),
        [("task=mmlu", "mmlu_pro"), ("pool=demos", "demo, mixed, paper16"), ("cluster=k8s", "auto, local")],
    )
    def test_an_unknown_task_pool_or_cluster_lists_what_there_is(
        self, setting: str, expected: str, symoe: Command
    ) -> None:
        message = symoe("run", setting).refusal()
        assert message.startswith(f"{setting}: there is no ")
        assert expected in message

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"name: p\nexperts: {", "pool.yaml, line 3, column 1: not valid YAML"),
            (
                b"name: p\nexperts:\n  - name: A\n    modell: x\n",
                "pool.yaml: unknown key 'pool.experts[A].modell'; did you mean",
            ),
            (b"name: p\nexperts:\n  - name: A\n", "pool.yaml: pool.experts[A].model is missing"),
            (b"name: p\nexperts: []\n", "pool.experts is empty"),
            (b"name: p\nexperts: [{name: A, model: m}, {name: A, model: n}]\n", "has the name 'A' 2 times"),
            (b"name: \xff\n", "pool.yaml: not UTF-8 text"),
            (b"", "pool.yaml"),
        ],
        ids=["truncated", "misspelt", "no model", "no experts", "one name twice", "encoding", "empty"],
    )
    def test_a_bad_pool_file_is_named(self, content: bytes, expected: str, symoe: Command) -> None:
        Path("pool.yaml").write_bytes(content)
        assert expected in symoe("run", "pool=pool.yaml").refusal()

    @pytest.mark.parametrize("wrong", [("--limit", "x"), ("--limit", ""), ("--limt", "3"), ("seed",), ("--run",)])
    def test_wrong_usage_names_the_argument(self, wrong: tuple[str, ...], symoe: Command) -> None:
        said = symoe("run", *wrong)
        assert (said.code, said.out) == (signals.USAGE, "")
        assert said.err.startswith("usage: symoe")
        assert wrong[0] in said.err.splitlines()[-1]
        assert "Traceback" not in said.err

    @pytest.mark.parametrize("arguments", [(), ("runn",)])
    def test_no_or_an_unknown_command_is_wrong_usage(self, arguments: tuple[str, ...], symoe: Command) -> None:
        assert symoe(*arguments).code == signals.USAGE

    def test_the_version_is_that_of_the_package(self, symoe: Command) -> None:
        said = symoe("--version")
        assert (said.code, said.out) == (signals.DONE, f"symoe {importlib.metadata.version('symoe-ray')}\n")

    def test_a_limit_below_nothing_is_refused(self, symoe: Command) -> None:
        assert "limit is -1" in symoe("run", "--limit", "-1").refusal()


class TestRuns:
    def test_a_report_of_no_run_says_where_it_looked(self, symoe: Command) -> None:
        here = Path().resolve()
        for given, place in (
            (("nosuch",), "runs/nosuch"),
            (("./nosuch", "--json"), "nosuch"),
            (("nosuch", "output_dir=elsewhere"), "elsewhere/nosuch"),
        ):
            assert symoe("report", *given).refusal() == f"there is no run at {here / place} (no config.yaml)"
        assert list(Path().iterdir()) == []

    def test_a_report_of_an_unfinished_run_says_so(self, symoe: Command) -> None:
        config = symoe("run", "--print-config").out
        Path("half").mkdir()
        Path("half/config.yaml").write_text(config)
        assert "has no results.json" in symoe("report", "./half").refusal()

    def test_a_stage_before_its_turn_names_the_one_that_is_missing(self, symoe: Command) -> None:
        message = symoe("recruit", *files(), "engine.kind=fake", "--run", "./here", "--json").err.splitlines()[-1]
        here = Path("here").resolve()
        assert message == f"symoe: stage annotate of run {here} has not run yet: run `symoe annotate` first"

    def test_settings_that_would_mix_two_generations_are_refused_with_their_difference(self, symoe: Command) -> None:
        settings = files(test="[")
        symoe("run", *settings, "engine.kind=fake", "--run", "./here")
        manifest = json.loads(Path("here/manifest.json").read_text())
        manifest["requests"] = {"annotate": {"inputs": "x", "files": []}}
        Path("here/manifest.json").write_text(json.dumps(manifest))
        given = ("run", *settings, "engine.kind=fake", "max_tokens=9", "--run", "./here")
        said = symoe(*given)
        first, *lines = said.err.splitlines()
        assert (said.code, said.out) == (signals.USAGE, "")
        here = Path("here").resolve()
        assert f"run {here} was generated with other settings, listed below" in first
        assert first.endswith("give the same as then, or --restart to delete the run and start over, or another --run:")
        assert lines == ["  max_tokens: 0 -> 9"]
        tried = symoe(*given, "--dry-run")
        assert (tried.code, tried.err, tried.out) == (said.code, said.err, said.out)
        assert symoe(*given, "--dry-run", "--restart").refusal().startswith("test.json, line 1")
        assert "test.json, line 1" in symoe(*given, "--restart").refusal()

    def generated(self, symoe: Command, *settings: str) -> None:
        """./here as a run of a task and a pool of its own, of which requests have been made."""
        pool = "name: p\nexperts: [{name: A, model: m}, {name: B, model: n}]\n"
        Path("pool.yaml").write_text(pool)
        Path("task.yaml").write_text("name: mine\nvalidation: validation.json\ntest: test.json\n")
        files()
        symoe("annotate", "task=task.yaml", "pool=pool.yaml", "engine.kind=fake", *settings, "--run", "./here")
        manifest = json.loads(Path("here/manifest.json").read_text())
        manifest["requests"] = {"annotate": {"inputs": "x", "files": []}}
        Path("here/manifest.json").write_text(json.dumps(manifest))

    def test_a_run_that_is_named_alone_goes_on_with_its_own_settings(self, symoe: Command) -> None:
        self.generated(symoe, "k=2")
        said = symoe("run", "--run", "./here", "temperature=0.25", "--dry-run")
        here = Path("here").resolve()
        assert said.code == signals.DONE
        assert said.err == f"symoe: run {here} goes on with its own settings (no task= or pool= is given)\n"
        assert "experts: A, B; annotator A" in said.out
        assert "k=2" in said.out
        assert said.out.splitlines()[-1].endswith("has changed: questions")
        printed = symoe("run", "--run", "./here", "temperature=0.25", "--print-config").out
        Path("saved.yaml").write_text(printed)
        assert (load(base=Path("saved.yaml")).temperature, load(base=Path("saved.yaml")).task.name) == (0.25, "mine")

    @pytest.mark.parametrize("given", ["task=demo", "pool=tiny", "++pool=tiny"])
    def test_a_run_whose_task_or_pool_is_named_takes_no_others(self, given: str, symoe: Command) -> None:
        self.generated(symoe)
        said = symoe("run", given, "engine.kind=fake", "--run", "./here", "--dry-run")
        assert (said.code, said.out) == (signals.USAGE, "")
        assert said.err.splitlines()[0].startswith(f"symoe: run {Path('here').resolve()} was generated with other")
        restarted = symoe("run", "engine.kind=fake", "--run", "./here", "--dry-run", "--restart")
        assert (restarted.code, restarted.err) == (signals.DONE, "")
        assert "done before" not in restarted.out

    def test_a_run_of_the_default_task_grows_when_its_limit_is_left_out(self, symoe: Command) -> None:
        symoe("annotate", "engine.kind=fake", "--limit", "5", "--run", "./here")
        manifest = json.loads(Path("here/manifest.json").read_text())
        manifest["requests"] = {"annotate": {"inputs": "x", "files": []}}
        Path("here/manifest.json").write_text(json.dumps(manifest))
        said = symoe("run", "engine.kind=fake", "--run", "./here", "--dry-run")
        assert (said.code, said.err) == (signals.DONE, "")
        assert "180 validation and 120 test questions" in said.out

    @pytest.mark.parametrize("name", ["file/run", "file"])
    def test_a_folder_that_cannot_be_made_is_named(self, name: str, symoe: Command) -> None:
        Path("file").write_text("in the way")
        message = symoe("run", "engine.kind=fake", *files(), "--run", f"./{name}").refusal()
        assert message.startswith(f"run {Path(name).resolve()}: the folder cannot be made: ")

    def test_a_name_may_hold_an_equals_sign(self, symoe: Command) -> None:
        said = symoe("run", *files(), "--dry-run", "--run", "seed=1")
        assert (said.code, said.out.splitlines()[0].split(":")[0]) == (signals.DONE, "run runs/seed=1")

    def test_a_run_in_other_hands_is_exit_code_4(self, symoe: Command) -> None:
        Path("here").mkdir()
        with Path("here/.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            said = symoe("run", "engine.kind=fake", *files(), "--run", "./here")
        assert said.refusal(signals.MISSING) == f"run {Path('here').resolve()} is being worked on by another process"

    def test_a_single_stage_takes_the_settings_of_its_run_with_those_given_on_top(self, symoe: Command) -> None:
        given = (*files(), "engine.kind=fake")
        symoe("annotate", *given, "k=2", "temperature=0.25", "--run", "./here", "--limit", "1")
        printed = symoe("recruit", "k=4", "--run", "./here", "--print-config").out
        Path("saved.yaml").write_text(printed)
        settings = load(base=Path("saved.yaml"))
        assert (settings.k, settings.temperature, settings.limit, settings.engine.kind) == (4, 0.25, 1, "fake")
        assert settings.task.test == "test.json"
        other = symoe("recruit", "k=4", "--run", "./elsewhere", "--print-config").out
        assert other == symoe("run", "k=4", "--print-config").out

    def test_restart_deletes_what_a_run_owns_and_nothing_else(self, symoe: Command) -> None:
        given = ("recruit", *files(), "engine.kind=fake", "--run", "./here")
        symoe(*given)  # as far as it goes without engines
        kept = {"here/.git/config": "[core]", "here/src/a.py": "pass", "here/notes.txt": "mine"}
        for name, text in kept.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)
        Path("here/responses/answer").mkdir(parents=True)
        Path("here/responses/answer/part.parquet").write_text("old")
        assert json.loads(Path("here/manifest.json").read_text())["attempts"] == 1
        assert "stage annotate" in symoe(*given, "--restart").err
        assert (
            json.loads(Path("here/manifest.json").read_text())["attempts"] == 2
        )  # what is left of the first is fenced
        assert not Path("here/responses/answer/part.parquet").exists()
        assert {name: Path(name).read_text() for name in kept} == kept

    def test_restart_refuses_a_folder_that_is_no_run(self, symoe: Command) -> None:
        kept = {"here/.git/config": "[core]", "here/src/a.py": "pass", "here/results.json": "{}"}
        for name, text in kept.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)
        message = symoe("run", *files(), "engine.kind=fake", "--run", "./here", "--restart").refusal()
        assert message == (
            f"--restart: {Path('here').resolve()} is not empty and holds no manifest.json, so it is no run"
        )
        found = {str(p): p.read_text() for p in Path("here").rglob("*") if p.is_file() and p.name != ".lock"}
        assert found == kept


class TestNothingIsSpent:
    def test_print_config_is_yaml_that_loads_to_the_same_settings(self, symoe: Command) -> None:
        said = symoe("run", "k=2", "seeds=[1,2]", "engine.kind=fake", "--limit", "7", "--print-config")
        assert (said.code, said.err) == (signals.DONE, "")
        Path("saved.yaml").write_text(said.out)
        settings = load(base=Path("saved.yaml"))
        assert settings == load(["k=2", "seeds=[1,2]", "engine.kind=fake", "limit=7"])
        assert (settings.k, settings.seeds, settings.limit) == (2, (1, 2), 7)
        assert [p.name for p in Path().iterdir()] == ["saved.yaml"]

    def test_dry_run_says_what_would_run_and_makes_nothing(self, symoe: Command) -> None:
        settings = files(test=[*TEST, {"question": "What  is 2+2?", "gold_answer": "4"}, {"question": "9+9?"}])
        before = sorted(Path().iterdir())
        said = symoe("run", *settings, "seeds=[3,4]", "--dry-run", "--run", "mine")
        assert (said.code, said.err) == (signals.DONE, "")
        lines = said.out.splitlines()
        assert lines[0].startswith("warning: 1 of 3 test questions share their text with a validation question")
        assert lines[1] == "warning: 1 of 3 test questions have no gold answer and count as wrong"
        assert lines[2] == "run runs/mine: 1 validation and 3 test questions"
        assert lines[3].startswith("experts: Arithmetic, ")
        assert lines[4] == f"stages: {', '.join(stage_commands.STAGES)}; k=3, seeds 3, 4"
        assert sorted(Path().iterdir()) == before

    def test_dry_run_of_a_stage_names_it_alone_and_limits(self, symoe: Command) -> None:
        said = symoe("annotate", "--dry-run", "--limit", "5")
        assert "run runs/demo-demo: 5 validation and 5 test questions" in said.out
        assert "stages: annotate; " in said.out

    def test_beside_json_the_words_go_to_standard_error(self, symoe: Command) -> None:
        said = symoe("run", *files(), "--dry-run", "--json")
        assert (said.code, said.out) == (signals.DONE, "")
        assert "1 validation and 1 test questions" in said.err


class TestExitCodes:
    """How a run that has begun ends: `questions`, the first thing that it does, stands for all of it."""

    @pytest.fixture
    def ending(self, symoe: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Said]:
        def end(error: BaseException) -> Said:
            def fail(_: object) -> None:
                raise error

            monkeypatch.setattr(questions, "run_stage", fail)
            return symoe("run", "engine.kind=fake", "--run", "./here")

        return end

    @staticmethod
    def state() -> str:
        return str(json.loads(Path("here/status.json").read_text())["state"])

    def test_an_unexpected_error_is_one_line_and_a_log(self, ending: Callable[[BaseException], Said]) -> None:
        message = ending(RuntimeError("first line\nthe last line")).refusal(signals.FAILED)
        assert message.startswith("RuntimeError: the last line (details: ")
        log = Path(message.split("details: ")[1].rstrip(")"))
        assert "Traceback" in log.read_text()
        assert "first line" in log.read_text()
        assert self.state() == "failed"

    def test_an_error_without_words_is_still_named(self, ending: Callable[[BaseException], Said]) -> None:
        assert ending(ValueError()).refusal(signals.FAILED).startswith("ValueError: ")

    def test_an_interrupt_is_130(self, ending: Callable[[BaseException], Said]) -> None:
        assert "goes on where it stopped" in ending(KeyboardInterrupt()).refusal(signals.INTERRUPTED)
        assert self.state() == "interrupted"

    def test_a_termination_is_143(self, ending: Callable[[BaseException], Said]) -> None:
        assert "goes on where it stopped" in ending(signals.Terminated()).refusal(signals.TERMINATED)
        assert self.state() == "interrupted"

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, signals.INTERRUPTED), (signal.SIGTERM, signals.TERMINATED)]
    )
    def test_a_signal_that_a_call_turned_into_its_own_error_is_still_a_signal(
        self, number: int, code: int, symoe: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wait(_: object) -> None:
            try:
                signal.raise_signal(number)
            except BaseException:
                raise SystemError("a result with an exception set") from None  # what Cython makes of it in ray.wait

        monkeypatch.setattr(questions, "run_stage", wait)
        assert "goes on where it stopped" in symoe("run", "engine.kind=fake", "--run", "./here").refusal(code)
        assert self.state() == "interrupted"

    @pytest.mark.parametrize(("failed", "code"), [(0, 0), (1, 0), (2, 3)])
    def test_more_failed_rows_of_any_stages_than_allowed_is_3(
        self, failed: int, code: int, symoe: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures = {"skills": min(failed, 1), "profiles": 0, "drafts": max(failed - 1, 0), "answers": 0}
        results = {"symoe": {"failures": failures, "grading": {"failed": 0}, "methods": {}}}
        monkeypatch.setitem(stage_commands.STAGES, "evaluate", lambda _: results)
        monkeypatch.setattr(stage_commands, "write_report", lambda *_: "report.html")
        said = symoe("evaluate", *files(), "engine.kind=fake", "max_failures=1", "--run", "./here", "--json")
        assert said.code == code
        assert json.loads(said.out) == results
        assert ("symoe: 2 failed rows, max_failures is 1" in said.err.splitlines()) is (code == 3)
        assert json.loads(Path("here/status.json").read_text())["failed"] == failed
        assert self.state() == "finished"


def test_output_that_nobody_reads_on_is_no_error() -> None:
    """`symoe ... | head -1`."""
    command = [sys.executable, "-m", "pipelines", "plan", "task=demo", "pool=tiny", "engine.kind=fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == UNREAD == 141
