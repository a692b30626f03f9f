"""Intervals and tests for accuracies: what the difference between two methods on one set of questions can bear.

The question is the unit that is drawn at random; several seeds of one question are repeated looks at it, not new
questions. All is deterministic: the bootstrap has a fixed seed and does not depend on the order of its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import binom, binomtest

Interval = tuple[float, float]

_RESAMPLES = 10_000
_BOOTSTRAP_SEED = 20_250_305


def wilson(correct: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion, (low, high) within [0, 1]; (0, 1) where `n` is 0.

    Wilson (1927), without continuity correction: method 3 of Newcombe, Statistics in Medicine 17 (1998). `correct` and
    `n` may be fractional, for an effective sample size.
    """
    if n <= 0:
        return 0.0, 1.0
    z = _quantile(level)
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if p <= 0 else max(0.0, centre - half)), (1.0 if p >= 1 else min(1.0, centre + half))


def clustered_interval(outcomes: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean accuracy with its interval clustered by question: (mean, low, high).

    `outcomes` is questions x seeds with numbers in [0, 1], NaN where a question was not answered with a seed; the mean
    gives every question the same weight. The interval is Wilson's at the effective sample size p(1-p) / SE^2, SE being
    the standard error of the question means (Kish's design effect put into a score interval, as in Franco et al., J.
    Survey Stat. Methodol. 7 (2019)). The effective size lies between the questions (seeds that always agree) and all
    answers (seeds that tell nothing of each other); with one seed and binary outcomes it is the number of questions, so
    this is then plain Wilson. Unlike a normal or bootstrap interval it keeps its width where every answer is right. No
    outcomes: (0, 0, 1).
    """
    means = question_means(outcomes)
    if not means.size:
        return 0.0, 0.0, 1.0
    mean = float(means.mean())
    answers = float(np.count_nonzero(~np.isnan(np.asarray(outcomes, dtype=float))))
    squared_error = float(means.var()) / means.size
    spread = mean * (1 - mean)
    size = float(means.size) if spread <= 0 else answers
    if spread > 0 and squared_error > 0:
        size = min(spread / squared_error, answers)
    low, high = wilson(mean * size, size, level)
    return mean, low, high


def clustered_error(outcomes: ArrayLike) -> float | None:
    """Standard error of the mean of questions x seeds, clustered by question; None under two questions.

    The deviation between the question means (of a sample), so that seeds of one question are not taken for independent
    questions. With the differences of two methods in place of outcomes it is the error of the paired difference
    (Miller, arXiv 2411.00640, sections 2 and 4).
    """
    means = question_means(outcomes)
    return float(means.std(ddof=1)) / math.sqrt(means.size) if means.size > 1 else None


def question_means(outcomes: ArrayLike) -> np.ndarray:
    """The mean over seeds of each question that has any, ascending: sums then do not depend on the questions' order."""
    matrix = np.asarray(outcomes, dtype=float)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    asked = ~np.isnan(matrix)
    counts = asked.sum(axis=1)
    totals = np.where(asked, matrix, 0.0).sum(axis=1)
    return np.sort(totals[counts > 0] / counts[counts > 0])


def paired_difference(differences: ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """Mean of the questions' differences between two methods, and its percentile bootstrap interval over questions.

    `differences` holds one number a question: the difference of its accuracies, each a mean over seeds. For the
    interval a question won and a question lost are added to them, as Bonett and Price (J. Educ. Behav. Stat. 37 (2012))
    do for their interval: few questions that all fall to one side say less than a bootstrap of them alone makes of it,
    and four of four would leave no width at all. The values are few and distinct, so a resample of n questions is one
    multinomial draw of how often each value occurs: the same distribution as drawing questions, at a cost that does not
    grow with n. No question: ValueError.
    """
    found = np.asarray(differences, dtype=float)
    if not found.size:
        raise ValueError("paired_difference: no question is in both methods")
    distinct, occurrences = np.unique(np.append(found, (1.0, -1.0)).round(12), return_counts=True)
    size = found.size + 2
    draws = np.random.default_rng(_BOOTSTRAP_SEED).multinomial(size, occurrences / size, size=_RESAMPLES)
    tail = (1 - level) / 2
    low, high = np.quantile(draws @ distinct / size, [tail, 1 - tail])
    return float(np.sort(found).mean()), (float(low), float(high))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p of McNemar's exact test: `b` questions only one method got right, `c` only the other.

    1 where the methods never differ.
    """
    return float(binomtest(min(b, c), b + c, 0.5).pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several, in their order (Holm, Scandinavian J. Statistics 6 (1979)).

    Comparing them with a level bounds the chance of any false finding among all of them by that level.
    """
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given)
    steps = np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(p) for p in adjusted]


def smallest_detectable(n: int, discordant: float, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference in accuracy that McNemar's test on `n` questions finds with probability `power`.

    `discordant` is the share of questions on which exactly one of the two methods is right; a difference d needs at
    least d of them, so a smaller share is raised to d. Solves for the power of the exact test itself, which the
    usual approximation by normal distributions (Connor, Biometrics 43 (1987)) overstates for small n. Infinite where
    even a difference of 1 would go unnoticed (n under 6 at the default level).
    """

    def excess(d: float) -> float:
        return mcnemar_power(n, max(discordant, d), d, level) - power

    return float(brentq(excess, 1e-9, 1.0, xtol=1e-6)) if excess(1.0) >= 0 else math.inf


def mcnemar_power(n: int, discordant: float, difference: float, level: float = 0.95) -> float:
    """The probability that McNemar's exact test on `n` questions finds a true difference, where a share is discordant.

    How many questions are discordant is binomial, and so is how many of these fall to the better method (Duffy,
    Biometrics 40 (1984)); numbers of them beyond eight standard deviations are left out.
    """
    spread = 8 * math.sqrt(n * discordant * (1 - discordant)) + 1
    mean = n * discordant
    counts = np.arange(max(0, math.floor(mean - spread)), min(n, math.ceil(mean + spread)) + 1)
    critical = binom.ppf((1 - level) / 2, counts, 0.5)  # the smaller side is significant up to here, or up to one less
    critical -= binom.cdf(critical, counts, 0.5) > (1 - level) / 2
    won = (discordant + difference) / (2 * discordant)
    found = binom.cdf(critical, counts, won) + binom.cdf(critical, counts, 1 - won)
    return float(binom.pmf(counts, n, discordant) @ found)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
