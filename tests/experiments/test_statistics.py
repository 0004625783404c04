"""Statistics against scipy and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.results import MEAN
from experiments.statistics import bootstrap_interval, compare, holm, paired_differences, wilcoxon

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holm_by_hand():
    """Holm (1979): sorted p times 4, 3, 2, 1, never falling: 0.02, 0.03 -> 0.03, 0.04 -> 0.04, 0.8."""
    np.testing.assert_allclose(holm([0.02, 0.005, 0.8, 0.01]), [0.04, 0.02, 0.8, 0.03])
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.03]), [0.5, np.nan, 0.06])


@given(P_VALUES, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, level):
    adjusted, rejected = holm(p), set()
    for rank, k in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[k] * (len(p) - rank) > level:
            break
        rejected.add(k)
    assert {k for k, value in enumerate(adjusted) if value <= level} == rejected


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=9, unique=True), st.data())
@settings(max_examples=40, deadline=None)
def test_wilcoxon_counts_the_signs(sizes, data):
    """Without ties, p is the share of all choices of signs whose rank sum is at least as far from its mean."""
    signs = data.draw(st.lists(st.sampled_from([-1, 1]), min_size=len(sizes), max_size=len(sizes)))
    ranks = stats.rankdata(sizes)
    middle = ranks.sum() / 2
    distance = abs(sum(r for r, sign in zip(ranks, signs, strict=True) if sign > 0) - middle)
    sums = [sum(itertools.compress(ranks, choice)) for choice in itertools.product([0, 1], repeat=len(sizes))]
    expected = np.mean([abs(total - middle) >= distance - 1e-9 for total in sums])
    assert wilcoxon(np.array(sizes) * np.array(signs) / 7) == pytest.approx(expected)


def test_wilcoxon_without_differences():
    assert wilcoxon(np.zeros(5)) == 1
    assert np.isnan(wilcoxon(np.empty(0)))
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 2**5)


def test_bootstrap_interval_against_scipy():
    values = np.random.default_rng(3).normal(86, 5, 15)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="percentile", rng=1).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values), theirs, atol=0.08)
    assert bootstrap_interval([2, 2, 2]) == (2, 2)
    assert np.isnan(bootstrap_interval([2])).all()


def test_pairs_are_of_the_same_subject():
    ours, theirs = {"1": 3.0, "2": 5.0, "9": float("nan")}, {"2": 1.0, "9": 4.0, "1": 2.5, "7": 0.0}
    np.testing.assert_allclose(paired_differences(ours, theirs), [0.5, 4.0])


def test_comparison_corrects_over_the_other_rows(results):
    reference, daf = results
    other = daf._replace(name="PAM")
    found = compare([*results, other], reference, (MEAN, "DSC"))
    assert found.keys() == {"DAF", "PAM"}
    assert found["DAF"].n == 3
    assert found["DAF"].p_holm == pytest.approx(min(1, 2 * found["DAF"].p))
