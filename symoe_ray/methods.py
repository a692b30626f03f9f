"""The methods that a run can be compared by, each on every question or not at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from symoe_ray.outcomes import Choice, MethodOutcomes, first_right, outcomes, vote
from symoe_ray.seed_data import SeedData


def methods_of(data: SeedData, *, ranking: Sequence[str], k: int, votes: int) -> Iterator[MethodOutcomes]:
    """The outcomes of all methods whose texts are there for every question.

    `ranking` holds the experts from the highest validation accuracy on: the first is the best single expert, the first
    k are the task's top k. Self-consistency votes over `votes` samples of the best expert, at equal calls, and over k.
    """
    make = _Maker(data)
    columns = [data.experts.index(name) for name in ranking]
    best, top = data.drafts[:, columns[0]], data.drafts[:, columns[:k], 0]
    layers = [layer[:, columns[:k]] for layer in data.layers]
    yield from make.final("symoe", data.seats, annotated=True)
    yield from make.vote("majority", data.seats, data.seats, annotated=True)
    yield from make.best_of("oracle", data.seats, annotated=True)
    yield from make.final("random_experts", data.random_seats)
    yield from make.single("best_single", best[:, 0])
    yield from make.vote("self_consistency", best[:, :votes], best[:, :votes], wanted=votes)
    if votes != k:
        yield from make.vote(f"self_consistency@{k}", best[:, :k], best[:, :k], wanted=k)
    yield from make.final("top_k", top)
    yield from make.final("moa", np.concatenate([top, *layers], axis=1))
    yield from make.final("self_moa", best[:, :k])
    if layers:
        yield from make.vote("debate", layers[-1], np.concatenate([top, *layers], axis=1))
    yield from _of_experts(make, data)


def _of_experts(make: _Maker, data: SeedData) -> Iterator[MethodOutcomes]:
    """Every expert's first answer, and what a perfect judge of them and of the recruited would choose."""
    first = data.drafts[:, :, 0]
    complete = [column for column in range(len(data.experts)) if (first[:, column] >= 0).all()]
    for column in complete:
        yield from make.single(f"expert:{data.experts[column]}", first[:, column])
    if len(complete) == len(data.experts):
        seats = data.seats if (data.seats >= 0).all() else first[:, :0]
        yield from make.best_of("oracle_pool", np.concatenate([first, seats], axis=1), needed=first)


def best_in_hindsight(methods: Sequence[MethodOutcomes]) -> list[MethodOutcomes]:
    """The outcomes of all seeds of the expert that turned out best over them, as `best_single_test`; ties by name.

    None where some expert has not answered every question.
    """
    seeds: dict[str, list[MethodOutcomes]] = defaultdict(list)
    for made in methods:
        seeds[made.method].append(made)
    experts = {name: own for name, own in sorted(seeds.items()) if name.startswith("expert:")}
    if not experts or {len(own) for own in experts.values()} != {len(seeds["oracle_pool"])}:
        return []
    best = max(experts.values(), key=lambda own: sum(int(made.correct.sum()) for made in own))
    return [replace(made, method="best_single_test") for made in best]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes a method's outcomes, or none where a text that it needs is not there."""

    data: SeedData

    def single(self, method: str, rows: np.ndarray) -> Iterator[MethodOutcomes]:
        """One text is the answer."""
        yield from self._made(method, lambda _: rows, rows[:, None])

    def final(self, method: str, drafts: np.ndarray, *, annotated: bool = False) -> Iterator[MethodOutcomes]:
        """An aggregator's text is the answer, made from the drafts."""
        rows = self.data.finals.get(method)
        if rows is not None:
            needed = np.concatenate([drafts, rows[:, None]], axis=1)
            yield from self._made(method, lambda _: rows, needed, annotated=annotated)

    def vote(
        self, method: str, seats: np.ndarray, needed: np.ndarray, *, wanted: int = 0, annotated: bool = False
    ) -> Iterator[MethodOutcomes]:
        """The answer that most seats give, of at least `wanted` seats; no vote at all is an unparsed answer."""
        if seats.shape[1] >= wanted:
            for made in self._made(method, partial(vote, seats=seats), needed, annotated=annotated):
                yield replace(made, unparsed=made.answer == "")

    def best_of(
        self, method: str, seats: np.ndarray, *, needed: np.ndarray | None = None, annotated: bool = False
    ) -> Iterator[MethodOutcomes]:
        """Right if any text is."""
        choice = partial(first_right, seats=seats)
        yield from self._made(method, choice, seats if needed is None else needed, annotated=annotated)

    def _made(
        self, method: str, choice: Choice, needed: np.ndarray, *, annotated: bool = False
    ) -> Iterator[MethodOutcomes]:
        if (needed >= 0).all() and needed.size:
            extra = self.data.annotation if annotated else None
            yield outcomes(method, self.data.seed, self.data.texts, choice, needed, extra)
