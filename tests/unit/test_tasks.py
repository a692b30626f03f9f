"""Question files: what is read, what is refused and where, and what is only warned of."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from symoe_ray import question_files
from symoe_ray.core import InputError, Question
from symoe_ray.options import split_options
from symoe_ray.settings import FieldNames, TaskSettings
from symoe_ray.tasks import TaskData, load_task

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SYMOE_DATA_DIR", REPO.parent / "shared" / "data"))

COLOUR = {"question": "Which colour is the sky?", "choices": ["red", "blue", "green"], "gold_answer": "B"}
SUM = {"question": "What is 2+2?", "gold_answer": "4"}


def put(path: Path, content: object) -> str:
    """Write bytes and text as they are, all else as JSON (.json) or JSON lines (.jsonl)."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        assert isinstance(content, list)
        path.write_text("".join(json.dumps(item) + "\n" for item in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def loaded(
    test: str = "", validation: str = "", *, kind: str = "auto", limit: int = 0, fields: object = None
) -> TaskData:
    names = fields if isinstance(fields, FieldNames) else FieldNames()
    return load_task(TaskSettings(name="T", kind=kind, test=test, validation=validation, fields=names), limit=limit)


def one(tmp_path: Path, item: object, *, kind: str = "auto") -> Question:
    return loaded(put(tmp_path / "q.json", [item]), kind=kind).test[0]


class TestOptionsInText:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("(A) one (B) two", ["one", "two"]),
            ("(A) one\n(B) two\n(C) three", ["one", "two", "three"]),
            ("(A) P(A) = 1 (B) P(B) = 2", ["P(A) = 1", "P(B) = 2"]),
            ("(A) x (B) y (C) z (D) Both (A) & (C)", ["x", "y", "z", "Both (A) & (C)"]),
            ("(A) (A) and (B) (B) neither", ["(A) and (B)", "neither"]),
            # The first (C) follows "and": the chain through the second one has more markers that count.
            ("(A) x (B) red and (C) blue (C) y (D) z", ["x", "red and (C) blue", "y", "z"]),
            ("(A) x (B) see (C) below (C) y (D) z", ["x", "see (C) below", "y", "z"]),
            # Two (C) that look alike: 8, 8, 7, 8 letters is more even than 8, 1, 14, 8.
            ("(A) aaaaaaaa (B) b (C) bbb (C) ccccccc (D) dddddddd", ["aaaaaaaa", "b (C) bbb", "ccccccc", "dddddddd"]),
            ("(A) x (B) Both (C) none", ["x", "Both", "none"]),
            ("(A) plants are not (B) plants are", ["plants are not", "plants are"]),
        ],
    )
    def test_letters_ascend(self, options: str, expected: list[str]) -> None:
        assert split_options(f"Pick. The options are: {options}") == ("Pick.", tuple(expected))

    def test_the_last_heading_that_options_follow_counts(self) -> None:
        text = "The options are: (A) u (B) v, said Ann. The options are: (A) x (B) The options are: many"
        stem, options = split_options(text)
        assert stem == "The options are: (A) u (B) v, said Ann."
        assert options == ("x", "The options are: many")

    def test_a_text_without_options_is_left_alone(self) -> None:
        for text in ("Find (A) and (B).", "The options are: none", "The options are: (A) only one "):
            assert split_options(text) == (text, ())

    def test_code_full_of_letters_is_split_quickly(self) -> None:
        body = " ".join(f"({letter}) " + "Y (J) = Y (I) " * 20 for letter in "ABCDEFGHIJ")
        assert len(split_options(f"Q The options are: {body}")[1]) == 10


