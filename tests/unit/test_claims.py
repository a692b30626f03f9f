"""Claims to a run on storage without locks: one driver at a time, whoever dies, sleeps or starts at the same moment."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from symoe_ray.claims import BEAT_S, DEAD_S, FOLDER, Claim
from symoe_ray.core import ResourceError
from symoe_ray.storage import Storage


class World:
    """A clock, and what happens while somebody waits."""

    def __init__(self, folder: Path) -> None:
        self.storage, self.now = Storage(str(folder)), 1000.0
        self.meanwhile: Callable[[], None] = lambda: None

    def claim(self, token: str, clock: Callable[[], float] | None = None) -> Claim:
        return Claim(self.storage, token, f"driver {token}", clock=clock or (lambda: self.now), pause=self.pause)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def there(self) -> list[str]:
        return [Path(name).stem for name in self.storage.names(FOLDER)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_first_one_has_the_run_at_once_and_leaves_nothing_behind(world: World) -> None:
    claim = world.claim("a")
    claim.take()
    claim.check()
    assert (world.now, world.there()) == (1000.0, ["a"])
    claim.release()
    assert world.there() == []


@pytest.mark.parametrize("tokens", ["ab", "ba"])
def test_a_second_one_is_refused_while_the_first_lives(world: World, tokens: str) -> None:
    first, second = (world.claim(token) for token in tokens)
    first.take()
    started = world.now

    def beat() -> None:
        if world.now - started >= BEAT_S:
            first.renew()

    world.meanwhile = beat
    with pytest.raises(ResourceError, match=f"worked on by another process: driver {tokens[0]}"):
        second.take()
    assert world.now - started <= BEAT_S + 1
    assert world.there() == [tokens[0]]
    first.check()


def test_a_dead_ones_run_is_taken_over_after_a_while(world: World) -> None:
    world.claim("a").take()
    second, said = world.claim("b"), list[str]()
    second.say = said.append
    second.take()
    assert said == ["waiting for at most 60 s to see whether driver a still works on the run"]
    assert DEAD_S < world.now - 1000.0 < DEAD_S + 5
    assert world.there() == ["b"]
    second.check()


def test_whoever_slept_too_long_learns_it_before_writing(world: World) -> None:
    first, second = world.claim("a"), world.claim("b")
    first.take()
    second.take()  # the first was paused all the while
    with pytest.raises(ResourceError, match="taken over by another driver"):
        first.check()
    with pytest.raises(ResourceError, match="taken over by another driver"):
        first.renew()
    first.release()
    second.check()
    assert world.there() == ["b"]


def test_a_driver_whose_storage_was_away_for_long_asks_before_it_writes(world: World) -> None:
    claim = world.claim("a")
    claim.take()
    world.now += DEAD_S
    claim.check()
    assert json.loads(world.storage.read_bytes(f"{FOLDER}/a.json"))["beats"] == 3


def test_the_readers_own_clock_decides(world: World) -> None:
    """The first one's clock is years off; the second one's still sees its claim change, or not."""
    first = world.claim("a", clock=lambda: 9e9)
    first.take()
    second = world.claim("b")
    second.take()
    assert DEAD_S < world.now - 1000.0 < DEAD_S + 5


@pytest.mark.parametrize("seed", range(60))
def test_of_several_that_start_together_one_at_most_works(tmp_path: Path, seed: int) -> None:
    """Steps of three drivers in random order, with deaths: never do two work that both live."""
    dice = random.Random(seed)
    storage, now = Storage(str(tmp_path)), 0.0
    claims = {t: Claim(storage, t, t, clock=lambda: now) for t in ("a", "b", "c")}
    state = dict.fromkeys(claims, "new")
    for _ in range(400):
        now += dice.choice([0.0, 0.1, 1.0])
        token = dice.choice(list(claims))
        claim = claims[token]
        try:
            if state[token] == "new":
                claim._write()
                state[token] = "waits"
            elif state[token] == "waits":
                if not claim._others():
                    claim._held = True
                    claim._write()
                    state[token] = "works"
                elif now - claim._renewed > BEAT_S:
                    claim._write()
            elif state[token] == "works" and dice.random() < 0.02:
                claim.release()
                state[token] = "left"
        except ResourceError:
            claim.release()
            state[token] = "left"
        for other in claims.values():
            if state[other.token] == "works" and now - other._renewed > BEAT_S:
                other.renew()
        assert list(state.values()).count("works") <= 1
    assert "works" in state.values() or "left" in state.values()
