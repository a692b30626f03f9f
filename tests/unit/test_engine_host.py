"""The swap tiers of a slot: real processes, with engines that have no model. Loads and deaths are in test_launcher."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from actors.canary import Canary, CanaryBook
from actors.engine_host import EngineDiedError, EngineHost, EnginePlan, HostSettings, LoadError
from actors.launcher import EngineProcess, LaunchError, SpawnLauncher
from actors.memory import GIB, Need
from symoe_ray.testing import CRASH, fake_text
from tests.unit.test_launcher import TIMEOUT_S, gone, planned, request

OTHER = "reload: the canary differs from that of a fresh engine"
KILLED = "the engine process was killed by signal 9"
ENDLESS = {"tokens_per_s": 0.001}


class Tier(SpawnLauncher):
    """Remembers what it has started; with `refuses` it starts nothing."""

    def __init__(self, log: Path, name: str = "spawn", refuses: str = "") -> None:
        super().__init__("actors.fake_engine", {}, str(log))
        self.tier, self._refuses = name, refuses
        self.started: list[EngineProcess] = []

    async def launch(self) -> EngineProcess:
        if self._refuses:
            raise LaunchError(self._refuses)
        self.started.append(await super().launch())
        return self.started[-1]

    @property
    def living(self) -> list[int]:
        """The processes that have not ended."""
        return [process.pid for process in self.started if not process.ended.done()]


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return Tier(tmp_path / "slot.log")


@pytest.fixture
def book(tmp_path: Path) -> CanaryBook:
    return CanaryBook(tmp_path / "canaries")


Work = Callable[[EngineHost], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def play(tier: Tier, book: CanaryBook) -> Play:
    """Do something with a host of these tiers (`tier` alone if none are named); nothing is left of it afterwards."""

    def run(work: Work, *tiers: Tier, **settings: Any) -> None:
        asyncio.run(asyncio.wait_for(whole(work, tiers or (tier,), settings), 2 * TIMEOUT_S))

    async def whole(work: Work, tiers: tuple[Tier, ...], settings: dict[str, Any]) -> None:
        limits: dict[str, Any] = {"load_timeout_s": TIMEOUT_S, "stall_timeout_s": TIMEOUT_S}
        host = EngineHost(tiers, HostSettings(**(limits | settings)), book)
        try:
            await work(host)
        finally:
            await host.close()
        assert [pid for each in tiers for pid in each.living] == []

    return run


def shaped(expert: str, shape: str = "s", **changes: Any) -> EnginePlan:
    """An engine of a shape, whose canary is kept under the expert's name."""
    return planned(expert, shape=shape, canary=expert, **changes)


def apart(expert: str, **changes: Any) -> EnginePlan:
    """An engine like no other, whose canary is kept."""
    return planned(expert, canary=expert, **changes)


async def answers(host: EngineHost, expert: str) -> bool:
    """Whether the live engine answers as this expert does."""
    (answer,) = await host.generate(request())
    return answer.text == fake_text(expert, "Why?", 7)


async def at_work(host: EngineHost, n: int = 1) -> asyncio.Task[Any]:
    """A request that an endless engine has begun: another one, refused, has gone all the way there and back."""
    task = asyncio.create_task(host.generate(request(n=n)))
    await asyncio.sleep(0)
    (refused,) = await host.generate(request("why " * 60))
    assert refused.failure is not None
    return task


async def until(condition: Callable[[], Any]) -> None:
    """Return when the condition holds."""
    while not condition():
        await asyncio.sleep(0.005)