class TestReleasedFiles:
    @pytest.mark.parametrize(
        ("name", "kind", "sizes"),
        [
            ("MMLU_Pro", "choice", (350, 2100)),
            ("MedMCQA", "choice", (504, 4183)),
            ("AIME24", "integer", (354, 30)),
        ],
    )
    def test_every_question_is_read(self, name: str, kind: str, sizes: tuple[int, int]) -> None:
        files = [DATA / f"{name}_{split}.json" for split in ("train", "test")]
        if not all(file.exists() for file in files):
            pytest.skip("the released question files are not here")
        data = loaded(str(files[1]), str(files[0]), kind=kind)
        assert (len(data.validation), len(data.test)) == sizes
        for questions, file in ((data.validation, files[0]), (data.test, files[1])):
            assert len({question.id for question in questions}) == len(questions)
            for question, item in zip(questions, json.loads(file.read_text()), strict=True):
                assert question.gold
                if kind == "choice":
                    assert 3 <= len(question.choices) <= 10
                    assert all(question.choices)
                    assert question.gold == (item["gold_answer"],)
                    assert question.gold[0] in question.letters
                    assert question.category == item.get("category", "")
                    joined = "".join(f"({a}) {b} " for a, b in zip(question.letters, question.choices, strict=True))
                    rebuilt = f"{question.text} The options are: {joined}"
                    assert "".join(rebuilt.split()) == "".join(item["question"].split())
        if name == "AIME24":
            assert [question.gold for question in data.validation if len(question.gold) > 1] == [("80", "81")]
        if name == "MMLU_Pro":
            assert any("11 of 2100 questions repeat" in text and "4 have the same" in text for text in data.warnings)
            assert any("4 of 2100 test questions share" in text and "1 have the same" in text for text in data.warnings)
        else:
            assert data.warnings == ()

    def test_the_oddest_ones_by_hand(self) -> None:
        if not (DATA / "MMLU_Pro_test.json").exists():
            pytest.skip("the released question files are not here")
        test = loaded(str(DATA / "MMLU_Pro_test.json"), kind="choice").test
        assert test[340].choices[4:7] == (
            "- [(2K) / {(K + 1) - (K - 1) (a/b)^2}]",
            "E / {(K + 1) - (K - 1) (a/b)^2}",
            "(E) / {(K^2 + 1) - (K^2 - 1) (a/b)^2}",
        )
        # A page of FORTRAN whose "Y (I)" and "Y (J)" look like markers.
        assert len(test[257].choices) == 10
        assert all(choice.startswith("SUBROUTINE SORT (Y, N)") for choice in test[257].choices)


