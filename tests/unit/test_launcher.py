"""Spawned engine processes in the hands of an engine host: real processes, with engines that have no model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from actors import engine_link
from actors.engine_host import EngineDiedError, EngineHost, EnginePlan, HostSettings, LoadError
from actors.launcher import EngineProcess, ForkLauncher, LaunchError, SpawnLauncher
from actors.protocol import LoadEngine
from symoe_ray.core import Completion, Message, Request, Sampling
from symoe_ray.testing import CRASH, fake_text

TIMEOUT_S = 60.0


def planned(expert: str = "A", **changes: Any) -> EnginePlan:
    """A fake engine of an expert; what is not of `EnginePlan` is the fake engine's own."""
    given = {name: changes.pop(name) for name in ("shape", "canary", "need") if name in changes}
    frame = LoadEngine(args={"max_model_len": 50, "model": expert}, fake={"expert": expert} | changes)
    return EnginePlan(key=expert, frame=frame, **given)


PLAIN = planned()
SLOW = planned(tokens_per_s=0.01)


class Spawner(SpawnLauncher):
    """Remembers what it has started, and which of that was still there when the next one was."""

    def __init__(self, module: str, log: Path) -> None:
        super().__init__(module, {}, str(log))
        self.started: list[EngineProcess] = []

    async def launch(self) -> EngineProcess:
        assert all(process.ended.done() for process in self.started), "two engines at once"
        self.started.append(await super().launch())
        return self.started[-1]


class Refusing(Spawner):
    """A way to start engines that does not work."""

    tier = "fork"

    async def launch(self) -> EngineProcess:
        raise LaunchError("engines cannot be forked here")


@pytest.fixture
def spawner(tmp_path: Path) -> Spawner:
    return Spawner("actors.fake_engine", tmp_path / "slot.log")


def play(work: Callable[[EngineHost], Awaitable[Any]], *tiers: SpawnLauncher, **limits: float) -> None:
    """Do something with a host, which is closed afterwards."""

    async def whole() -> None:
        host = EngineHost(tiers, HostSettings(**({"load_timeout_s": TIMEOUT_S, "stall_timeout_s": TIMEOUT_S} | limits)))
        try:
            await work(host)
        finally:
            await host.close()

    asyncio.run(asyncio.wait_for(whole(), 2 * TIMEOUT_S))


