"""A run's folder and manifest: what has run, with which settings, and what `--restart` may delete."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.run import MANIFEST, generation_facts, open_manifest, save_config, settings_of
from symoe_ray.config import load
from symoe_ray.core import InputError
from symoe_ray.storage import Storage
from tests.unit.conftest import MakeRun

SETTINGS = load(["engine.kind=fake"])


class TestBegin:
    def test_a_stage_that_has_not_run_runs(self, make_run: MakeRun) -> None:
        assert make_run().begin("annotate", "x")

    def test_a_stage_that_has_run_with_these_inputs_does_not(self, make_run: MakeRun) -> None:
        run = make_run()
        run.done("annotate", "x")
        assert not run.begin("annotate", "x")
        assert not make_run().begin("annotate", "x")
        assert make_run().begin("profile", "x")

    def test_other_inputs_make_it_run_and_what_it_had_made_is_forgotten_on_disk(self, make_run: MakeRun) -> None:
        run = make_run()
        run.done("annotate", "x", "made")
        run.done("profile", "x")
        assert run.begin("annotate", "y")
        with pytest.raises(InputError, match=r"stage annotate of run .* has not run yet"):
            run.output("annotate")
        later = make_run()  # the attempt was cut off there, and the next one has the first inputs again
        assert later.manifest["stages"].keys() == {"profile"}
        assert later.begin("annotate", "x")

    def test_failed_rows_are_tried_again_by_running_it(self, make_run: MakeRun) -> None:
        make_run().done("annotate", "x")
        assert make_run(retry_failed=True).begin("annotate", "x")

    def test_the_output_follows_from_inputs_and_from_what_was_made(self, make_run: MakeRun) -> None:
        run, outputs = make_run(), []
        for inputs, made in (("x", "1"), ("x", "1"), ("x", "2"), ("y", "1")):
            run.done("annotate", inputs, made)
            outputs.append(run.output("annotate"))
        assert outputs[0] == outputs[1]
        assert len(set(outputs)) == 3


class TestSettings:
    def test_a_runs_own_settings_come_back_with_overrides_on_top(self, tmp_path: Path) -> None:
        storage = Storage(str(tmp_path / "run"))
        save_config(storage, load(["engine.kind=fake", "k=2", "seeds=[1,2]"]))
        assert settings_of(storage) == load(["engine.kind=fake", "k=2", "seeds=[1,2]"])
        changed = settings_of(storage, ["k=5", "engine.slots=3"])
        assert changed == load(["engine.kind=fake", "k=5", "seeds=[1,2]", "engine.slots=3"])

    def test_without_a_run_there_are_none(self, tmp_path: Path) -> None:
        assert settings_of(Storage(str(tmp_path / "nosuch")), ["k=5"]) is None


class TestFacts:
    def facts(self, tmp_path: Path, expert: str) -> dict[str, object]:
        (tmp_path / "pool.yaml").write_text(f"name: p\nexperts: [{{name: A, model: m, {expert}}}]\n")
        return generation_facts(load([f"pool={tmp_path / 'pool.yaml'}"]))

    def test_of_a_run_from_before_some_fields_existed_are_the_same(self, tmp_path: Path) -> None:
        facts = self.facts(tmp_path, "sampling: {top_k: 7}")
        assert facts["pool.A.sampling"] == {
            "temperature": 0.7, "top_p": 1.0, "top_k": 7, "max_tokens": 4096, "repetition_penalty": 1.0, "stop": (),
        }  # fmt: skip
        assert "pool.A.chat_template_kwargs" not in facts

    def test_hold_them_where_they_are_set(self, tmp_path: Path) -> None:
        facts = self.facts(tmp_path, "sampling: {min_p: 0.1}, chat_template_kwargs: {enable_thinking: false}")
        sampling = facts["pool.A.sampling"]
        assert isinstance(sampling, dict)
        assert (sampling["min_p"], "presence_penalty" in sampling) == (0.1, False)
        assert facts["pool.A.chat_template_kwargs"] == {"enable_thinking": False}


class TestRestart:
    @staticmethod
    def fill(storage: Storage, *names: str) -> None:
        for name in names:
            storage.write_bytes(name, name.encode())

    MINE = (".git/config", ".gitignore", "src/a.py", "notes.txt", "questions.txt", "src/manifest.json")
    RUNS = (
        "config.yaml", "status.json", "events.jsonl", "commits/answer/000001-000000.json", "commits/fences/000001.json",
        "logs/slot-0.log", "questions/test/part-1000000.parquet", "skills/p.parquet", "profiles/p.parquet",
        "aggregators/p.parquet", "recruits/p.parquet", "drafts/p.parquet", "answers/p.parquet",
        "requests/answer/expert=A/p.parquet", "responses/answer/expert=A/p.parquet", "samples_demo.jsonl",
        "results.json", "report.html", "seed=1/drafts/p.parquet", "seed=1/results.json", "seed=1/samples_demo.jsonl",
    )  # fmt: skip

    @staticmethod
    def found(storage: Storage) -> set[str]:
        root = Path(storage.root)
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}

    def test_what_a_run_owns_goes_and_all_else_stays(self, make_run: MakeRun) -> None:
        storage = make_run().storage
        self.fill(storage, *self.RUNS, *self.MINE)
        manifest = open_manifest(storage, SETTINGS, restart=True)
        assert self.found(storage) == set(self.MINE)
        assert {storage.read_bytes(name).decode() for name in self.MINE} == set(self.MINE)
        assert (manifest["attempts"], manifest["stages"], manifest["shards"]) == (
            1,
            {},
            {},
        )  # the old one stays fenced off

    def test_the_manifest_goes_last(self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
        """A restart that is cut off leaves a run that can be restarted, not files that nobody owns."""
        storage, deleted = make_run().storage, list[str]()
        self.fill(storage, *self.RUNS)
        monkeypatch.setattr(storage, "delete", deleted.append)
        open_manifest(storage, SETTINGS, restart=True)
        assert set(deleted) == {MANIFEST, *(name.split("/")[0] for name in self.RUNS)}
        assert deleted[-1] == MANIFEST

    def test_without_restart_all_stays(self, make_run: MakeRun) -> None:
        storage = make_run().storage
        self.fill(storage, *self.RUNS, *self.MINE)
        assert open_manifest(storage, SETTINGS, restart=False)["attempts"] == 1
        assert self.found(storage) == {MANIFEST, *self.RUNS, *self.MINE}

    @pytest.mark.parametrize("names", [(".git/config",), ("src/a.py",), ("results.json", "config.yaml")])
    def test_a_folder_that_is_no_run_is_refused_as_it_is(self, names: tuple[str, ...], tmp_path: Path) -> None:
        storage = Storage(str(tmp_path))
        self.fill(storage, *names)
        with pytest.raises(InputError, match=r"--restart: .* is not empty and holds no manifest\.json"):
            open_manifest(storage, SETTINGS, restart=True)
        assert self.found(storage) == set(names)

    def test_an_empty_or_absent_folder_is_a_new_run(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "new"):
            assert open_manifest(Storage(str(folder)), SETTINGS, restart=True)["attempts"] == 0