class TestReload:
    def test_a_live_engine_takes_weights_of_its_shape_once_their_canary_is_known(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            taken = []
            for expert in "ABAB":
                report = await host.load(shaped(expert))
                taken.append((report.tier, report.pid, report.note))
                assert await answers(host, expert)
                assert (host.key, host.report) == (expert, report)
            a, b = (process.pid for process in tier.started)
            assert taken == [("spawn", a, ""), ("spawn", b, ""), ("reload", b, ""), ("reload", b, "")]
            assert host.deaths == []

        play(work)

    @pytest.mark.parametrize(
        ("last", "settings"),
        [(shaped("A", "another"), {}), (shaped("A", ""), {}), (planned("A", shape="s"), {}),
         (shaped("A"), {"reload": False})],
        ids=["another shape", "no shape", "no canary", "not wanted"],
    )  # fmt: skip
    def test_otherwise_an_engine_is_started(
        self, last: EnginePlan, settings: dict[str, Any], tier: Tier, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            for plan in (shaped("A"), shaped("B"), last):
                report = await host.load(plan)
                assert (report.tier, report.note, await answers(host, plan.key)) == ("spawn", "", True)
            assert len({process.pid for process in tier.started}) == 3

        play(work, **settings)

    def test_every_fresh_engine_renews_its_canary(self, book: CanaryBook, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(shaped("A"))
            right = book.get("A")
            assert right is not None
            book.put("A", Canary((1,), (-1.0,)))
            await host.load(apart("B"))
            assert (await host.load(shaped("A"))).tier == "spawn"
            assert book.get("A") == right

        play(work)

    def test_one_that_keeps_its_weights_is_caught_and_ended(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(shaped("B"))
            deceiver = await host.load(shaped("A", keeps_weights=True))
            report = await host.load(shaped("B"))
            assert (report.tier, report.note) == ("spawn", OTHER)
            assert gone(deceiver.pid)
            assert await answers(host, "B")
            assert host.deaths == []

        play(work)

    def test_one_with_wrong_weights_never_answers_where_nothing_else_can_be_started(
        self, tmp_path: Path, book: CanaryBook, play: Play
    ) -> None:
        class Once(Tier):
            async def launch(self) -> EngineProcess:
                if self.started:
                    raise LaunchError("one was enough")
                return await super().launch()

        async def work(host: EngineHost) -> None:
            book.put("B", Canary((1,), (-1.0,)))
            await host.load(shaped("A", keeps_weights=True))
            with pytest.raises(LoadError, match=f"^{OTHER}; spawn: one was enough$"):
                await host.load(shaped("B"))
            assert (host.alive, host.key) == (False, "")
            with pytest.raises(EngineDiedError, match="no engine is loaded"):
                await host.generate(request())

        play(work, Once(tmp_path / "log"))

    def test_a_busy_engine_is_replaced(self, book: CanaryBook, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(shaped("B"))
            await host.load(shaped("A", "another", **ENDLESS))
            busy = await at_work(host)
            report = await host.load(shaped("B", "another"))
            assert (report.tier, report.note) == ("spawn", "")
            with pytest.raises(EngineDiedError, match="the engine was unloaded"):
                await busy

        play(work)

    def test_a_request_that_was_given_up_does_not_keep_it_busy(self, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(shaped("B"))
            await host.load(shaped("A", "another", **ENDLESS))
            busy = await at_work(host)
            busy.cancel()
            await asyncio.wait([busy])
            assert (await host.load(shaped("B", "another"))).tier == "reload"

        play(work)

    def test_an_engine_that_dies_meanwhile_is_replaced_and_the_report_says_so(self, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(shaped("B"))
            first = await host.load(shaped("A"))
            os.kill(first.pid, signal.SIGKILL)  # the host does not know yet
            report = await host.load(shaped("B"))
            assert (report.tier, report.note) == ("spawn", f"reload: {KILLED}")
            assert host.deaths == [KILLED]
            assert await answers(host, "B")

        play(work)

    def test_a_dead_engine_takes_nothing(self, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(shaped("A"))
            with pytest.raises(EngineDiedError):
                await host.generate(request(CRASH))
            report = await host.load(shaped("A"))
            assert (report.tier, report.note) == ("spawn", "")

        play(work)


class TestSleep:
    def test_one_wakes_as_the_process_it_was_while_the_other_falls_asleep(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            pids = [(await host.load(apart(expert))).pid for expert in "AB"]
            assert (host.key, host.asleep) == ("B", ["A"])
            for expert, other in ("AB", "BA", "AB"):
                report = await host.load(apart(expert))
                assert (report.tier, report.note) == ("wake", "")
                assert report.pid == pids["AB".index(expert)]
                assert host.asleep == [other]
                assert await answers(host, expert)
            assert tier.living == pids

        play(work, max_sleeping=1)

    def test_the_one_that_slept_longest_makes_room(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            for expert in "ABC":
                await host.load(apart(expert))
            assert (await host.load(apart("A"))).tier == "wake"
            assert host.asleep == ["B", "C"]
            await host.load(apart("D"))
            assert host.asleep == ["C", "A"]
            a, b, c, d = tier.started
            assert await b.ended == -signal.SIGKILL
            assert tier.living == [a.pid, c.pid, d.pid]
            assert (await host.load(apart("B"))).tier == "spawn"

        play(work, max_sleeping=2)

    def test_one_that_died_asleep_is_replaced_and_the_report_says_so(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            first = await host.load(apart("A"))
            await host.load(apart("B"))
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: host.deaths)
            assert host.asleep == []
            report = await host.load(apart("A"))
            assert (report.tier, report.note) == ("spawn", f"wake: {KILLED}")
            assert await answers(host, "A")

        play(work, max_sleeping=1)

    def test_one_that_answers_otherwise_than_a_fresh_one_is_ended(
        self, tier: Tier, book: CanaryBook, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            first = await host.load(apart("A"))
            await host.load(apart("B"))
            book.put("A", Canary((1,), (-1.0,)))
            report = await host.load(apart("A"))
            assert (report.tier, report.note) == ("spawn", OTHER.replace("reload", "wake"))
            assert gone(first.pid)

        play(work, max_sleeping=1)

    @pytest.mark.parametrize("plan", [planned("A"), apart("A", **ENDLESS)], ids=["no canary", "busy"])
    def test_one_that_could_not_be_judged_or_is_busy_is_ended_instead(
        self, plan: EnginePlan, tier: Tier, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(plan)
            busy = await at_work(host) if plan.canary else None
            report = await host.load(apart("B"))
            assert (tier.living, host.asleep) == ([report.pid], [])
            if busy is not None:
                with pytest.raises(EngineDiedError):
                    await busy

        play(work, max_sleeping=1)

    def test_an_engine_that_was_given_the_weights_of_a_sleeping_one_takes_its_place(
        self, tier: Tier, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            for plan in (shaped("A"), apart("C"), shaped("B")):
                await host.load(plan)
            assert (await host.load(shaped("A"))).tier == "reload"
            assert host.asleep == ["A", "C"]
            assert (await host.load(apart("C"))).tier == "wake"
            assert host.asleep == ["A"]
            await until(lambda: len(tier.living) == 2)
            report = await host.load(shaped("A"))
            assert (report.tier, report.pid) == ("wake", tier.started[2].pid)
            assert await answers(host, "A")

        play(work, max_sleeping=2)

    def test_one_wakes_only_once_the_engine_before_has_given_its_memory_back(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(apart("A", need=Need(host_bytes=0, gpu_bytes=4 * GIB)))
            await host.load(apart("B", **ENDLESS))
            busy = await at_work(host)
            report = await host.load(apart("A", need=Need(host_bytes=0, gpu_bytes=4 * GIB)))
            assert (report.tier, report.note, tier.living) == ("wake", "", [report.pid])
            with pytest.raises(EngineDiedError):
                await busy

        play(work, max_sleeping=1, free_memory=lambda: Need(host_bytes=0, gpu_bytes=2 * GIB * (2 - len(tier.living))))

    def test_on_a_gpu_no_engine_ends_while_another_starts(
        self, tier: Tier, play: Play, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alive, launch = [], tier.launch

        async def noted() -> EngineProcess:
            alive.append(len(tier.living))
            return await launch()

        monkeypatch.setattr(tier, "launch", noted)

        async def work(host: EngineHost) -> None:
            for expert in "ABC":
                await host.load(apart(expert, need=Need(host_bytes=0, gpu_bytes=GIB)))

        play(work, free_memory=lambda: Need(host_bytes=0, gpu_bytes=80 * GIB))
        assert alive == [0, 0, 0]

    def test_one_that_has_no_room_to_wake_is_started_anew(self, tier: Tier, play: Play) -> None:
        a = apart("A", need=Need(host_bytes=0, gpu_bytes=4 * GIB))

        async def work(host: EngineHost) -> None:
            await host.load(a)
            await host.load(apart("B"))
            report = await host.load(a)
            assert (report.tier, report.note.split(" GiB")[0]) == ("spawn", "wake: the engine needs 1.75")
            assert (tier.living, await answers(host, "A")) == ([report.pid], True)

        def free() -> Need:
            return Need(host_bytes=0, gpu_bytes=0 if tier.living else 4 * GIB)

        play(work, max_sleeping=1, free_memory=free, memory_timeout_s=0.05)

    def test_one_that_does_not_fall_asleep_in_time_is_ended(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            first = await host.load(apart("A"))
            os.kill(first.pid, signal.SIGSTOP)
            report = await host.load(apart("B"))
            assert (report.tier, host.asleep) == ("spawn", [])
            assert await tier.started[0].ended == -signal.SIGKILL

        play(work, max_sleeping=1, stall_timeout_s=0.5)

    def test_a_load_that_is_given_up_while_the_engine_before_falls_asleep_leaves_nothing(
        self, tier: Tier, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            first = await host.load(apart("A"))
            os.kill(first.pid, signal.SIGSTOP)
            loading = asyncio.create_task(host.load(apart("B")))
            await until(lambda: not host.alive)
            loading.cancel()
            await asyncio.wait([loading])
            assert await tier.started[0].ended == -signal.SIGKILL
            assert len(tier.started) == 1

        play(work, max_sleeping=1)


class TestMemory:
    def test_an_engine_starts_when_enough_is_free(self, tmp_path: Path, play: Play) -> None:
        seen: list[str] = []
        readings = iter([5, 5, 9, 10])

        def read() -> Need:
            free = next(readings, 10)
            seen.append(f"{free} free")
            return Need(host_bytes=free)

        class Watched(Tier):
            async def launch(self) -> EngineProcess:
                seen.append("started")
                return await super().launch()

        async def work(host: EngineHost) -> None:
            assert (await host.load(planned(need=Need(host_bytes=10)))).note == ""
            assert seen[:5] == ["5 free", "5 free", "9 free", "10 free", "started"]

        play(work, Watched(tmp_path / "log"), free_memory=read)

    def test_the_engine_before_gives_its_memory_back_first(self, tier: Tier, play: Play) -> None:
        def read() -> Need:
            return Need(host_bytes=GIB * (1 - len(tier.living)))

        async def work(host: EngineHost) -> None:
            for expert in "AB":
                report = await host.load(planned(expert, need=Need(host_bytes=GIB)))
                assert tier.living == [report.pid]

        play(work, free_memory=read)

    @pytest.mark.parametrize("gpu", [False, True])
    def test_what_is_lacking_is_a_load_error_that_no_other_tier_would_change(
        self, gpu: bool, tmp_path: Path, tier: Tier, play: Play
    ) -> None:
        need = Need(host_bytes=GIB, gpu_bytes=3 * GIB) if gpu else Need(host_bytes=3 * GIB)
        free = Need(host_bytes=2 * GIB, gpu_bytes=2 * GIB)
        kind = "GPU" if gpu else "host"

        async def work(host: EngineHost) -> None:
            lacks = f"^fork: the engine needs 3.00 GiB of {kind} memory and 2.00 GiB are free: [^;]*$"
            with pytest.raises(LoadError, match=lacks):
                await host.load(planned(need=need))
            assert tier.started == []

        play(work, Tier(tmp_path / "log", "fork"), tier, free_memory=lambda: free, memory_timeout_s=0.05)

    def test_sleeping_engines_are_ended_while_it_is_short(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            for expert in "ABCD":
                await host.load(apart(expert, need=Need(host_bytes=1)))
            assert host.asleep == ["B", "C"]
            assert tier.living == [process.pid for process in tier.started[1:]]

        play(work, max_sleeping=5, free_memory=lambda: Need(host_bytes=3 - len(tier.living)))


class TestPrepare:
    need = Need(host_bytes=1)
    enough: dict[str, Any] = {"free_memory": lambda: Need(host_bytes=1)}  # noqa: RUF012

    def test_the_next_engine_starts_beside_the_live_one_which_goes_on(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            first = await host.load(planned("A"))
            assert not first.beside
            assert await host.prepare(planned("B", need=self.need), below=32) == ""
            await until(lambda: len(tier.started) == 2)
            assert await answers(host, "A")
            report = await host.load(planned("B", need=self.need))
            assert (report.tier, report.beside, report.note) == ("spawn", True, "")
            assert report.pid == tier.started[1].pid
            assert await answers(host, "B")
            assert await tier.started[0].ended == -signal.SIGKILL
            assert len(tier.started) == 2

        play(work, **self.enough)

    def test_it_bears_the_name_of_the_first_tier(self, tmp_path: Path, tier: Tier, play: Play) -> None:
        fork = Tier(tmp_path / "log", "fork")

        async def work(host: EngineHost) -> None:
            await host.prepare(planned("A", need=self.need), below=0)
            report = await host.load(planned("A", need=self.need))
            assert (report.tier, report.beside, len(fork.started), len(tier.started)) == ("fork", True, 1, 0)

        play(work, fork, tier, **self.enough)

    def test_it_waits_until_the_live_one_has_seats_to_spare(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(planned("A", **ENDLESS))
            requests = [await at_work(host, n=2) for _ in range(2)]
            preparing = asyncio.create_task(host.prepare(planned("B", need=self.need), below=4))
            await host.generate(request("why " * 60))  # to the engine and back
            assert (len(tier.started), preparing.done()) == (1, False)
            requests[0].cancel()
            assert await preparing == ""
            await until(lambda: len(tier.started) == 2)
            requests[1].cancel()

        play(work, **self.enough)

    @pytest.mark.parametrize(
        ("need", "free", "reason"),
        [(Need(host_bytes=2 * GIB), GIB, "needs 2.00 GiB of host memory"), (None, GIB, "not known"),
         (Need(host_bytes=1), None, "not known")],
    )  # fmt: skip
    def test_without_memory_for_both_nothing_is_started(
        self, need: Need | None, free: int | None, reason: str, tier: Tier, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            assert reason in await host.prepare(planned("B", need=need), below=0)
            assert tier.started == []

        play(work, free_memory=None if free is None else lambda: Need(host_bytes=free))

    @pytest.mark.parametrize("changes", [{}, {"load_s": TIMEOUT_S}], ids=["started", "starting"])
    def test_it_is_ended_where_another_expert_is_loaded(
        self, changes: dict[str, Any], tier: Tier, book: CanaryBook, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(planned("A"))
            await host.prepare(apart("B", need=self.need, **changes), below=32)
            await until(lambda: len(tier.started) == 2 if changes else book.get("B"))
            report = await host.load(planned("C"))
            assert (report.tier, report.beside, report.note) == ("spawn", False, "")
            assert tier.living == [report.pid]

        play(work, **self.enough)

    def test_it_is_ended_where_another_expert_needs_no_new_engine(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            for expert in "BA":
                await host.load(shaped(expert))
            await host.prepare(planned("C", need=self.need), below=32)
            await until(lambda: len(tier.started) == 3)
            assert (await host.load(shaped("B"))).tier == "reload"
            assert await tier.started[2].ended == -signal.SIGKILL

        play(work, **self.enough)

    def test_only_the_expert_named_last_is_prepared(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(planned("A", **ENDLESS))
            busy = await at_work(host)
            first = asyncio.create_task(host.prepare(planned("B", need=self.need), below=1))
            second = asyncio.create_task(host.prepare(planned("C", need=self.need), below=1))
            await asyncio.sleep(0)
            busy.cancel()
            assert await asyncio.gather(first, second) == ["", ""]
            report = await host.load(planned("C", need=self.need))
            assert report.beside
            assert await answers(host, "C")
            await until(lambda: tier.living == [report.pid])

        play(work, **self.enough)

    def test_one_that_died_is_replaced_and_the_report_says_so(self, tier: Tier, book: CanaryBook, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            plan = apart("B", need=self.need)
            await host.load(planned("A"))
            await host.prepare(plan, below=32)
            await until(lambda: book.get("B"))  # it has started
            os.kill(tier.started[1].pid, signal.SIGKILL)
            await until(lambda: host.deaths)
            report = await host.load(plan)
            note = "spawn: the engine that was started beside the one before has died"
            assert (report.tier, report.beside, report.note) == ("spawn", False, note)
            assert await answers(host, "B")
            await until(lambda: tier.living == [report.pid])

        play(work, **self.enough)

    def test_one_that_could_not_be_started_leaves_the_live_one_alone(
        self, tmp_path: Path, tier: Tier, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(planned("A"))
            await host.prepare(planned("B", need=self.need), below=32)
            assert await answers(host, "A")
            report = await host.load(planned("B", need=self.need))
            assert (report.tier, report.beside) == ("spawn", False)
            assert "fork: not today" in report.note
            assert await answers(host, "B")

        play(work, Tier(tmp_path / "log", "fork", refuses="not today"), tier, **self.enough)

    def test_an_expert_that_a_reload_or_a_wake_will_bring_is_left_to_it(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(shaped("B", need=self.need))
            await host.load(apart("C", need=self.need))
            await host.load(shaped("A", **ENDLESS))
            busy = await at_work(host)
            for plan in (shaped("B", need=self.need), apart("C", need=self.need)):
                assert "faster" in await host.prepare(plan, below=32)
            assert len(tier.started) == 3
            busy.cancel()
            await asyncio.wait([busy])
            assert [(await host.load(plan)).tier for plan in (shaped("B"), apart("C"))] == ["reload", "wake"]

        play(work, max_sleeping=1, **self.enough)

    def test_one_under_way_when_the_host_closes_starts_nothing(self, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(planned("A", **ENDLESS))
            busy = await at_work(host)
            preparing = asyncio.create_task(host.prepare(planned("B", need=self.need), below=1))
            await asyncio.sleep(0)
            await host.close()
            assert "something else" in await preparing
            assert "something else" in await host.prepare(planned("C", need=self.need), below=0)
            with pytest.raises(EngineDiedError):
                await busy
            assert len(tier.started) == 1

        play(work, **self.enough)


class TestEnd:
    def test_closing_ends_what_lives_what_sleeps_and_what_is_beside(
        self, tier: Tier, book: CanaryBook, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            for expert in "AB":
                await host.load(apart(expert))
            await host.prepare(apart("C", need=Need(host_bytes=1)), below=32)
            await until(lambda: book.get("C"))
            assert len(tier.living) == 3
            await host.close()
            assert tier.living == []
            assert all(gone(process.pid) for process in tier.started)
            assert (host.alive, host.asleep, host.report, host.deaths) == (False, [], None, [])

        play(work, max_sleeping=1, free_memory=lambda: Need(host_bytes=1))

    @pytest.mark.parametrize("how", ["beside", "loading"])
    def test_closing_ends_what_is_starting(self, how: str, tier: Tier, play: Play) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(planned("A"))
            if how == "beside":
                await host.prepare(planned("B", need=Need(host_bytes=1), load_s=TIMEOUT_S), below=32)
            else:
                loading = asyncio.create_task(host.load(planned("B", load_s=0.3)))
            await until(lambda: len(tier.started) == 2)
            await host.close()
            if how == "loading":
                with pytest.raises(LoadError, match="the slot is ending"):
                    await loading
            await tier.started[1].ended

        play(work, free_memory=lambda: Need(host_bytes=1))

    def test_a_load_that_is_given_up_leaves_no_process_and_does_not_trouble_the_next_ones(
        self, tier: Tier, play: Play
    ) -> None:
        async def work(host: EngineHost) -> None:
            for number in range(1, 4):
                loading = asyncio.create_task(host.load(planned("A", load_s=TIMEOUT_S)))
                await until(lambda count=number: len(tier.started) == count)
                await asyncio.sleep(0.01)  # its connection is open by now, or not yet: both must do
                loading.cancel()
                await asyncio.wait([loading])
                assert tier.living == []
            await host.load(planned("B"))
            assert await answers(host, "B")

        play(work)
