"""API keys and their limits."""

from __future__ import annotations

import pytest

from symoe_ray.core import InputError
from symoe_ray.serving.keys import HASHED, Key, LimitError, Limits, find_key, hash_of, parse_keys

SECRET = "sk-0123456789abcdef"


def test_keys_are_plain_or_hashed_and_only_hashes_are_kept() -> None:
    lines = ["# who", "", f"anna: {SECRET}", f"ben: {HASHED}{hash_of('another-long-key').hex()} concurrency=3"]
    keys = parse_keys(lines, "keys.txt", requests_per_minute=5)
    assert [(k.name, k.requests_per_minute, k.concurrency) for k in keys] == [("anna", 5, 0), ("ben", 5, 3)]
    assert SECRET not in repr(keys)
    assert find_key(keys, SECRET) == keys[0]
    assert find_key(keys, "another-long-key") == keys[1]
    assert find_key(keys, SECRET + "x") is None
    assert find_key(keys, "") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no colon", "must be `name: key`"),
        ("anna: short", "16 characters"),
        (f"anna: {HASHED}12", "64 hexadecimal"),
        (f"anna: {HASHED}{'z' * 64}", "64 hexadecimal"),
        (f"anna: {SECRET} speed=3", "speed is no limit"),
        (f"anna: {SECRET} and more", "must be `name: key`"),
    ],
)
def test_a_wrong_line_is_named_without_its_key(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse_keys(["# first", line], "keys.txt")
    assert "keys.txt, line 2" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_name_is_there_once() -> None:
    with pytest.raises(InputError, match="'anna' is there twice"):
        parse_keys([f"anna: {SECRET}", f"anna: {SECRET}x"], "keys.txt")


class TestLimits:
    def test_a_minute_has_so_many_requests(self) -> None:
        clock = [0.0]
        limits, key = Limits(now=lambda: clock[0]), Key(name="a", sha256=b"", requests_per_minute=2)
        for _ in range(2):
            with limits.one(key):
                pass
        with pytest.raises(LimitError) as raised, limits.one(key):
            pass
        assert raised.value.retry_after_s == pytest.approx(30.0)
        clock[0] = 30.0
        with limits.one(key):
            pass
        with pytest.raises(LimitError), limits.one(key):
            pass
        clock[0] = 1e6  # no more than a minute's worth is saved up
        for _ in range(2):
            with limits.one(key):
                pass
        with pytest.raises(LimitError), limits.one(key):
            pass

    def test_so_many_requests_are_under_way_and_a_failed_one_leaves(self) -> None:
        limits, key = Limits(), Key(name="a", sha256=b"", concurrency=1)
        with limits.one(key):
            with pytest.raises(LimitError), limits.one(key):
                pass
            with limits.one(Key(name="b", sha256=b"", concurrency=1)):
                pass
        with pytest.raises(ZeroDivisionError), limits.one(key):
            raise ZeroDivisionError
        with limits.one(key):
            pass
