"""The benchmarks of the Hugging Face hub, through the real `datasets` library, from folders in the hub's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.hub_datasets import read_hub
from pipelines.questions import load_questions
from symoe_ray.config import load
from symoe_ray.core import InputError, ResourceError
from symoe_ray.hub_addresses import HubAddress
from symoe_ray.tasks import TaskData

datasets = pytest.importorskip("datasets")

Rows = list[dict[str, Any]]
LETTERS = "ABCDEFGHIJ"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched, and nothing is left behind."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def hub_folder(folder: Path, tables: dict[str, dict[str, Rows]], features: str = "") -> Path:
    """A dataset as the hub has it: configuration -> split -> rows, as Parquet with a README that says so."""
    configs = []
    for config, splits in tables.items():
        files = "".join(f"  - split: {split}\n    path: {config}/{split}-*.parquet\n" for split in splits)
        configs.append(f"- config_name: {config}\n  data_files:\n{files}")
        for split, rows in splits.items():
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
    (folder / "README.md").write_text(f"---\n{features}configs:\n{''.join(configs)}---\n# A dataset\n")
    return folder


def task_from(name: str, folder: Path, *overrides: str) -> TaskData:
    return load_questions(load([f"task={name}", f"task.dataset={folder}", "task.revision=", *overrides]))


def mmlu_pro(num_subjects: int = 14, each: int = 180) -> Rows:
    return [
        {
            "question_id": 70 + n, "question": f"Question {n} of subject {n % num_subjects}?",
            "options": [f"option {n} {letter}" for letter in LETTERS[: 3 + n % 8]], "answer": LETTERS[n % 3],
            "answer_index": n % 3, "cot_content": "", "category": f"subject {n % num_subjects}", "src": "made up",
        }
        for n in range(num_subjects * each)
    ]  # fmt: skip


def medmcqa(count: int, start: int) -> Rows:
    return [
        {
            "id": f"id-{n}", "question": f"Case {n}?", "opa": f"{n}a", "opb": f"{n}b", "opc": f"{n}c", "opd": f"{n}d",
            "cop": n % 4, "choice_type": "single", "exp": None, "subject_name": f"subject {n % 21}", "topic_name": None,
        }
        for n in range(start, start + count)
    ]  # fmt: skip


def gpqa(numbers: Sequence[int]) -> Rows:
    return [
        {
            "Record ID": f"rec{n}", "Question": f"Why {n}?", "Correct Answer": f"because {n}",
            "Incorrect Answer 1": f"{n} one", "Incorrect Answer 2": f"{n} two", "Incorrect Answer 3": f"{n} three",
            "High-level domain": "Physics",
        }
        for n in numbers
    ]  # fmt: skip


class TestTheFourBenchmarks:
    def test_mmlu_pro_is_sampled_per_subject(self, tmp_path: Path) -> None:
        rows = mmlu_pro()
        folder = hub_folder(tmp_path / "d", {"default": {"test": rows, "validation": rows[:5]}})
        data = task_from("mmlu_pro_hub", folder)
        assert (len(data.validation), len(data.test)) == (350, 2100)
        assert set(Counter(question.category for question in data.validation).values()) == {25}
        assert set(Counter(question.category for question in data.test).values()) == {150}
        assert not {question.id for question in data.validation} & {question.id for question in data.test}
        by_id = {str(row["question_id"]): row for row in rows}
        for question in data.test:
            row = by_id[question.id]
            assert (question.text, list(question.choices)) == (row["question"], row["options"])
            assert question.gold == (row["answer"],)

    def test_medmcqa_has_its_options_in_columns_and_gold_as_a_number(self, tmp_path: Path) -> None:
        labels = "".join(f"          '{n}': {letter}\n" for n, letter in enumerate("abcd"))
        label = f"  - name: cop\n    dtype:\n      class_label:\n        names:\n{labels}"
        texts = ["id", "question", "opa", "opb", "opc", "opd", "choice_type", "exp", "subject_name", "topic_name"]
        names = "".join(f"  - name: {name}\n    dtype: string\n" for name in texts[:6])
        tail = "".join(f"  - name: {name}\n    dtype: string\n" for name in texts[6:])
        folder = hub_folder(
            tmp_path / "d",
            {"default": {"train": medmcqa(21 * 30, 0), "validation": medmcqa(40, 9000)}},
            features=f"dataset_info:\n  features:\n{names}{label}{tail}",
        )
        data = task_from("medmcqa_hub", folder)
        assert (len(data.validation), len(data.test)) == (504, 40)
        assert set(Counter(question.category for question in data.validation).values()) == {24}
        assert data.test[3].choices == ("9003a", "9003b", "9003c", "9003d")
        assert [question.gold for question in data.test[:5]] == [("A",), ("B",), ("C",), ("D",), ("A",)]

    def test_gpqa_is_tested_on_diamond_and_validated_on_the_rest(self, tmp_path: Path) -> None:
        tables = {"gpqa_main": {"train": gpqa(range(30))}, "gpqa_diamond": {"train": gpqa(range(0, 30, 3))}}
        data = task_from("gpqa_hub", hub_folder(tmp_path / "d", tables))
        assert [question.id for question in data.test] == [f"rec{n}" for n in range(0, 30, 3)]
        assert {q.id for q in data.validation} == {f"rec{n}" for n in range(30) if n % 3}
        for question in (*data.validation, *data.test):
            number = question.id.removeprefix("rec")
            wrong = [f"{number} {word}" for word in ("one", "two", "three")]
            assert sorted(question.choices) == sorted([f"because {number}", *wrong])
            (gold,) = question.gold
            assert question.choices[question.letters.index(gold)] == f"because {number}"
        assert len({question.gold for question in data.validation}) == 4

    def test_aime_takes_its_two_splits_from_two_datasets(self, tmp_path: Path) -> None:
        years = [
            {"ID": f"{year}-{n}", "Year": year, "Question": f"AIME {year} {n}?", "Answer": "033"}
            for year in range(1998, 2025)
            for n in range(1, 16)
        ]  # fmt: skip
        test = [{"ID": f"2024-I-{n}", "Problem": f"Find {n}.", "Solution": "", "Answer": n} for n in range(1, 16)]
        validation = hub_folder(tmp_path / "v", {"default": {"train": years}})
        address = f"hf://{hub_folder(tmp_path / 't', {'default': {'train': test}})}?split=train&rename=Problem:Question"
        data = task_from("aime24_hub", validation, f"task.test={address}")
        assert (len(data.validation), len(data.test)) == (354, 15)
        assert not [question for question in data.validation if question.id.startswith("2024")]
        assert data.validation[0].gold == ("33",)
        assert (data.test[4].text, data.test[4].gold) == ("Find 5.", ("5",))

    @pytest.mark.parametrize("name", ["mmlu_pro_hub", "medmcqa_hub", "gpqa_hub", "aime24_hub"])
    def test_the_shipped_addresses_are_well_formed(self, name: str) -> None:
        task = load([f"task={name}"]).task
        for source in (task.validation, task.test):
            address = HubAddress.parse(source)
            assert address.revision == (task.revision if address.dataset in task.dataset else "")
            assert not address.is_folder


class TestOptionsInAHashedOrder:
    def test_it_does_not_depend_on_the_order_in_the_dataset(self, tmp_path: Path) -> None:
        rows = gpqa(range(12))
        one, three = "Incorrect Answer 1", "Incorrect Answer 3"
        turned = [{**row, one: row[three], three: row[one]} for row in rows]
        data = [
            task_from(
                "gpqa_hub",
                hub_folder(tmp_path / str(n), {"gpqa_main": {"train": gpqa([99])}, "gpqa_diamond": {"train": own}}),
            )
            for n, own in enumerate((rows, turned))
        ]
        assert data[0].test == data[1].test
        assert len({question.gold for question in data[0].test}) > 1


class TestFaults:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return hub_folder(tmp_path / "d", {"main": {"test": gpqa(range(5))}, "other": {"test": gpqa(range(2))}})

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("config=main&split=train", 'Unknown split "train"'),
            ("config=none&split=test", "'none' not found"),
            ("split=test", "Config name is missing"),
            ("config=main&split=test&group=area&take=1", "no column 'area'; there are: Record ID"),
            ("config=main&split=test&take=6", "5 rows are too few for skip=0 and take=6"),
            ("config=main&split=test&skip=9", "no rows are left"),
            ("config=main&split=test&except=other:area", "no column 'area'"),
            ("config=main&split=test&rename=area:domain", "no column 'area'"),
            ("config=main", "names no split"),
            ("config=main&split=test&tke=1", "unknown word 'tke'; allowed: split, config"),
            ("config=main&split=test&take=-1", "take=-1: must be a number"),
            ("config=main&split=test&without=Year", "must be two names with a colon"),
            ("config=main&split=", "split has no value"),
            ("config", "must be word=value"),
        ],
    )
    def test_in_an_address_they_are_named(self, folder: Path, query: str, message: str) -> None:
        with pytest.raises(InputError) as error:
            read_hub(f"hf://{folder}?{query}")
        assert message in str(error.value)
        assert str(error.value).startswith(f"hf://{folder}?{query}")

    def test_a_question_is_named_by_its_row(self, tmp_path: Path) -> None:
        rows = {"train": medmcqa(21 * 24, 0), "validation": [{**medmcqa(1, 0)[0], "cop": 7}]}
        folder = hub_folder(tmp_path / "d", {"default": rows})
        with pytest.raises(InputError, match=r"split=validation, row 1: gold 7 in 'cop' is no number from 0 to 3"):
            task_from("medmcqa_hub", folder)

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("/no/such/folder", "there is no folder"),
            ("/some/folder@abc", "a folder has no revisions"),
            ("datasets/one", "must be hf://datasets/OWNER/NAME"),
            ("owner/name", "must be hf://datasets/OWNER/NAME"),
        ],
    )
    def test_an_address_that_cannot_be_is_refused(self, place: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_hub(f"hf://{place}?split=test")

    def test_a_hub_that_cannot_be_reached_is_a_missing_resource(self) -> None:
        with pytest.raises(ResourceError, match=r"hf://datasets/nobody/nothing\?split=test"):
            read_hub("hf://datasets/nobody/nothing?split=test")

    def test_a_revision_that_reaches_nothing_is_refused(self, tmp_path: Path) -> None:
        settings = load(["task=mmlu_pro", "task.revision=abc", "task.test=t.json"])
        with pytest.raises(InputError, match=r"task\.revision=abc occurs in neither"):
            load_questions(settings)


def test_a_larger_sample_contains_a_smaller_one_and_skip_goes_on_where_take_ends(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "d", {"default": {"test": mmlu_pro(3, 10)}})

    def rows(words: str) -> set[object]:
        found = read_hub(f"hf://{folder}?split=test&group=category&{words}")
        return {row.values["question_id"] for row in found}

    four, six, rest = rows("take=4"), rows("take=6"), rows("skip=6")
    assert four < six
    assert (len(six), len(rest), six & rest) == (18, 12, set())
    assert rows("take=4&seed=1") != four