def request(content: str = "Why?", *, n: int = 1, first_sample: int = 0, temperature: float = 0.7) -> Request:
    return Request(
        id="r", question_id="q", expert="A", messages=(Message(role="user", content=content),),
        sampling=Sampling(temperature=temperature), seed=7, n=n, first_sample=first_sample,
    )  # fmt: skip


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestGenerate:
    def test_a_loaded_engine_gives_as_many_samples_as_asked_for(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            assert not host.alive
            report = await host.load(PLAIN)
            assert (report.tier, report.max_num_seqs, report.max_model_len, report.note) == ("spawn", 32, 50, "")
            assert [process.pid for process in spawner.started] == [report.pid]
            assert host.alive
            texts = [fake_text("A", "Why?", 7 + i) for i in range(3)]
            assert await host.generate(request(n=3)) == [
                Completion(
                    request_id="r", index=i, text=text, finish_reason="stop", prompt_tokens=1,
                    completion_tokens=len(text.split()),
                )
                for i, text in enumerate(texts)
            ]  # fmt: skip

        play(work, spawner)

    def test_a_sample_made_alone_is_the_one_made_with_others(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(PLAIN)
            together = await host.generate(request(n=5))
            assert len({c.text for c in together}) > 1
            assert await host.generate(request(n=2, first_sample=2)) == together[2:4]

        play(work, spawner)

    def test_many_requests_at_once_get_their_own_answers(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(PLAIN)
            prompts = [f"What is {i}?" for i in range(100)]
            answers = await asyncio.gather(*(host.generate(request(p)) for p in prompts))
            assert [c.text for (c,) in answers] == [fake_text("A", p, 7) for p in prompts]

        play(work, spawner)

    def test_a_prompt_that_is_too_long_fails_alone(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(PLAIN)
            long, good = await asyncio.gather(
                host.generate(request("why " * 50, n=2, first_sample=3)), host.generate(request("why " * 49))
            )
            assert [(c.index, c.failure.kind if c.failure else "") for c in long] == [
                (3, "prompt_too_long"),
                (4, "prompt_too_long"),
            ]
            assert good[0].failure is None

        play(work, spawner)

    def test_without_an_engine_there_is_nothing_to_generate_with(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            with pytest.raises(EngineDiedError, match="no engine is loaded"):
                await host.generate(request())

        play(work, spawner)


class TestDeath:
    @pytest.mark.parametrize("how", ["killed", "poisoned"])
    def test_a_death_ends_what_is_under_way_and_the_engine_can_be_loaded_again(
        self, how: str, spawner: Spawner
    ) -> None:
        async def work(host: EngineHost) -> None:
            first = await host.load(SLOW)
            under_way = [asyncio.create_task(host.generate(request(f"{i}?"))) for i in range(3)]
            await asyncio.sleep(0)
            if how == "killed":
                os.kill(first.pid, signal.SIGKILL)
            else:
                under_way.append(asyncio.create_task(host.generate(request(f"Why {CRASH}?"))))
            ended = await asyncio.gather(*under_way, return_exceptions=True)
            assert {(type(e), str(e)) for e in ended} == {
                (EngineDiedError, "the engine process was killed by signal 9")
            }
            assert (host.alive, host.deaths) == (False, ["the engine process was killed by signal 9"])
            with pytest.raises(EngineDiedError, match="no engine is loaded"):
                await host.generate(request())
            again = await host.load(PLAIN)
            assert again.pid != first.pid
            ((answer,), alive) = (await host.generate(request()), host.alive)
            assert (answer.text, alive) == (fake_text("A", "Why?", 7), True)

        play(work, spawner)

    def test_a_connection_that_has_just_closed_is_a_death(self, spawner: Spawner) -> None:
        """On uvloop, which Ray's actors run on, a write to it raises."""
        uvloop = pytest.importorskip("uvloop")

        async def work() -> None:
            host = EngineHost([spawner], HostSettings(load_timeout_s=TIMEOUT_S, stall_timeout_s=TIMEOUT_S))
            try:
                await host.load(PLAIN)
                host._live.link._writer.transport.abort()  # type: ignore[union-attr]
                with pytest.raises(EngineDiedError, match="it exited with status 0"):
                    await host.generate(request())
            finally:
                await host.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(work(), 2 * TIMEOUT_S))

    def test_an_engine_that_hangs_at_work_is_killed(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            report = await host.load(SLOW)
            os.kill(report.pid, signal.SIGSTOP)
            with pytest.raises(EngineDiedError, match="no sign of life"):
                await host.generate(request())
            assert await spawner.started[0].ended == -signal.SIGKILL

        play(work, spawner, stall_timeout_s=0.2)

    def test_a_process_that_closes_its_connection_and_stays_is_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "lingering_engine.py").write_text(
            "import os, signal, socket, sys\n"
            "from actors.protocol import Ready, receive, send\n"
            "with socket.socket(fileno=int(sys.argv[1])) as sock:\n"
            "    receive(sock)\n"
            "    send(sock, Ready(pid=os.getpid(), seconds=0.0, max_num_seqs=1, max_model_len=9, modules=[]))\n"
            "    receive(sock)\n"
            "signal.pause()\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(engine_link, "END_TIMEOUT_S", 0.3)
        lingering = Spawner("lingering_engine", tmp_path / "slot.log")

        async def work(host: EngineHost) -> None:
            await host.load(PLAIN)
            with pytest.raises(EngineDiedError, match="it closed its connection"):
                await asyncio.wait_for(host.generate(request()), TIMEOUT_S / 2)
            assert await lingering.started[0].ended == -signal.SIGKILL

        play(work, lingering)

    def test_an_idle_engine_is_not_taken_for_one_that_hangs(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            await host.load(PLAIN)
            await asyncio.sleep(0.5)
            assert host.alive
            assert len(await host.generate(request())) == 1

        play(work, spawner, stall_timeout_s=0.1)

    def test_unloading_ends_the_process_and_what_is_under_way(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            report = await host.load(SLOW)
            under_way = asyncio.create_task(host.generate(request()))
            await asyncio.sleep(0)
            await host.unload()
            with pytest.raises(EngineDiedError, match="the engine was unloaded"):
                await under_way
            assert gone(report.pid)
            assert (host.alive, host.report, host.deaths) == (False, None, [])

        play(work, spawner)


class TestLoad:
    def test_an_engine_ends_before_the_next_one_starts(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            for expert in "ABA":
                await host.load(planned(expert))
                ((answer,),) = (await host.generate(request()),)
                assert answer.text == fake_text(expert, "Why?", 7)
            assert len(spawner.started) == 3

        play(work, spawner)

    def test_after_close_nothing_can_be_loaded_and_nothing_is_left(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            report = await host.load(PLAIN)
            await host.close()
            assert gone(report.pid)
            with pytest.raises(LoadError, match="the slot is ending"):
                await host.load(PLAIN)
            assert len(spawner.started) == 1

        play(work, spawner)

    @pytest.mark.parametrize(
        ("module", "status", "logged"),
        [
            ("actors.no_such_engine", 1, "No module named"),
            ("actors.fake_engine", 1, "could not convert string to float"),
        ],
        ids=["no module", "an error at the start"],
    )
    def test_a_process_that_ends_at_once_is_a_load_error_at_once(
        self, module: str, status: int, logged: str, tmp_path: Path
    ) -> None:
        log = tmp_path / "slot.log"
        wrong = planned(tokens_per_s="fast")

        async def work(host: EngineHost) -> None:
            started = time.monotonic()
            with pytest.raises(LoadError, match=f"^spawn: it exited with status {status}$"):
                await host.load(wrong)
            assert time.monotonic() - started < TIMEOUT_S / 2
            assert not host.alive

        play(work, Spawner(module, log))
        assert logged in log.read_text()

    def test_the_next_tier_takes_over_and_the_report_says_why(self, spawner: Spawner, tmp_path: Path) -> None:
        refusing, broken = Refusing("", tmp_path / "log"), Spawner("actors.no_such_engine", tmp_path / "log")

        async def work(host: EngineHost) -> None:
            report = await host.load(PLAIN)
            assert report.note == "fork: engines cannot be forked here; spawn: it exited with status 1"
            assert report.pid == spawner.started[0].pid
            assert len(await host.generate(request())) == 1

        play(work, refusing, broken, spawner)

    def test_an_engine_that_does_not_get_ready_is_killed(self, spawner: Spawner) -> None:
        async def work(host: EngineHost) -> None:
            with pytest.raises(LoadError, match=r"^spawn: not ready after 1 s$"):
                await host.load(planned(load_s=TIMEOUT_S))
            assert await spawner.started[0].ended == -signal.SIGKILL

        play(work, spawner, load_timeout_s=1.0)


class TestZygote:
    """Forks of a zygote that has imported no vLLM and whose engines are fakes."""

    ZYGOTE = (
        "import sys, time\n"
        "from actors import engine, fake_engine, zygote\n"
        "zygote.preload = lambda: ''\n"
        "zygote.learn = lambda modules: 'a module has started a thread' if 'spoils' in modules else ''\n"
        "engine.serve = lambda sock: fake_engine._serve(sock, time.monotonic())\n"
        "zygote.main()\n"
    )

    def test_one_that_learning_has_spoilt_is_replaced_by_one_that_learns_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "fake_zygote.py").write_text(self.ZYGOTE)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        launcher = ForkLauncher({}, str(tmp_path / "zygote.log"), module="fake_zygote")

        async def work() -> None:
            host = EngineHost([launcher], HostSettings(load_timeout_s=TIMEOUT_S, stall_timeout_s=TIMEOUT_S))
            try:
                zygotes = []
                for teach in ("harmless", "spoils", "spoils"):
                    report = await host.load(planned())
                    assert (report.tier, report.note) == ("fork", "")
                    assert len(await host.generate(request())) == 1
                    zygotes.append(parent_of(report.pid))
                    await launcher.learn([teach])
                    await host.unload()
                assert zygotes[0] == zygotes[1] != zygotes[2]
                assert parent_of((await host.load(planned())).pid) == zygotes[2]
            finally:
                await host.close()

        asyncio.run(asyncio.wait_for(work(), 2 * TIMEOUT_S))

    @pytest.fixture
    def launcher(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ForkLauncher:
        (tmp_path / "fake_zygote.py").write_text(self.ZYGOTE)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return ForkLauncher({}, str(tmp_path / "zygote.log"), module="fake_zygote")

    def test_engines_live_on_when_their_zygote_is_replaced_and_it_ends_with_the_last(
        self, launcher: ForkLauncher
    ) -> None:
        async def work() -> None:
            before = [await launcher.launch(), await launcher.launch()]
            zygote = parent_of(before[0].pid)
            await launcher.learn(["spoils"])
            after = await launcher.launch()
            assert parent_of(after.pid) != zygote == parent_of(before[1].pid)
            for process in before:
                assert not gone(zygote)
                assert not process.ended.done()
                process.kill()
                assert await process.ended == -signal.SIGKILL
            while not gone(zygote):
                await asyncio.sleep(0.01)
            assert not after.ended.done()
            await launcher.close()
            assert await after.ended == -signal.SIGKILL

        asyncio.run(asyncio.wait_for(work(), 2 * TIMEOUT_S))

    def test_a_launch_that_is_given_up_harms_no_other_engine(self, launcher: ForkLauncher) -> None:
        async def work() -> None:
            first = await launcher.launch()
            zygote = parent_of(first.pid)
            os.kill(zygote, signal.SIGSTOP)
            launching = asyncio.create_task(launcher.launch())
            await asyncio.sleep(0.05)
            launching.cancel()
            await asyncio.wait([launching])
            os.kill(zygote, signal.SIGCONT)
            third = await launcher.launch()
            assert parent_of(third.pid) == parent_of(first.pid) == zygote
            assert not first.ended.done()
            while children_of(zygote) != {first.pid, third.pid}:
                await asyncio.sleep(0.01)
            await launcher.close()

        asyncio.run(asyncio.wait_for(work(), 2 * TIMEOUT_S))


class TestSpawn:
    def test_what_an_engine_has_started_ends_with_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "parent_engine.py").write_text(
            "import subprocess, sys, socket\n"
            "worker = subprocess.Popen(['sleep', '600'])\n"
            "with socket.socket(fileno=int(sys.argv[1])) as sock:\n"
            "    sock.sendall(str(worker.pid).encode())\n"
            "    sock.recv(1)\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        spawner = SpawnLauncher("parent_engine", {}, str(tmp_path / "log"))

        async def worker_of(process: EngineProcess) -> int:
            process.sock.setblocking(False)
            return int(await asyncio.get_running_loop().sock_recv(process.sock, 100))

        async def work() -> None:
            killed, ends = await spawner.launch(), await spawner.launch()
            workers = [await worker_of(process) for process in (killed, ends)]
            killed.kill()
            ends.sock.close()
            assert (await killed.ended, await ends.ended) == (-signal.SIGKILL, 0)
            while not all(map(ended, workers)):
                await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(work(), TIMEOUT_S))

    @pytest.mark.parametrize("loading", [True, False], ids=["loads", "has only just been started"])
    def test_an_engine_that_is_not_ready_ends_with_its_slot(self, loading: bool, tmp_path: Path) -> None:
        loads = tmp_path / "loads"
        (tmp_path / "slow_engine.py").write_text(
            "import time\n"
            "from pathlib import Path\n"
            "from actors import engine\n"
            f"engine._Engine = lambda load: Path({str(loads)!r}).touch() or time.sleep(600)\n"
            "engine.main()\n"
        )
        slot = (
            "import asyncio\n"
            "from actors.launcher import SpawnLauncher\n"
            "from actors.protocol import LoadEngine, encode\n"
            "async def main():\n"
            f"    process = await SpawnLauncher('slow_engine', {{}}, {str(tmp_path / 'log')!r}).launch()\n"
            "    process.sock.sendall(encode(LoadEngine(args={})))\n"
            "    print(process.pid, flush=True)\n"
            "    await asyncio.sleep(600)\n"
            "asyncio.run(main())\n"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
        parent = subprocess.Popen([sys.executable, "-c", slot], env=environment, stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
        deadline = time.monotonic() + TIMEOUT_S
        while loading and not loads.exists():
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        parent.kill()
        parent.wait()
        while not ended(engine):
            assert time.monotonic() < deadline, "the engine is still there"
            time.sleep(0.01)


def status_of(pid: int | str) -> list[str]:
    """State, parent and more of a process; nothing of one that is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def ended(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its status yet."""
    return status_of(pid)[:1] in ([], ["Z"])


def parent_of(pid: int) -> int:
    return int(status_of(pid)[1])


def children_of(pid: int) -> set[int]:
    return {int(p.name) for p in Path("/proc").glob("[0-9]*") if status_of(p.name)[1:2] == [str(pid)]}