class TestFormats:
    def test_json_lines_and_parquet_hold_the_same_questions(self, tmp_path: Path) -> None:
        items = [
            {"question": "Q1", "choices": ["a", "b"], "gold_answer": "A"},
            {"question": "Q2", "choices": ["c", "d"], "gold_answer": "B"},
        ]
        table = pa.Table.from_pylist(items)
        pq.write_table(table, tmp_path / "q.parquet")
        sources = [put(tmp_path / "q.json", items), put(tmp_path / "q.jsonl", items), str(tmp_path / "q.parquet")]
        first, *others = [loaded(source).test for source in sources]
        assert [question.text for question in first] == ["Q1", "Q2"]
        assert all(other == first for other in others)

    def test_blank_lines_and_a_byte_order_mark_do_no_harm(self, tmp_path: Path) -> None:
        text = "\ufeff" + json.dumps(SUM) + "\n\n"
        assert len(loaded(put(tmp_path / "q.jsonl", text)).test) == 1

    def test_fields_can_be_called_otherwise(self, tmp_path: Path) -> None:
        names = FieldNames(id="key", question="ask", choices=("options",), gold="answer", category="topic")
        item = {"key": 7, "ask": "Q?", "options": {"B": "two", "A": "one"}, "answer": "two", "topic": "t"}
        (question,) = loaded(put(tmp_path / "q.json", [item]), fields=names).test
        assert question == Question(
            id="7", text="Q?", kind="choice", task="T", choices=("one", "two"), gold=("B",), category="t"
        )

    def test_options_can_stand_in_a_field_each(self, tmp_path: Path) -> None:
        item = {"question": "Q?", "a": "one", "b": "two", "c": None, "gold_answer": "B"}
        names = FieldNames(choices=("a", "b", "c"))
        assert loaded(put(tmp_path / "q.json", [item]), fields=names).test[0].choices == ("one", "two")
        with pytest.raises(InputError, match="item 1: 'b' must hold an option's text, but is None"):
            loaded(put(tmp_path / "q.json", [{**item, "b": None, "c": "three"}]), fields=names)

    def test_gold_can_be_the_field_of_the_right_option(self, tmp_path: Path) -> None:
        item = {"question": "Q?", "right": "A", "wrong": "B"}
        names = FieldNames(choices=("wrong", "right"), gold="right")
        (question,) = loaded(put(tmp_path / "q.json", [item]), fields=names).test
        assert (question.choices, question.gold) == (("B", "A"), ("B",))

    @pytest.mark.parametrize(("gold", "expected"), [(0, ("A",)), (2, ("C",)), ([0, 1], ("A", "B"))])
    def test_gold_can_be_a_number(self, tmp_path: Path, gold: object, expected: tuple[str, ...]) -> None:
        rows = put(tmp_path / "q.json", [{**COLOUR, "gold_answer": gold}])
        assert loaded(rows, fields=FieldNames(gold_index=True)).test[0].gold == expected

    @pytest.mark.parametrize("gold", [3, -1, "B", 1.0])
    def test_a_number_of_no_option_is_refused(self, tmp_path: Path, gold: object) -> None:
        rows = put(tmp_path / "q.json", [{**COLOUR, "gold_answer": gold}])
        with pytest.raises(InputError, match=r"item 1: gold .* is no number from 0 to 2"):
            loaded(rows, fields=FieldNames(gold_index=True))

    def test_options_in_a_hashed_order_keep_their_gold(self, tmp_path: Path) -> None:
        items = [{"question": f"Q{n}?", "choices": ["w", "x", "y", "z"], "gold_answer": "A"} for n in range(20)]
        task = TaskSettings(name="T", shuffle_choices=True, test=put(tmp_path / "q.json", items))
        questions = load_task(task).test
        assert all(question.choices[question.letters.index(question.gold[0])] == "w" for question in questions)
        assert {question.gold[0] for question in questions} == set("ABCD")
        turned = [{**item, "choices": ["z", "y", "x", "w"], "gold_answer": "D"} for item in items]
        put(tmp_path / "q.json", turned)
        assert load_task(task).test == questions

    def test_unnamed_options_serve_questions_that_name_none(self, tmp_path: Path) -> None:
        file = put(tmp_path / "q.json", [COLOUR, {"question": "Q?", "gold_answer": "D"}])
        questions = load_task(TaskSettings(name="T", kind="choice", unnamed_options=4, test=file)).test
        assert [(q.letters, q.gold) for q in questions] == [("ABC", ("B",)), ("ABCD", ("D",))]

    def test_kinds_are_told_apart_by_the_options_or_as_the_row_says(self, tmp_path: Path) -> None:
        items = [COLOUR, SUM, {**COLOUR, "question": "How many?", "gold_answer": 3, "kind": "integer"}]
        kinds = [question.kind for question in loaded(put(tmp_path / "q.json", items)).test]
        assert kinds == ["choice", "integer", "integer"]

    @pytest.mark.parametrize(
        ("gold", "expected"),
        [
            ("80", ("80",)), ("080", ("80",)), (80, ("80",)), (80.0, ("80",)), ("-3", ("-3",)), ("1,024", ("1024",)),
            ("080 or 081 (both were accepted)", ("80", "81")), ([80, "081"], ("80", "81")), (["8", "08"], ("8",)),
        ],
    )  # fmt: skip
    def test_integers(self, tmp_path: Path, gold: object, expected: tuple[str, ...]) -> None:
        assert one(tmp_path, {**SUM, "gold_answer": gold}).gold == expected

    @pytest.mark.parametrize(
        ("gold", "expected"), [("B", ("B",)), ("(B)", ("B",)), ("blue", ("B",)), (["A", "green"], ("A", "C"))]
    )
    def test_letters(self, tmp_path: Path, gold: object, expected: tuple[str, ...]) -> None:
        assert one(tmp_path, {**COLOUR, "gold_answer": gold}).gold == expected

    def test_an_address_is_fetched(self, tmp_path: Path) -> None:
        put(tmp_path / "q.jsonl", [SUM])
        with Serving(tmp_path) as address:
            assert loaded(f"{address}/q.jsonl?download=true").test[0].text == "What is 2+2?"
            with pytest.raises(InputError, match="answered 404"):
                loaded(f"{address}/gone.json")
        with pytest.raises(InputError, match="cannot be fetched"):
            loaded(f"{address}/q.jsonl")

    def test_an_address_of_a_filesystem_is_read_through_it(self, tmp_path: Path) -> None:
        put(tmp_path / "q.jsonl", [SUM])
        (tmp_path / "empty.json").touch()
        assert loaded(f"file://{tmp_path}/q.jsonl").test[0].text == "What is 2+2?"
        for name, message in (
            ("gone.json", "gone.json: no such file"),
            ("empty.json", "empty.json: the file is empty"),
            ("q.txt", "q.txt: unknown kind of file '.txt'"),
        ):
            with pytest.raises(InputError, match=f"file://{tmp_path}/{message}"):
                loaded(f"file://{tmp_path}/{name}")
        with pytest.raises(InputError, match="is no folder that can be used"):
            loaded("nosuch://bucket/q.json")

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            (
                "s3://b/data?scheme=http&endpoint_override=h:9/q.json",
                "s3://b/data/q.json?scheme=http&endpoint_override=h:9",
            ),
            ("s3://b/data?endpoint_override=http://h:9/q.json", "s3://b/data/q.json?endpoint_override=http://h:9"),
            ("s3://b/q.json?endpoint_override=http://h:9", "s3://b/q.json?endpoint_override=http://h:9"),
            ("s3://b/q.json", "s3://b/q.json"),
        ],
    )
    def test_a_file_behind_the_options_of_its_folder_is_in_that_folder(
        self, address: str, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def stored(place: str) -> bytes:
            asked.append(place)
            return json.dumps([SUM]).encode()

        monkeypatch.setattr(question_files, "_stored", stored)
        assert loaded(address).test[0].text == "What is 2+2?"
        assert asked == [expected]


class Serving:
    """A file server on a free local port, as a context."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def _bad_items() -> Iterator[tuple[object, str, list[str]]]:
    """A second item (after a good one), the task's kind, and what the message must say."""
    yield {"gold_answer": "A"}, "auto", ["no 'question' field", "gold_answer"]
    yield {"qestion": "Q"}, "auto", ["no 'question' field", "did you mean 'qestion'?"]
    yield {"question": "  "}, "auto", ["'question' must be a text"]
    yield {"question": 3}, "auto", ["'question' must be a text"]
    yield "Q", "auto", ["must be an object", "a text"]
    yield SUM, "choice", ["two options or more", "The options are:"]
    yield {**COLOUR, "choices": ["only"]}, "choice", ["two options or more", "it has 1"]
    yield {**COLOUR, "gold_answer": "D"}, "auto", ["gold 'D'", "(A, B, C)"]
    yield {**COLOUR, "gold_answer": 1}, "auto", ["gold '1'", "(A, B, C)"]
    yield {**COLOUR, "gold_answer": "Blue"}, "auto", ["gold 'Blue'", "exact text"]
    yield {**COLOUR, "choices": "red, blue"}, "auto", ["'choices' must be a list"]
    yield {**COLOUR, "choices": ["red", None]}, "auto", ["'choices' must be a list"]
    yield {**COLOUR, "choices": {"A": "red", "C": "blue"}}, "auto", ["A, B, C", "A, C"]
    yield {**COLOUR, "choices": [str(i) for i in range(27)]}, "auto", ["27 options", "26"]
    graded = 'by an integer (17, "1,024", "080 or 081"), one with options by a letter or an option\'s text'
    yield {**SUM, "gold_answer": "four"}, "integer", ["gold 'four'", "not an integer", graded]
    yield {**SUM, "gold_answer": "3.5"}, "integer", ["gold '3.5'", "not an integer"]
    yield {**SUM, "gold_answer": True}, "integer", ["gold 'True'", "not an integer"]
    yield {**SUM, "kind": "number"}, "auto", ["'number'", "choice, integer"]
    yield {**SUM, "id": [1]}, "auto", ["the id in 'id'"]
    yield {**SUM, "question": "half \ud83d"}, "auto", ["\\ud83d", "surrogate"]


class TestBadInput:
    @pytest.mark.parametrize(("item", "kind", "parts"), _bad_items())
    @pytest.mark.parametrize(("suffix", "place"), [(".json", "item 2"), (".jsonl", "line 2")])
    def test_a_bad_item_is_named_once(
        self, tmp_path: Path, item: object, kind: str, parts: list[str], suffix: str, place: str
    ) -> None:
        good = {**SUM, "question": "What is 1+3?"} if kind == "integer" else {**COLOUR, "question": "Which?"}
        source = put(tmp_path / f"q{suffix}", [good, item])
        message = refusal(source, kind=kind)
        assert message.startswith(f"{source}, {place}: ")
        for part in parts:
            assert part in message

    @pytest.mark.parametrize(
        ("name", "content", "parts"),
        [
            ("q.json", '[{"question": "Q"},\n {"question": "R', ["line 2, column 15", "not valid JSON"]),
            ("q.jsonl", '{"question": "Q"}\n{"question"\n', ["line 2, column 12", "not valid JSON"]),
            ("q.json", '{"question": "Q"}\n{"question": "R"}\n', ["line 2", ".jsonl"]),
            ("q.json", "", ["the file is empty"]),
            ("q.json", " \n", ["the file is empty"]),
            ("q.json", "[]", ["holds no questions"]),
            ("q.json", '{"data": []}', ["must hold a list", "an object"]),
            ("q.json", "[" * 100_000, ["nested too deeply"]),
            ("q.json", b'[{"question": "caf\xe9"}]', ["not UTF-8", "byte 18", "0xe9"]),
            ("q.jsonl", "\ufeff".encode("utf-16-le") + '{"a": 1}'.encode("utf-16-le"), ["not UTF-8", "byte 0"]),
            ("q.parquet", b"PAR1 no", ["not a readable Parquet file"]),
            ("q.csv", "a,b\n", ["'.csv'", ".json, .jsonl, .ndjson, .parquet"]),
        ],
    )
    def test_a_bad_file_is_named_with_the_place(
        self, tmp_path: Path, name: str, content: str | bytes, parts: list[str]
    ) -> None:
        source = put(tmp_path / name, content)
        message = refusal(source)
        assert message.startswith(source)
        assert "\n" not in message
        for part in parts:
            assert part in message

    def test_a_truncated_parquet_file(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"question": ["Q"] * 100}), tmp_path / "q.parquet")
        whole = (tmp_path / "q.parquet").read_bytes()
        assert "not a readable Parquet file" in refusal(put(tmp_path / "q.parquet", whole[:-20]))

    def test_a_missing_column(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"prompt": ["Q"], "answer": ["4"]}), tmp_path / "q.parquet")
        assert "row 1: has no 'question' field; its fields are: prompt, answer" in refusal(str(tmp_path / "q.parquet"))

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        assert "gone.json: no such file" in refusal(str(tmp_path / "gone.json"))
        (tmp_path / "folder.json").mkdir()
        assert "cannot be read" in refusal(str(tmp_path / "folder.json"))

    def test_a_task_without_files(self) -> None:
        assert "task.validation and task.test" in refusal("")

    @pytest.mark.parametrize("gold", [{}, {"gold_answer": None}, {"gold_answer": ""}, {"gold_answer": []}])
    def test_gold_may_be_missing_in_the_test_file_only(self, tmp_path: Path, gold: dict[str, object]) -> None:
        source = put(tmp_path / "q.json", [{"question": "Q", "choices": ["a", "b"], **gold}])
        data = loaded(source)
        assert data.test[0].gold == ()
        assert data.warnings == ("1 of 1 test questions have no gold answer and count as wrong",)
        with pytest.raises(InputError, match=r"q\.json, item 1: a validation question needs a gold answer"):
            loaded(validation=source)


