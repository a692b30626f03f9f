"""Canaries: when an engine is believed, and how its answers are kept."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from actors.canary import Canary, CanaryBook, agrees, canary_key, default_folder
from tests.unit.test_shapes import ARGS, checkpoint

EXPECTED = Canary((3, 5, 8), (-0.5, -1.0, -2.0))


def moved(by: float) -> Canary:
    """The same tokens, one of them less or more likely."""
    return Canary(EXPECTED.tokens, (-0.5, -1.0, -2.0 + by))


class TestAgrees:
    def test_the_same_answer_and_one_within_the_tolerance(self) -> None:
        assert agrees(EXPECTED, moved(0))
        assert agrees(EXPECTED, moved(-0.01), tolerance=0.02)

    def test_other_tokens_or_other_probabilities_do_not(self) -> None:
        assert not agrees(EXPECTED, Canary((3, 5, 9), EXPECTED.logprobs), tolerance=math.inf)
        assert not agrees(EXPECTED, Canary((3, 5), (-0.5, -1.0)))
        assert not agrees(EXPECTED, moved(0.03), tolerance=0.02)
        assert not agrees(EXPECTED, moved(math.nan), tolerance=math.inf)

    def test_an_answer_nearer_to_the_outgoing_expert_is_the_outgoing_experts(self) -> None:
        assert not agrees(EXPECTED, moved(0.03), moved(0.04), tolerance=0.05)
        assert agrees(EXPECTED, moved(0.01), moved(0.04), tolerance=0.05)
        assert agrees(EXPECTED, moved(0.03), Canary((1, 2, 3), EXPECTED.logprobs), tolerance=0.05)

    def test_two_experts_with_one_answer_agree(self) -> None:
        assert agrees(EXPECTED, EXPECTED, EXPECTED)

    def test_nothing_proves_nothing(self) -> None:
        assert not agrees(Canary((), ()), Canary((), ()))


class TestKey:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return checkpoint(tmp_path / "a")

    def key(self, folder: Path, version: str = "0.32", **args: object) -> str:
        return canary_key(folder, ARGS | args, version)

    def test_what_does_not_change_numbers_does_not_count(self, folder: Path) -> None:
        assert self.key(folder) == self.key(folder, model="y", max_num_seqs=4, kv_cache_memory_bytes=1)

    def test_weights_arguments_tokenizer_and_vllm_count(self, folder: Path) -> None:
        keys = [self.key(folder), self.key(folder, dtype="float32"), self.key(folder, version="0.33")]
        weights = folder / "model.safetensors"
        time_ns = weights.stat().st_mtime_ns + 1_000_000_000
        os.utime(weights, ns=(time_ns, time_ns))
        keys.append(self.key(folder))
        (folder / "tokenizer.json").write_text('{"added": 1}')
        keys.append(self.key(folder))
        assert len(set(keys)) == 5


class TestBook:
    def test_what_was_put_is_there_for_another_process(self, tmp_path: Path) -> None:
        CanaryBook(tmp_path / "book").put("k", EXPECTED)
        assert CanaryBook(tmp_path / "book").get("k") == EXPECTED
        assert [path.name for path in (tmp_path / "book").iterdir()] == ["k.json"]

    def test_the_last_one_put_stays(self, tmp_path: Path) -> None:
        book = CanaryBook(tmp_path)
        book.put("k", moved(1))
        book.put("k", EXPECTED)
        assert book.get("k") == EXPECTED

    def test_an_absent_one(self, tmp_path: Path) -> None:
        assert CanaryBook(tmp_path / "none").get("k") is None

    @pytest.mark.parametrize(
        "content",
        ["", "[]", '{"tokens": [1]}', '{"tokens": [1, 2], "logprobs": [-1]}', '{"tokens": [1], "logprobs": [NaN]}',
         '{"tokens": [], "logprobs": []}', '{"tokens": ["x"], "logprobs": [0]}', '{"tokens": [1], "logprobs": [-0.5'],
    )  # fmt: skip
    def test_a_damaged_one_counts_as_absent_and_can_be_replaced(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "k.json").write_text(content)
        book = CanaryBook(tmp_path)
        assert book.get("k") is None
        book.put("k", EXPECTED)
        assert book.get("k") == EXPECTED

    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError("no space")

        book = CanaryBook(tmp_path)
        book.put("k", EXPECTED)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            with pytest.raises(OSError, match="no space"):
                book.put("k", moved(1))
        assert [path.name for path in tmp_path.iterdir()] == ["k.json"]
        assert json.loads((tmp_path / "k.json").read_text())["tokens"] == [3, 5, 8]

    def test_the_default_place_is_in_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYMOE_CACHE", str(tmp_path))
        assert default_folder() == tmp_path / "canaries"
