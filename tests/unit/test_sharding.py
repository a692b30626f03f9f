"""What a stage, or several together, have a pool generate: which chunks, under which name, and how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from pipelines import sharding
from pipelines.run import Run
from pipelines.sharding import Work, generate
from symoe_ray.ledger import Chunk
from symoe_ray.ports import Progress, StageSummary
from tests.unit.conftest import MakeRun

Missing = dict[str, list[Chunk]]


@dataclass
class RecordingPool:
    """Generates nothing; `asked` are its calls."""

    asked: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    error: Exception | None = None

    def generate(
        self,
        stage: str,
        chunks: Sequence[Chunk],
        on_progress: Callable[[Progress], None] | None = None,
        then: Sequence[str] = (),
    ) -> StageSummary:
        """Note the call."""
        self.asked.append((stage, [c.id for c in chunks], list(then)))
        if self.error is not None:
            raise self.error
        rows = sum(c.rows for c in chunks)
        return StageSummary(rows=rows, failed=0, prompt_tokens=0, completion_tokens=0, seconds=0.0)


def chunk(stage: str, expert: str) -> Chunk:
    return Chunk(
        id=f"{stage}-{expert}", stage=stage, expert=expert, path=f"requests/{stage}/{expert}", start=0, stop=3, rows=3,
        tokens=30,
    )  # fmt: skip


def work(stage: str, inputs: str = "x", then: tuple[str, ...] = ()) -> Work:
    return Work(stage=stage, splits=("test",), build=lambda *_: (), inputs=inputs, then=then)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Missing:
    """What stages still want, for a test to fill."""
    found: Missing = {}
    monkeypatch.setattr(sharding, "_chunks", lambda _, asked: found.get(asked.stage, []))
    return found


def with_pool(run: Run) -> tuple[Run, RecordingPool]:
    pool = RecordingPool()
    run.pool = lambda: pool
    return run, pool


def test_stages_that_go_together_are_one_call_of_the_pool_and_none_later(make_run: MakeRun, missing: Missing) -> None:
    run, pool = with_pool(make_run())
    missing |= {"annotate": [chunk("annotate", "A")], "profile": [chunk("profile", "A"), chunk("profile", "B")]}
    generate(run, work("annotate"), work("profile", then=("B",)))
    assert pool.asked == [("annotate+profile", ["annotate-A", "profile-A", "profile-B"], ["B"])]
    generate(run, work("annotate"))  # as each of them does for itself afterwards
    generate(run, work("profile"))
    assert len(pool.asked) == 1
    generate(run, work("profile", "y"))
    assert pool.asked[1:] == [("profile", ["profile-A", "profile-B"], [])]


def test_one_that_lacks_nothing_leaves_its_name_out(make_run: MakeRun, missing: Missing) -> None:
    run, pool = with_pool(make_run())
    missing["answer"] = [chunk("answer", "A")]
    generate(run, work("bench-aggregators"), work("answer"))
    assert [name for name, _, _ in pool.asked] == ["answer"]
    missing.clear()
    generate(run, work("aggregate"))
    assert len(pool.asked) == 1


def test_stages_that_are_cut_off_together_have_not_run(make_run: MakeRun, missing: Missing) -> None:
    """Their requests are those of other inputs by then: with the first inputs again, both must run again."""
    run, pool = with_pool(make_run())
    for stage in ("recruit", "bench-aggregators", "answer"):
        run.done(stage, "x")
    missing |= {stage: [chunk(stage, "A")] for stage in ("bench-aggregators", "answer")}
    pool.error = KeyError("cut off")
    with pytest.raises(KeyError):
        generate(run, work("bench-aggregators", "y"), work("answer", "y"))
    later = make_run()
    assert later.manifest["stages"].keys() == {"recruit"}
    assert later.is_due("answer", "x")
    assert not later.is_due("recruit", "x")
