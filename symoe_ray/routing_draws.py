"""Drawing seats: by the hash of question and seat, or by one generator in file order as the released code does.

The hash sampler gives seat j of a question the number u = uniform(seed, question id, j) and takes the first expert, in
name order, whose cumulative weight exceeds u.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring

import numpy as np

from symoe_ray.core import Profile


def seat_numbers(seed: int, question_ids: Sequence[str], seats: int, *key: str) -> np.ndarray:
    """`fingerprints.uniform(seed, question id, seat, *key)` of every question and seat, as questions x seats."""
    tails = [f",{seat}{''.join(',' + encode_basestring(k) for k in key)}]".encode() for seat in range(seats)]
    digests = bytearray()
    for question_id in question_ids:
        head = hashlib.blake2b(f"[{seed},{encode_basestring(question_id)}".encode(), digest_size=8)
        for tail in tails:
            one = head.copy()
            one.update(tail)
            digests += one.digest()
    numbers = np.frombuffer(bytes(digests), dtype=">u8").reshape(len(question_ids), seats)
    uniform: np.ndarray = np.right_shift(numbers, np.uint64(11)) / float(1 << 53)
    return uniform


def draw(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """For each row of weights (not all zero) the first index whose cumulative weight exceeds u times the sum."""
    cumulative = np.cumsum(weights, axis=1)
    chosen = (cumulative <= (u * cumulative[:, -1])[:, None]).sum(axis=1)
    last = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
    drawn: np.ndarray = np.minimum(chosen, last)
    return drawn


class ReferenceSampler:
    """The released code's draws: one generator for all questions, in file order.

    It lists a question's experts in an order of its own, on which the draws depend: skill by skill, by that skill's
    score descending (ties in the order of the profiles); then all by their totals descending.
    """

    def __init__(self, profiles: Sequence[Profile], names: Sequence[str], seed: int) -> None:
        self._generator = random.Random(seed)
        self._profiles = profiles
        self._place = {name: place for place, name in enumerate(names)}
        self._everyone = [self._place[profile.expert] for profile in profiles]
        self._by_skill: dict[str, list[int]] = {}
        self._listed: dict[tuple[str, ...], list[int]] = {}

    def seats(
        self, mapped: Iterable[tuple[str, ...]], scores: np.ndarray, weights: np.ndarray, k: int, *, uniform: bool
    ) -> np.ndarray:
        """k experts (numbers in name order) for each question; `uniform`: with equal chances where it has no skills."""
        rows = []
        for skills, totals, chances in zip(mapped, scores, weights, strict=True):
            listed = self._order(skills, totals) if skills else []
            if listed or not uniform:
                order = listed or self._everyone
                rows.append(self._generator.choices(order, chances[order].tolist(), k=k))
            else:
                rows.append(self._generator.choices(self._everyone, k=k))
            if not listed:  # the released script draws an aggregator here, which nothing uses
                self._generator.choices(self._everyone, k=1)
        return np.array(rows, dtype=np.int16).reshape(len(rows), k)

    def _order(self, skills: tuple[str, ...], totals: np.ndarray) -> list[int]:
        if skills not in self._listed:
            met = dict.fromkeys(place for skill in skills for place in self._of_skill(skill))
            self._listed[skills] = sorted(met, key=lambda place: -totals[place])
        return self._listed[skills]

    def _of_skill(self, skill: str) -> list[int]:
        if skill not in self._by_skill:
            scored = [(p.scores[skill], self._place[p.expert]) for p in self._profiles if skill in p.scores]
            self._by_skill[skill] = [place for _, place in sorted(scored, key=lambda pair: -pair[0])]
        return self._by_skill[skill]