def refusal(source: str, *, kind: str = "auto") -> str:
    with pytest.raises(InputError) as caught:
        loaded(source, kind=kind)
    return str(caught.value)


class TestIds:
    def test_a_made_id_depends_on_what_is_asked_and_not_on_gold_or_spaces(self, tmp_path: Path) -> None:
        plain = one(tmp_path, COLOUR).id
        assert plain.startswith("T-")
        assert one(tmp_path, {**COLOUR, "question": "Which  colour is\nthe sky?", "gold_answer": "A"}).id == plain
        assert one(tmp_path, {**COLOUR, "choices": ["blue", "red", "green"]}).id != plain
        assert one(tmp_path, {**COLOUR, "kind": "integer", "gold_answer": 1}).id != plain

    def test_a_made_id_is_the_same_in_every_version(self, tmp_path: Path) -> None:
        # printf '["What is 2+2?",[],"integer"]' | b2sum -l 48
        assert one(tmp_path, SUM).id == "T-b05296733016"

    def test_repeated_questions_are_all_kept_and_counted(self, tmp_path: Path) -> None:
        items = [SUM, COLOUR, SUM, {**COLOUR, "choices": ["x", "y"], "gold_answer": "A"}, {**SUM, "gold_answer": "5"}]
        source = put(tmp_path / "q.json", items)
        data = loaded(source)
        first = data.test[0].id
        assert [data.test[index].id for index in (2, 4)] == [f"{first}#2", f"{first}#3"]
        assert len(data.test) == 5
        said = (
            "3 of 5 questions repeat an earlier one's text; 2 have the same options and 1 of these another gold answer"
        )
        assert data.warnings == (f"{source}: {said}",)

    def test_one_id_for_two_contents_is_refused(self, tmp_path: Path) -> None:
        source = put(tmp_path / "q.json", [{**SUM, "id": "a"}, {**COLOUR, "id": "a"}])
        assert "the id 'a' stands for two different questions" in refusal(source)
        source = put(tmp_path / "q.json", [{**SUM, "id": "a"}, {**SUM, "id": "a", "gold_answer": 5}])
        assert "the id 'a' stands for two different questions" in refusal(source)

    def test_so_it_is_across_both_files(self, tmp_path: Path) -> None:
        test, validation = put(tmp_path / "t.json", [{**SUM, "id": 1}]), put(tmp_path / "v.json", [{**COLOUR, "id": 1}])
        with pytest.raises(InputError, match=r"v\.json and .*t\.json: the id '1' stands for two"):
            loaded(test, validation)

    def test_one_id_twice_with_one_content_is_a_repetition(self, tmp_path: Path) -> None:
        items = [{**SUM, "id": "a"}, {**SUM, "id": "a"}, {**COLOUR, "id": "a#2"}]
        assert [question.id for question in loaded(put(tmp_path / "q.json", items)).test] == ["a", "a#3", "a#2"]

    def test_an_overlap_of_the_splits_is_counted(self, tmp_path: Path) -> None:
        other = {**COLOUR, "choices": ["x", "y"], "gold_answer": "A"}
        data = loaded(put(tmp_path / "t.json", [SUM, other]), put(tmp_path / "v.json", [COLOUR, SUM]))
        assert data.warnings == (
            "2 of 2 test questions share their text with a validation question; 1 have the same options",
        )


