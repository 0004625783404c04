"""Intervals and paired tests of scores, over subjects, the patients that they belong to, and seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.results import Column, Result
from metrics import METRICS

RESAMPLES = 10_000
CONFIDENCE = 0.95
EXACT = 50  # pairs up to which p is exact
DECIMALS = 9  # of a difference; what is beyond is rounding, which must not break ties


def interval(scores: np.ndarray, groups: Sequence[str], minus: np.ndarray | None = None) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `scores` (seeds, subjects), for other seeds and other groups of subjects.

    With `minus`, scores of the same subjects with other seeds, it is that of the difference of the means. Seeds and
    groups are drawn anew independently (Owen 2007), 10,000 times with a fixed seed. The percentiles of the means are
    widened for small samples, as Hesterberg (2015) does for one sample. NaN is a score that is not known; the interval
    is NaN for fewer than two groups.
    """
    rows = [scores] if minus is None else [scores, -minus]
    known = np.logical_and.reduce([np.isfinite(row).any(0) for row in rows])
    of_known = np.array(groups)[known]
    tables = [group_scores(row[:, known], of_known) for row in rows]
    count = tables[0].shape[1]
    if count < 2:
        return math.nan, math.nan
    times_group, *times_seeds = _resamples((count, *map(len, tables)), RESAMPLES)
    means = np.zeros(RESAMPLES)
    for table, times_seed in zip(tables, times_seeds, strict=True):
        of_seeds = [times @ table.T for times in map(np.float64, np.array_split(times_group, 10))]  # not all as floats
        means += (np.concatenate(of_seeds) * times_seed).sum(1) / table.size
    middle = sum(table.mean() for table in tables)
    quantiles = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = middle + _widening(tables, _shares(of_known), means.std()) * (quantiles - middle)
    return float(low), float(high)


@functools.lru_cache(maxsize=4)  # tables have many columns of as many subjects
def _resamples(sizes: tuple[int, ...], count: int) -> list[np.ndarray]:
    """How often each is drawn, `count` times, of each number of groups or seeds: (count, size), from a fixed seed."""
    random = np.random.default_rng(0)
    return [random.multinomial(n, np.full(n, 1 / n), count).astype(np.uint16) for n in sizes]


def group_scores(scores: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Scores (seeds, subjects) -> (seeds, groups), of which each counts as much as its subjects do in the mean.

    The mean over groups is that over subjects, which have a score of one seed at least. Where only some seeds have a
    subject's score, the others get its mean.
    """
    if not scores.size:
        return np.empty((len(scores), 0))
    scores = _filled(scores)
    index = _numbered(groups)
    sums = np.stack([np.bincount(index, of_seed) for of_seed in scores - scores.mean()])
    return scores.mean() + sums * sums.shape[1] / len(groups)


def _filled(scores: np.ndarray) -> np.ndarray:
    """Scores (seeds, subjects), those that are not known replaced by the subject's mean over the other seeds."""
    return np.where(np.isfinite(scores), scores, np.nanmean(scores, 0)) if scores.size else scores


def _numbered(groups: Sequence[str]) -> np.ndarray:
    """The number of each one's group, in the order in which they come."""
    numbers = {name: k for k, name in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[name] for name in groups], int)


def _shares(groups: Sequence[str]) -> np.ndarray:
    """The part of all subjects that is in each group, (groups,)."""
    return np.bincount(_numbered(groups)) / len(groups)


def _widening(tables: Sequence[np.ndarray], shares: np.ndarray, spread: float) -> float:
    """How much further from the mean a bound lies than the percentile of means with this deviation.

    It lies as far out as in Student's t, with the variance of the sum of the means of `tables` (seeds, groups) over
    groups and over seeds that are drawn at random, and the degrees of freedom of Welch and Satterthwaite.
    """
    parts = [_variance_of_groups(sum(table.mean(0) for table in tables), shares)]
    parts += [(table.mean(1).var(ddof=1) / len(table), len(table) - 1) for table in tables if len(table) > 1]
    variance = sum(part for part, _ in parts)
    if variance == 0 or spread == 0:
        return 1.0
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    tail = (1 + CONFIDENCE) / 2
    return float(np.sqrt(variance) / spread * stats.t.ppf(tail, freedom) / stats.norm.ppf(tail))


