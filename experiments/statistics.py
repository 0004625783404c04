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


def interval(scores: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `scores` (seeds, subjects), for other seeds and other groups of subjects.

    Seeds and groups are drawn anew independently (Owen 2007), 10,000 times with a fixed seed. The percentiles of the
    means are widened for small samples, as Hesterberg (2015) does for one sample. NaN is a score that is not known;
    the interval is NaN for fewer than two groups.
    """
    table = group_scores(scores, groups)
    seeds, count = table.shape
    if count < 2:
        return math.nan, math.nan
    times_seed, times_group = _resamples(seeds, count, RESAMPLES)
    of_seeds = [times @ table.T for times in map(np.float64, np.array_split(times_group, 10))]  # never all as floats
    means = (np.concatenate(of_seeds) * times_seed).sum(1) / table.size
    quantiles = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = table.mean() + _widening(table, means.std()) * (quantiles - table.mean())
    return float(low), float(high)


@functools.lru_cache(maxsize=4)  # tables have many columns of as many subjects
def _resamples(seeds: int, groups: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each group is drawn: (count, seeds) and (count, groups), from a fixed seed."""
    random = np.random.default_rng(0)
    times = [random.multinomial(n, np.full(n, 1 / n), count).astype(np.uint16) for n in (seeds, groups)]
    return times[0], times[1]


def group_scores(scores: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Scores (seeds, subjects) -> (seeds, groups), of which each counts as much as its subjects do in the mean.

    The mean over groups is that over subjects; subjects without any score are left out. Where only some seeds have a
    subject's score, the others get its mean.
    """
    known = np.isfinite(scores).any(0)
    scores = scores[:, known]
    of_subjects = np.array(groups)[known]
    if not scores.size:
        return np.empty((len(scores), 0))
    scores = _filled(scores)
    index = _numbered(of_subjects)
    sums = np.stack([np.bincount(index, of_seed) for of_seed in scores - scores.mean()])
    return scores.mean() + sums * sums.shape[1] / len(of_subjects)


def _filled(scores: np.ndarray) -> np.ndarray:
    """Scores (seeds, subjects), those that are not known replaced by the subject's mean over the other seeds."""
    return np.where(np.isfinite(scores), scores, np.nanmean(scores, 0)) if scores.size else scores


def _numbered(groups: Sequence[str]) -> np.ndarray:
    """The number of each one's group, in the order in which they come."""
    numbers = {name: k for k, name in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[name] for name in groups], int)


def _widening(table: np.ndarray, spread: float) -> float:
    """How much further from the mean of (seeds, groups) a bound lies than the percentile of means with this deviation.

    It lies as far out as in Student's t, with the variance of the mean over seeds and groups that are drawn at random,
    and the degrees of freedom of Welch and Satterthwaite.
    """
    seeds, count = table.shape
    of_groups = table.mean(0).var(ddof=1) / count
    of_seeds = table.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    variance = of_groups + of_seeds
    if variance == 0 or spread == 0:
        return 1.0
    freedom = variance**2 / (of_groups**2 / (count - 1) + of_seeds**2 / max(1, seeds - 1))
    tail = (1 + CONFIDENCE) / 2
    return float(np.sqrt(variance) / spread * stats.t.ppf(tail, freedom) / stats.norm.ppf(tail))


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
    differences = [_differences(result, reference, column) for result in others]
    p = [wilcoxon(_means(scores.mean(0), groups)) for scores, groups in differences]
    compared = {}
    for result, (scores, groups), raw, corrected in zip(others, differences, p, holm(p), strict=True):
        mean = float(scores.mean()) if scores.size else math.nan
        pairs = len(set(groups))
        compared[result.name] = Comparison(scores.shape[1], pairs, mean, interval(scores, groups), raw, corrected)
    return compared


def _differences(result: Result, reference: Result, column: Column) -> tuple[np.ndarray, list[str]]:
    """Row minus reference (seeds, subjects) of the subjects that both have, and their groups.

    Rows with the same seeds differ seed by seed, others in their means over seeds.
    """
    ours, theirs = result.values.get(column, {}), reference.values.get(column, {})
    subjects = [name for name in ours if math.isfinite(ours[name]) and math.isfinite(theirs.get(name, math.nan))]
    groups = _groups(result, subjects)
    if result.by_seed.keys() == reference.by_seed.keys():
        pair = [_filled(_scores(each, list(reference.by_seed), column, subjects)) for each in (result, reference)]
        return pair[0] - pair[1], groups
    means = np.array([ours[name] - theirs[name] for name in subjects])
    return means[None], groups


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