class TestLimit:
    def test_a_larger_limit_contains_a_smaller_one_in_the_files_order(self, tmp_path: Path) -> None:
        source = put(tmp_path / "q.json", [{"question": f"{i}?", "gold_answer": i} for i in range(40)])
        everything = [question.id for question in loaded(source).test]
        chosen = {limit: [question.id for question in loaded(source, limit=limit).test] for limit in (1, 5, 20, 40, 99)}
        for smaller, larger in ((1, 5), (5, 20), (20, 40)):
            assert len(chosen[smaller]) == smaller
            assert set(chosen[smaller]) < set(chosen[larger])
        assert chosen[20] == [name for name in everything if name in chosen[20]]
        assert chosen[40] == chosen[99] == everything

    def test_it_does_not_depend_on_the_order_of_the_file_and_is_no_prefix(self, tmp_path: Path) -> None:
        items = [{"question": f"{i}?", "gold_answer": i} for i in range(40)]
        forward = loaded(put(tmp_path / "a.json", items), limit=8).test
        backward = loaded(put(tmp_path / "b.json", items[::-1]), limit=8).test
        assert {question.id for question in forward} == {question.id for question in backward}
        assert [question.text for question in forward] != [f"{i}?" for i in range(8)]

    def test_it_holds_for_both_splits(self, tmp_path: Path) -> None:
        items = [{"question": f"{i}?", "gold_answer": i} for i in range(6)]
        more = [{"question": f"{i}!", "gold_answer": i} for i in range(6)]
        data = loaded(put(tmp_path / "t.json", items), put(tmp_path / "v.json", more), limit=2)
        assert (len(data.validation), len(data.test)) == (2, 2)