def _variance_of_groups(scores: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of `group_scores` (groups,), and its degrees of freedom.

    A group with much of all subjects pulls the mean to itself, so that its own deviation says too little. Bell and
    McCaffrey (2002) correct for it; with groups of one size, it is the variance of a mean, with groups - 1 degrees.
    """
    square = (shares**2).sum()
    expected = 1 - 2 * shares + square  # of the squared deviation of a group, for groups of variance 1
    variance = (((scores - scores.mean()) / len(scores)) ** 2 / expected).sum()
    covariance = np.eye(len(shares)) - shares - shares[:, None] + square  # of the deviations
    weights = shares**2 / expected
    return float(variance), float(square**2 / (weights @ covariance**2 @ weights))


def wilcoxon(differences: np.ndarray) -> float:
    """p of the two-sided Wilcoxon signed-rank test: exact for up to 50 pairs that differ, with ties, too.

    Pairs that are equal are left out. NaN without pairs, 1 if all are equal.
    """
    if not differences.size:
        return math.nan
    differences = np.round(differences, DECIMALS)
    differences = differences[differences != 0]
    if not differences.size:
        return 1.0
    if differences.size > EXACT:
        return float(stats.wilcoxon(differences).pvalue)
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(int)  # twice the ranks, which ties make halves
    ways = np.ones(1)  # [s]: so many choices of signs give the positive ranks the sum s
    for rank in ranks:
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    found = ranks[differences > 0].sum()
    tail = min(ways[: found + 1].sum(), ways[found:].sum())
    return float(min(1.0, 2 * tail / 2.0**differences.size))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of several p; NaN stay NaN and do not count."""
    p = np.asarray(p_values, float)
    adjusted, running, tests = np.full(p.size, math.nan), 0.0, int(np.isfinite(p).sum())
    for rank, k in enumerate(np.argsort(p)[:tests]):
        running = max(running, min(1.0, (tests - rank) * p[k]))
        adjusted[k] = running
    return adjusted.tolist()


class Comparison(NamedTuple):
    """A row against the reference row, in one column."""

    subjects: int
    """Subjects with a score in both rows."""
    pairs: int
    """Groups that these belong to: the pairs of the test."""
    difference: float
    """Mean over subjects of row minus reference."""
    interval: tuple[float, float]
    p: float
    p_holm: float


def result_interval(result: Result, column: Column) -> tuple[float, float]:
    """The interval of a row's mean in a column, within what the metric can be."""
    subjects = list(result.values.get(column, {}))
    low, high = interval(_scores(result, list(result.by_seed), column, subjects), _groups(result, subjects))
    highest = 100 if METRICS[column[1]].unit == "%" else math.inf
    return max(low, 0.0), min(high, highest)


def compare(results: Sequence[Result], reference: Result, column: Column) -> dict[str, Comparison]:
    """Paired tests of all other rows against `reference`, corrected over these rows.

    A subject counts with its mean over seeds, a group with the mean over its subjects.
    """
    others = [result for result in results if result is not reference]
    pairs = [_Pair.of(result, reference, column) for result in others]
    p = [wilcoxon(_means(pair.differences(), pair.groups)) for pair in pairs]
    compared = {}
    for result, pair, raw, corrected in zip(others, pairs, p, holm(p), strict=True):
        differences = pair.differences()
        mean = float(differences.mean()) if differences.size else math.nan
        compared[result.name] = Comparison(
            len(differences), len(set(pair.groups)), mean, pair.interval(), raw, corrected
        )
    return compared


class _Pair(NamedTuple):
    """The scores of two rows (seeds, subjects), of the subjects that both have, with their groups."""

    ours: np.ndarray
    theirs: np.ndarray
    groups: list[str]
    same_seeds: bool

    @classmethod
    def of(cls, result: Result, reference: Result, column: Column) -> _Pair:
        ours, theirs = result.values.get(column, {}), reference.values.get(column, {})
        subjects = [name for name in ours if math.isfinite(ours[name]) and math.isfinite(theirs.get(name, math.nan))]
        same = result.by_seed.keys() == reference.by_seed.keys()
        seeds = list(reference.by_seed) if same else list(result.by_seed)
        own = _filled(_scores(result, seeds, column, subjects))
        other = _filled(_scores(reference, list(reference.by_seed), column, subjects))
        return cls(own, other, _groups(result, subjects), same)

    def differences(self) -> np.ndarray:
        """Of each subject, row minus reference, (subjects,)."""
        return self.ours.mean(0) - self.theirs.mean(0)

    def interval(self) -> tuple[float, float]:
        """That of the mean difference: of the same seeds, seed by seed; of others, for other seeds of both rows."""
        if self.same_seeds:
            return interval(self.ours - self.theirs, self.groups)
        return interval(self.ours, self.groups, minus=self.theirs)


def _scores(result: Result, seeds: Sequence[int | None], column: Column, subjects: Sequence[str]) -> np.ndarray:
    """(seeds, subjects), NaN where a score is not known."""
    of_seeds = [result.by_seed[seed].get(column, {}) for seed in seeds]
    rows = [[values.get(subject, math.nan) for subject in subjects] for values in of_seeds]
    return np.array(rows, float).reshape(len(rows), len(subjects))


def _groups(result: Result, subjects: Sequence[str]) -> list[str]:
    """The group of each subject; a subject without one is its own."""
    return [result.groups.get(subject, subject) for subject in subjects]


def _means(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The mean over each group's subjects, (groups,)."""
    index = _numbered(groups)
    return np.bincount(index, values) / np.bincount(index)
