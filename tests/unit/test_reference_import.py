"""The released code's folder: what is read from it, what is refused and where, and that its draws come out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.import_reference import settings_for
from symoe_ray.config import load
from symoe_ray.core import InputError, Profile
from symoe_ray.reference_export import answer_columns, csv_text
from symoe_ray.reference_files import read_folder
from symoe_ray.reference_tables import read_seats
from symoe_ray.routing import Router, RoutingRules
from tests.released_code import TOPICS, ReleasedFolder, released_draws

REPO = Path(__file__).resolve().parents[2]
DRAWN = REPO.parent / "shared" / "data" / "reference_recruits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ReleasedFolder().write(tmp_path)


class TestReading:
    def test_every_file_is_read(self, folder: Path) -> None:
        found = read_folder(folder)
        assert (found.task, len(found.validation), len(found.test)) == ("MedMCQA", 12, 9)
        assert list(found.profiles) == ["Exaone", "LlamaR1", "Llama", "Qwen"]
        assert found.mapping == {f"{topic}s": topic for topic in TOPICS[:4]}
        assert {name: len(rows) for name, rows in found.chains.items()} == dict.fromkeys(found.profiles, 12)
        assert found.aggregators["Exaone"] == (28.0, 12)
        assert list(found.seats) == [0, 1]
        assert {name: len(texts) for name, texts in found.finals.values()} == {"Exaone": 9}
        assert found.unread == ()

    def test_profiles_follow_from_the_chains_of_thought(self, folder: Path) -> None:
        found = read_folder(folder)
        for expert, chains in found.chains.items():
            assert round(sum(c.correct for c in chains) / 12 * 100, 2) == found.accuracies[expert]

    def test_an_experts_first_seat_has_the_highest_number(self, folder: Path) -> None:
        rows = [row for seats in read_folder(folder).seats.values() for row in seats]
        twice = next(row for row in rows if row.experts[0] == row.experts[1] != row.experts[2])
        table = (folder / "round0_seed0.csv").read_text() + (folder / "round0_seed1.csv").read_text()
        assert twice.answers is not None
        assert all(answer.replace('"', '""') in table for answer in twice.answers)
        assert answer_columns(twice.experts, twice.answers) == {
            f"{twice.experts[0]}_answer_2": twice.answers[0],
            f"{twice.experts[0]}_answer_1": twice.answers[1],
            f"{twice.experts[2]}_answer_1": twice.answers[2],
        }

    def test_a_folder_above_will_do_if_it_holds_one_task(self, folder: Path, tmp_path: Path) -> None:
        assert read_folder(tmp_path).task == "MedMCQA"
        ReleasedFolder(task="GPQA").write(tmp_path)
        with pytest.raises(InputError, match="several tasks: GPQA, MedMCQA"):
            read_folder(tmp_path)

    def test_other_files_are_named(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("mine")
        assert read_folder(folder).unread == ("notes.txt",)

    def test_a_mapped_file_stands_in_for_a_missing_test_file(self, folder: Path) -> None:
        (folder / "test_samples_with_keywords_Qwen.json").unlink()
        assert read_folder(folder).mapping == {topic: topic for topic in TOPICS[:4]}

    def test_the_mapping_comes_from_a_recruit_file_where_there_is_no_mapped_file(self, folder: Path) -> None:
        (folder / "test_samples_with_keywords_Qwen_mapped.json").unlink()
        assert read_folder(folder).mapping == {f"{topic}s": topic for topic in TOPICS[:4]}

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.text(alphabet=st.characters(exclude_categories=("Cs",))), min_size=3, max_size=3))
    def test_any_text_comes_back_from_a_csv(self, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
        path = tmp_path_factory.mktemp("csv") / "round0_seed0.csv"
        row = {"question": "q", "gold_answer": "A", "keywords": "['a']", "solvers": "['X', 'Y', 'X']"}
        content = csv_text([{**row, **answer_columns(("X", "Y", "X"), texts)}])
        path.write_bytes(content.encode())
        (seats,) = read_seats(path, [("q", "A")], {"X", "Y"})
        assert seats.answers == tuple(texts)


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def first(**changes: object) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0].update(changes)


class TestFaults:
    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("train_samples_with_keywords_Qwen.json", first(keywords="a, b"), "item 1: 'keywords' must be a list"),
            ("train_samples_with_keywords_Qwen.json", lambda rows: rows[2].pop("gold_answer"), "item 3: has no 'gold"),
            ("Exaone_CoT.json", first(question="another"), "item 1: its question is not that of"),
            ("Exaone_CoT.json", lambda rows: rows[:5], "5 questions, but the validation file has 12"),
            ("Exaone_CoT.json", first(is_correct_Exaone="yes"), "item 1: 'is_correct_Exaone' must be 0 or 1"),
            ("Exaone_CoT.json", first(reasoning_Exaone=None), "item 1: 'reasoning_Exaone' must be a text"),
            ("test_samples_with_keywords_Qwen_mapped.json", first(keywords=["law"]), "1 mapped keywords, but 2 in"),
            ("test_samples_with_keywords_Qwen_mapped.json", first(keywords=["law", "x"]), "to 'x', which no valid"),
        ],
    )
    def test_in_json_they_are_named_with_their_item(
        self, folder: Path, name: str, change: Callable[[Any], Any], message: str
    ) -> None:
        def changed(value: Any) -> Any:
            made = change(value)
            return made if isinstance(made, list) else None

        change_json(folder / name, changed)
        with pytest.raises(InputError, match=name) as error:
            read_folder(folder)
        assert message in str(error.value)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("question,gold", "ask,gold", "line 1: has no column 'question'"),
            ('"" 0,', '"" 1,', "its question is not that of the test file"),
            ("['", "[", "must be a list of texts as Python writes it"),
            ("'Exaone'", "'Nobody'", "solver 'Nobody' has no profile"),
            ("_answer_1", "_answer_9", "has no column"),
            ('(D) neither",A', '(D) neither",B', "gold 'B', but 'A' in the test file"),
        ],
    )
    def test_in_csv_they_are_named_with_their_line(self, folder: Path, old: str, new: str, message: str) -> None:
        path = folder / "round0_seed0.csv"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=r"round0_seed0\.csv, line \d+") as error:
            read_folder(folder)
        assert message in str(error.value)

    def test_a_recruit_file_of_another_draw_is_refused(self, folder: Path) -> None:
        names = [f"test_samples_with_keywords_and_solvers_seed{seed}.csv" for seed in (0, 1)]
        (folder / names[0]).write_bytes((folder / names[1]).read_bytes())
        with pytest.raises(InputError, match=r"round0_seed0\.csv, line \d+: solvers .* in .*solvers_seed0\.csv, line"):
            read_folder(folder)

    def test_a_line_with_too_few_fields_is_named(self, folder: Path) -> None:
        path = folder / "round0_seed1.csv"
        path.write_text(path.read_text() + "a question,A\n")
        with pytest.raises(InputError, match=r"line 47: (more questions|not as many fields)"):
            read_folder(folder)

    def test_fewer_rows_than_questions_are_refused(self, folder: Path) -> None:
        path = folder / "test_samples_with_keywords_and_solvers_seed0.csv"
        (folder / "round0_seed0.csv").unlink()
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
        with pytest.raises(InputError, match=r"seed0\.csv: 1 questions, but the test file has 9"):
            read_folder(folder)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("Exaone_profile_9.0.json", "{}", "a second profile of Exaone"),
            ("GLM_profile_x.json", "{}", "'x' in the file's name is no accuracy"),
            ("GLM_profile_9.json", '{"law": 1.5}', "the score of 'law' must be an integer"),
            ("GLM_profile_9.json", '{"law": 1,\n}', "line 2, column 1: not valid JSON"),
            ("GLM_profile_9.json", "[]", "must hold an object"),
            ("fixed_Exaone_round1_seed5_1.json", '["one"]', "1 texts, but the test file has 9"),
            ("train_samples_with_keywords_X.json", "[]", "a second train keyword file"),
            ("GLM_CoT.json", "[]", "GLM has no profile; there are: Exaone, LlamaR1, Llama, Qwen"),
            ("fixed_Llama_round1_seed0_1.json", "[]", "final answers of several aggregators"),
        ],
    )
    def test_a_bad_file_beside_the_others_is_named(self, folder: Path, name: str, content: str, message: str) -> None:
        (folder / name).write_text(content)
        with pytest.raises(InputError, match="json") as error:
            read_folder(folder)
        assert message in str(error.value)

    def test_a_folder_without_profiles_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="it holds none"):
            read_folder(tmp_path)
        with pytest.raises(InputError, match="there is no such folder"):
            read_folder(tmp_path / "nowhere")


COMPATIBLE = load(["compat=reference"])
SCORES = st.dictionaries(st.sampled_from(TOPICS), st.integers(-4, 6), max_size=5)
PROFILES = st.dictionaries(st.sampled_from(("B", "LlamaR1", "Llama", "Qwen", "QwenR1")), SCORES, min_size=1)


class TestDraws:
    @settings(max_examples=300, deadline=None)
    @given(PROFILES, st.lists(st.lists(st.sampled_from(TOPICS), max_size=4), max_size=8), st.integers(0, 10**6))
    def test_they_are_the_released_ones(
        self, scores: dict[str, dict[str, int]], asked: list[list[str]], seed: int
    ) -> None:
        ordered = {name: scores[name] for _, name in sorted((f"{name}_profile_50.0.json", name) for name in scores)}
        try:
            expected = released_draws(ordered, asked, seed)
        except ZeroDivisionError:
            assume(False)
        profiles = [Profile(expert=name, task="T", scores=own, graded=9) for name, own in ordered.items()]
        rules = RoutingRules.from_settings(COMPATIBLE, seed)
        mapping = {skill: (skill, 1.0) for skill in TOPICS}
        made = Router(profiles, rules).recruit([(str(i), own) for i, own in enumerate(asked)], mapping)
        assert [list(made.recruitment(row).experts) for row in range(len(asked))] == expected


def drawn(run: Path) -> list[list[str]]:
    rows = [row for file in sorted((run / "recruits").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [row["experts"] for row in rows]


def symoe(*arguments: str) -> None:
    assert main([*arguments, "engine.kind=fake"]) == 0


class TestAnImportedRun:
    @pytest.mark.parametrize("seed", [0, 3])
    def test_it_recruits_as_the_released_script_would(self, tmp_path: Path, seed: int) -> None:
        folder = ReleasedFolder().write(tmp_path, answers=False)
        run = tmp_path / "run"
        symoe("import-reference", str(folder), "--run", str(run))
        symoe("recruit", "--run", str(run), "compat=reference", f"seed={seed}")
        found = read_folder(folder)
        keywords = [[found.mapping[k] for k in row.keywords] for row in found.test]
        assert drawn(run) == released_draws(found.profiles, keywords, seed)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_it_repeats_what_the_released_script_was_seen_to_draw(self, tmp_path: Path, seed: int) -> None:
        if not DRAWN.exists():
            pytest.skip("the recorded draws are not here")
        seen = json.loads((DRAWN / f"ref_seed{seed}.json").read_text())
        folder = tmp_path / "SAMPLE"
        folder.mkdir()
        for file in (DRAWN / "skills" / "SAMPLE").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        rows = json.loads((folder / "test_samples_with_keywords_Qwen.json").read_text())
        mapped = [{**row, "keywords": own} for row, own in zip(rows, seen["mapped"], strict=True)]
        (folder / "test_samples_with_keywords_Qwen_mapped.json").write_text(json.dumps(mapped))
        symoe("import-reference", str(folder), "--run", str(tmp_path / "run"))
        symoe("recruit", "--run", str(tmp_path / "run"), "compat=reference", f"seed={seed}")
        assert drawn(tmp_path / "run") == [call["drawn"] for call in seen["calls"] if call["k"] == 3]

    def test_a_seed_without_stored_recruits_is_left_to_the_stages(self, tmp_path: Path) -> None:
        folder, run = ReleasedFolder().write(tmp_path), tmp_path / "run"
        symoe("import-reference", str(folder), "--run", str(run), "seed=5")
        imported = json.loads((run / "manifest.json").read_text())["imported"]
        assert (imported["recruits"], imported["answers"], imported["finals"]) == ({}, 0, 0)
        symoe("recruit", "--run", str(run))
        found = read_folder(folder)
        assert drawn(run) == released_draws(found.profiles, [row.keywords for row in found.seats[0]], 5)

    def test_other_settings_recruit_anew(self, tmp_path: Path) -> None:
        folder = ReleasedFolder().write(tmp_path, answers=False)
        run = tmp_path / "run"
        symoe("import-reference", str(folder), "--run", str(run))
        symoe("recruit", "--run", str(run), "k=2", "compat=default")
        assert {len(experts) for experts in drawn(run)} == {2}

    def test_it_says_that_it_was_imported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = ReleasedFolder().write(tmp_path, answers=False)
        capsys.readouterr()
        symoe("import-reference", str(folder), "--run", str(tmp_path / "run"), "--json")
        told = json.loads(capsys.readouterr().out)
        assert told["profiles"] == {"experts": 4, "chains_of_thought": 0}
        assert told["skills"] == {"questions": 21, "without_skills": 1, "mapped": 4}
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert manifest["imported"] == {key: value for key, value in told.items() if key != "run"}
        assert [name for name, stage in manifest["stages"].items() if stage.get("imported")] == ["profile", "annotate"]

    def test_it_never_takes_the_place_of_another_run(self, tmp_path: Path) -> None:
        folder = ReleasedFolder().write(tmp_path, answers=False)
        run = str(tmp_path / "run")
        symoe("import-reference", str(folder), "--run", run)
        assert main(["import-reference", str(folder), "--run", run]) == 2
        symoe("import-reference", str(folder), "--run", run, "--restart")

    def test_experts_that_the_pool_lacks_are_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = ReleasedFolder(experts=("Qwen", "Mine")).write(tmp_path, answers=False)
        assert main(["import-reference", str(folder), "--run", str(tmp_path / "run")]) == 2
        assert "pool 'paper16' has no Mine" in capsys.readouterr().err


class TestSettings:
    def test_they_are_what_the_files_say(self, folder: Path) -> None:
        made = settings_for(read_folder(folder), [])
        assert (made.task.name, made.task.kind, made.task.unnamed_options) == ("MedMCQA", "choice", 0)
        assert [expert.name for expert in made.pool.experts] == ["Exaone", "LlamaR1", "Llama", "Qwen"]
        assert (made.k, made.seeds, made.compat, made.baselines) == (3, (0, 1), "reference", ("off",))

    def test_those_given_come_on_top(self, folder: Path) -> None:
        made = settings_for(read_folder(folder), ["seed=1", "compat=default", "baselines=all"])
        assert (made.all_seeds, made.compat, made.baselines) == ((1,), "default", ("all",))

    @pytest.mark.parametrize("override", ["limit=3", "exclude_leaks=true"])
    def test_those_that_would_change_the_questions_are_refused(self, folder: Path, override: str) -> None:
        with pytest.raises(InputError, match=override.partition("=")[0]):
            settings_for(read_folder(folder), [override])

    def test_integer_golds_make_an_integer_task(self, folder: Path) -> None:
        for name in ("train_samples_with_keywords_Qwen.json", "test_samples_with_keywords_Qwen.json"):
            change_json(folder / name, lambda rows: [{**row, "gold_answer": "080 or 081 (both)"} for row in rows])
        for path in (*folder.glob("*.csv"), folder / "test_samples_with_keywords_Qwen_mapped.json"):
            path.unlink()
        assert settings_for(read_folder(folder), []).task.kind == "integer"
