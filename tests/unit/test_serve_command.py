"""`symoe serve` and `symoe ask` before anything is started: what is read, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from pipelines.ask import events, show
from pipelines.serve import KEYS_VARIABLE, build, check_binding, deployed, read_keys
from pipelines.signals import DONE, FAILED
from symoe_ray.core import InputError
from symoe_ray.settings import ServeSettings
from tests.serve.conftest import REPOSITORY, make_run

SECRET = "sk-0123456789abcdef"
FAKE = ("engine.kind=fake", "pool=tiny")


class TestDeployed:
    def test_a_run_gives_its_profiles_its_kept_experts_and_its_settings(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "made", *FAKE)
        made = deployed(str(run), ["serve.max_wait_s=7", "engine.slots=2"])
        names = [e.name for e in made.settings.pool.experts]
        assert [p.expert for p in made.profiles] == names
        assert sorted(made.kept) == sorted(names)
        assert (made.settings.serve.max_wait_s, made.settings.engine.slots, made.settings.engine.kind) == (7, 2, "fake")
        assert made.aggregator == names[-1], "the highest validation accuracy, as the run has chosen none"
        assert made.folder == f"{run}-serving"

    def test_an_aggregator_may_be_chosen_or_named(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "made", *FAKE)
        (run / "aggregators").mkdir()
        (run / "aggregators" / "aggregators.json").write_text(json.dumps({"chosen": "TinyGemma2"}))
        assert deployed(str(run), []).aggregator == "TinyGemma2"
        assert deployed(str(run), ["aggregator=TinyQwen2"]).aggregator == "TinyQwen2"

    @pytest.mark.parametrize(
        ("run", "overrides", "message"),
        [(None, [], "name the run"), ("{}/none", [], "there is no run"), ("{}/made", ["pool=demo"], "has profiles of")],
    )
    def test_what_is_missing_is_named(
        self, run: str | None, overrides: list[str], message: str, tmp_path: Path
    ) -> None:
        make_run(tmp_path / "made", *FAKE)
        with pytest.raises(InputError, match=message):
            deployed(run.format(tmp_path) if run else None, overrides)

    def test_the_config_file_is_one_for_ray_serve(self) -> None:
        text = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
        schema = ServeDeploySchema.model_validate(text)
        (application,) = schema.applications
        assert application.import_path == "pipelines.serve:build"
        assert schema.http_options.host == "127.0.0.1"
        with pytest.raises(InputError, match="speed"):
            build({"run": "x", "speed": 3})


class TestKeys:
    def test_keys_come_from_a_file_and_from_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEYS_VARIABLE, f"anna: {SECRET}")
        file = tmp_path / "keys"
        file.write_text(f"# ours\nben: {SECRET}x concurrency=2\n")
        keys = read_keys(ServeSettings(api_keys_file=str(file), requests_per_minute=9))
        assert [(k.name, k.requests_per_minute, k.concurrency) for k in keys] == [("anna", 9, 0), ("ben", 9, 2)]

    def test_a_file_without_keys_is_no_open_door(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(KEYS_VARIABLE, raising=False)
        file = tmp_path / "keys"
        file.write_text("# none yet\n")
        for name in (str(file), str(tmp_path / "absent")):
            with pytest.raises(InputError, match="api_keys_file"):
                read_keys(ServeSettings(api_keys_file=name))

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
    def test_others_are_served_only_with_keys(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InputError, match="keys are needed"):
            check_binding(ServeSettings(host=host), [])
        monkeypatch.setenv(KEYS_VARIABLE, f"anna: {SECRET}")
        check_binding(ServeSettings(host=host), read_keys(ServeSettings()))

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
    def test_this_machine_needs_none(self, host: str) -> None:
        check_binding(ServeSettings(host=host), [])


class TestAsk:
    STREAM = (
        ': symoe {"event":"started","stage":"annotate","experts":["A"]}',
        ': symoe {"event":"recruited","recruitment":{"skills":[],"experts":["B","B"]}}',
        ": waiting",
        'data: {"choices":[{"delta":{"content":"so it "}}]}',
        'data: {"choices":[{"delta":{"content":"is"}}],"symoe":{"aggregator":"A"}}',
        "data: [DONE]",
    )

    @staticmethod
    def lines(texts: Iterable[str]) -> list[bytes]:
        return [f"{text}\n".encode() for text in texts]

    def test_a_stream_is_read(self) -> None:
        kinds = [kind for kind, _ in events(self.lines(self.STREAM))]
        assert kinds == ["progress", "progress", "chunk", "chunk", "done"]

    def test_the_answer_goes_to_standard_output_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert show(self.lines(self.STREAM), explain=True) == DONE
        printed = capsys.readouterr()
        assert printed.out == "so it is\n"
        assert "skills: none; experts: B, B" in printed.err
        assert '"aggregator": "A"' in printed.err

    @pytest.mark.parametrize("ending", [[], ['data: {"error":{"message":"it died"}}']])
    def test_an_answer_that_breaks_off_is_a_failure(
        self, ending: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert show(self.lines([*self.STREAM[:-1], *ending]), explain=False) == FAILED
        assert ("it died" if ending else "broke off") in capsys.readouterr().err
