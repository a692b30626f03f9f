"""Recruitments as a table of `RECRUITS` rows, built column by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from symoe_ray.routing import Recruits
from symoe_ray.routing_rules import FALLBACKS
from symoe_ray.tables import RECRUITS, TEXTS


def recruits_table(made: Recruits, rows: range, shards: Sequence[int], random_seats: np.ndarray) -> pa.Table:
    """The `RECRUITS` rows of some consecutive questions; `shards` and `random_seats` (numbers) are of those rows."""
    chosen, names = slice(rows.start, rows.stop), pa.array(made.experts, pa.string())
    asked = made.questions[chosen]
    pairs = [[made.mapping[skill] for skill in skills if skill in made.mapping] for _, skills in asked]
    order = np.argsort(-made.weights[chosen], axis=1, kind="stable")  # equal weights: in name order
    weights = np.take_along_axis(made.weights[chosen], order, axis=1)
    ends = np.concatenate([[0], np.cumsum((weights > 0).sum(axis=1))])
    return pa.Table.from_arrays(
        [
            pa.array([question_id for question_id, _ in asked], pa.string()),
            pa.array(shards, pa.int32()),
            pa.array([skills for _, skills in asked], TEXTS),
            pa.array([[to for to, _ in own] for own in pairs], TEXTS),
            pa.array([[cosine for _, cosine in own] for own in pairs], pa.list_(pa.float64())),
            _lists(names.take(pa.array(order[weights > 0])), ends),
            _lists(pa.array(weights[weights > 0]), ends),
            _seats(names, made.seats[chosen]),
            pa.array(FALLBACKS, pa.string()).take(pa.array(made.fallback[chosen])),
            _seats(names, random_seats),
        ],
        schema=RECRUITS,
    )


def _seats(names: pa.Array, seats: np.ndarray) -> pa.Array:
    ends = np.arange(len(seats) + 1) * (seats.shape[1] if len(seats) else 0)
    return _lists(names.take(pa.array(seats.ravel())), ends)


def _lists(values: pa.Array, ends: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)
