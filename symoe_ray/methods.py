"""The methods that a run can be compared by, each on every question or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from symoe_ray.outcomes import MethodOutcomes, first_right, outcomes, vote
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
    """Every expert's first answer, the best of them in hindsight, and what a perfect judge of them would choose."""
    first = data.drafts[:, :, 0]
    complete = [column for column in range(len(data.experts)) if (first[:, column] >= 0).all()]
    for column in complete:
        yield from make.single(f"expert:{data.experts[column]}", first[:, column])
    if len(complete) == len(data.experts):
        right = data.texts.correct[first].sum(axis=0)
        hindsight = max(complete, key=lambda column: (right[column], data.experts[column]))
        yield from make.single("best_single_test", first[:, hindsight])
        yield from make.best_of("oracle_pool", first)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes a method's outcomes, or none where a text that it needs is not there."""

    data: SeedData

    def single(self, method: str, rows: np.ndarray) -> Iterator[MethodOutcomes]:
        """One text is the answer."""
        yield from self._made(method, rows, rows[:, None])

    def final(self, method: str, drafts: np.ndarray, *, annotated: bool = False) -> Iterator[MethodOutcomes]:
        """An aggregator's text is the answer, made from the drafts."""
        rows = self.data.finals.get(method)
        if rows is not None:
            yield from self._made(method, rows, np.concatenate([drafts, rows[:, None]], axis=1), annotated=annotated)

    def vote(
        self, method: str, seats: np.ndarray, needed: np.ndarray, *, wanted: int = 0, annotated: bool = False
    ) -> Iterator[MethodOutcomes]:
        """The answer that most seats give, of at least `wanted` seats; no vote at all is an unparsed answer."""
        if seats.shape[1] >= wanted:
            chosen = vote(self.data.texts, seats)
            for made in self._made(method, chosen, needed, annotated=annotated):
                yield replace(made, unparsed=made.answer == "")

    def best_of(self, method: str, seats: np.ndarray, *, annotated: bool = False) -> Iterator[MethodOutcomes]:
        """Right if any text is."""
        yield from self._made(method, first_right(self.data.texts, seats), seats, annotated=annotated)

    def _made(
        self, method: str, chosen: np.ndarray, needed: np.ndarray, *, annotated: bool = False
    ) -> Iterator[MethodOutcomes]:
        if (needed >= 0).all() and needed.size:
            extra = self.data.annotation if annotated else None
            yield outcomes(method, self.data.seed, self.data.texts, chosen, needed, extra)
