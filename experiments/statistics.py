"""Intervals and paired tests of scores over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.results import Column, Result

RESAMPLES = 10_000


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), from 10,000 resamples of a fixed seed; NaN for n < 2."""
    values = np.asarray(values, float)
    if values.size < 2:
        return math.nan, math.nan
    means = np.random.default_rng(0).choice(values, (RESAMPLES, values.size)).mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_differences(values: dict[str, float], reference: dict[str, float]) -> np.ndarray:
    """values - reference, (n,), over the subjects that have both."""
    pairs = [(values[subject], reference[subject]) for subject in values if subject in reference]
    differences = np.array([a - b for a, b in pairs])
    return differences[np.isfinite(differences)]


def wilcoxon(differences: np.ndarray) -> float:
    """p of the two-sided Wilcoxon signed-rank test; exact for few pairs without ties. NaN without pairs, 1 if all 0."""
    if not differences.size:
        return math.nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


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

    n: int
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float


def compare(results: Sequence[Result], reference: Result, column: Column) -> dict[str, Comparison]:
    """Paired tests of all other rows against `reference`, corrected over these rows."""
    others = [result for result in results if result is not reference]
    pairs = [paired_differences(result.values[column], reference.values[column]) for result in others]
    p = [wilcoxon(differences) for differences in pairs]
    return {
        result.name: Comparison(
            differences.size,
            float(differences.mean()) if differences.size else math.nan,
            bootstrap_interval(differences),
            raw,
            corrected,
        )
        for result, differences, raw, corrected in zip(others, pairs, p, holm(p), strict=True)
    }
