"""Statistics against scipy and by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.results import MEAN, Result
from experiments.statistics import _variance_of_groups, compare, group_scores, holm, interval, wilcoxon

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


@given(st.one_of(st.lists(st.integers(1, most), min_size=1, max_size=9) for most in (5, 10_000)), st.data())
@settings(max_examples=80, deadline=None)
def test_wilcoxon_counts_the_signs(sizes, data):
    """p is the share of all choices of signs whose rank sum is as far from the mean; rounding breaks no tie."""
    signs = data.draw(st.lists(st.sampled_from([-1, 1]), min_size=len(sizes), max_size=len(sizes)))
    ranks = stats.rankdata(sizes)
    middle = ranks.sum() / 2
    distance = abs(sum(r for r, sign in zip(ranks, signs, strict=True) if sign > 0) - middle)
    sums = [sum(itertools.compress(ranks, choice)) for choice in itertools.product([0, 1], repeat=len(sizes))]
    expected = np.mean([abs(total - middle) >= distance - 1e-9 for total in sums])
    assert wilcoxon(np.array(sizes) * np.array(signs) * 0.7 + 1e-15) == pytest.approx(expected)


@pytest.mark.parametrize("count", [20, 50, 51, 80])
def test_wilcoxon_is_scipys_where_that_knows_it(count):
    """Exact without ties up to 50 pairs, approximate beyond."""
    differences = np.random.default_rng(count).normal(0.3, 1, count)
    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)


def test_wilcoxon_of_voxel_sizes():
    """The same distance, measured in two places, differs in its last bit, and is no difference."""
    assert wilcoxon(np.array([2.0999999999999996, 2.1000000000000014, 2.099999999999998]) - 2.1) == 1


def test_wilcoxon_without_differences():
    assert wilcoxon(np.zeros(5)) == 1
    assert np.isnan(wilcoxon(np.empty(0)))
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 2**5)


# ---------------------------------------------------------------- intervals


def test_interval_of_one_seed_against_scipy():
    """The percentiles of scipy's bootstrap, as far out as t is beyond the normal distribution (Hesterberg 2015)."""
    values = np.random.default_rng(3).normal(86, 5, 15)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=200_000, method="percentile", rng=1).confidence_interval
    wider = np.sqrt(15 / 14) * stats.t.ppf(0.975, 14) / stats.norm.ppf(0.975)
    expected = values.mean() + wider * (np.array(theirs) - values.mean())
    np.testing.assert_allclose(interval(values[None], list("abcdefghijklmno")), expected, atol=0.1)


def test_interval_of_subjects_and_seeds_without_noise():
    """Subjects differ as before, seeds by a constant: Welch's interval, from the variances of both means."""
    of_subjects, of_seeds = np.random.default_rng(1).normal(0, 4, 400), np.random.default_rng(2).normal(0, 1, 300)
    scores = of_subjects + of_seeds[:, None]
    deviation = np.sqrt(of_subjects.var(ddof=1) / 400 + of_seeds.var(ddof=1) / 300)
    expected = scores.mean() + np.array([-1.96, 1.96]) * deviation
    np.testing.assert_allclose(interval(scores, [str(k) for k in range(400)]), expected, atol=0.02)


def test_intervals_of_little():
    assert interval(np.array([[2.0, 2.0, 2.0]]), list("abc")) == (2, 2)
    assert np.isnan(interval(np.array([[2.0, np.nan]]), list("ab"))).all()
    assert np.isnan(interval(np.array([[2.0, 3.0]]), list("aa"))).all()  # one patient
    assert np.isnan(interval(np.empty((1, 0)), [])).all()


def test_groups_and_missing_scores_by_hand():
    """Mean 3; the deviations -2 and -1 of the first patient and 3 of the second, times 2 groups by 3 subjects."""
    np.testing.assert_allclose(group_scores(np.array([[1.0, 2.0, 6.0]]), ["p", "p", "q"]), [[1, 5]])
    missing = np.array([[1.0, np.nan, 6.0], [3.0, 2.0, 8.0]])
    np.testing.assert_allclose(group_scores(missing, list("abc")), [[1, 2, 6], [3, 2, 8]])


COVERAGE = [  # seeds, subjects, patients; deviation of patients, of seeds, and of each score
    (1, 6, 6, 5.0, 0.0, 0.0),
    (1, 40, 20, 5.0, 0.0, 2.0),
    (3, 20, 20, 5.0, 1.0, 2.0),
    (3, 40, 20, 4.0, 1.0, 3.0),
    (5, 10, 10, 3.0, 3.0, 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "subjects", "patients", "of_patients", "of_seeds", "of_scores"), COVERAGE)
def test_intervals_hold_the_true_mean_as_often_as_they_say(
    monkeypatch, seeds, subjects, patients, of_patients, of_seeds, of_scores
):
    """Of 1,000 experiments with other patients and seeds around a mean of 0, 93 to 97 % of the intervals hold it."""
    monkeypatch.setattr("experiments.statistics.RESAMPLES", 500)
    random, groups, held = np.random.default_rng(5), [str(k % patients) for k in range(subjects)], 0
    for _ in range(1000):
        patient = random.normal(0, of_patients, patients)[[int(group) for group in groups]]
        seed = random.normal(0, of_seeds, (seeds, 1))
        low, high = interval(patient + seed + random.normal(0, of_scores, (seeds, subjects)), groups)
        held += low <= 0 <= high
    assert 930 <= held <= 970


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [range(1, 11), [1] * 9 + [20], [1, 1, 1, 12]])
def test_intervals_hold_the_true_mean_where_a_patient_has_many_scans(monkeypatch, sizes):
    """They may be too wide, never too narrow, where one patient has most of the scans."""
    monkeypatch.setattr("experiments.statistics.RESAMPLES", 500)
    random, groups, held = np.random.default_rng(6), np.repeat(np.arange(len(sizes)), list(sizes)), 0
    for _ in range(500):
        low, high = interval(random.normal(0, 1, len(sizes))[groups][None], list(map(str, groups)))
        held += low <= 0 <= high
    assert held >= 0.92 * 500


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(3, 2), (3, 3), (5, 2)])
def test_intervals_of_differences_hold_for_other_seeds(monkeypatch, seeds):
    """Of two rows on the same 15 subjects, each with seeds of its own, that do not differ in truth."""
    monkeypatch.setattr("experiments.statistics.RESAMPLES", 500)
    random, groups, held = np.random.default_rng(7), [str(k) for k in range(15)], 0
    for _ in range(500):
        subject = random.normal(0, 5, 15)
        ours, theirs = (subject + random.normal(0, 1, (n, 1)) + random.normal(0, 1, (n, 15)) for n in seeds)
        low, high = interval(ours, groups, minus=theirs)
        held += low <= 0 <= high
    assert 0.92 * 500 <= held <= 0.99 * 500


def test_the_variance_of_groups_is_right_in_the_mean():
    """Of groups of one variance, the estimates' mean is the variance of the mean over all subjects, by simulation."""
    sizes, random = np.array([1, 2, 3, 10]), np.random.default_rng(8)
    groups = np.repeat(np.arange(4), sizes).astype(str)
    found = [
        _variance_of_groups(group_scores(np.repeat(random.normal(0, 1, 4), sizes)[None], groups)[0], sizes / 16)
        for _ in range(4000)
    ]
    variances, freedom = np.array(found).T
    assert variances.mean() == pytest.approx((sizes**2).sum() / 16**2, rel=0.05)
    assert freedom[0] == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.15)  # as of a chi-squared
    scores = random.normal(0, 1, 6)
    assert _variance_of_groups(scores, np.full(6, 1 / 6)) == pytest.approx((scores.var(ddof=1) / 6, 5))


# ---------------------------------------------------------------- comparisons


def row(name: str, groups: dict[str, str], **seeds: dict[str, float]) -> Result:
    """A result with scores of one column: seed -> subject -> score."""
    subjects = list(dict.fromkeys(subject for of_seed in seeds.values() for subject in of_seed))
    known = {subject: [of_seed[subject] for of_seed in seeds.values() if subject in of_seed] for subject in subjects}
    means = {subject: float(np.mean(values)) for subject, values in known.items()}
    by_seed = {seed: {COLUMN: scores} for seed, scores in seeds.items()}
    return SimpleNamespace(name=name, values={COLUMN: means}, by_seed=by_seed, groups=groups)


COLUMN = (MEAN, "dsc")


def test_pairs_are_of_the_same_subject():
    ours = row("ours", {}, s={"1": 3.0, "2": 5.0, "9": float("nan")})
    theirs = row("theirs", {}, s={"2": 1.0, "9": 4.0, "1": 2.5, "7": 0.0})
    found = compare([ours, theirs], theirs, COLUMN)
    assert found.keys() == {"ours"}
    assert (found["ours"].subjects, found["ours"].pairs) == (2, 2)
    assert found["ours"].difference == pytest.approx((0.5 + 4) / 2)


def test_disjoint_rows():
    found = compare([row("a", {}, s={"1": 3.0}), row("b", {}, s={"2": 3.0})], row("b", {}, s={"2": 3.0}), COLUMN)
    assert found["a"].pairs == 0 and np.isnan(found["a"].p) and np.isnan(found["a"].difference)


def test_a_subject_without_a_group_is_of_the_group_of_its_name():
    groups = {"p1 again": "p1"}
    ours, theirs = {"p1": 2.0, "p1 again": 4.0, "p2": 5.0}, {"p1": 1.0, "p1 again": 1.0, "p2": 1.0}
    reference = row("theirs", groups, s=theirs)
    assert compare([row("ours", groups, s=ours), reference], reference, COLUMN)["ours"].pairs == 2


def test_patients_are_the_pairs():
    """Six subjects of three patients: the test is of the patients, the difference of the subjects."""
    groups = dict(zip("123456", "aabbcc", strict=True))
    ours = dict(zip("123456", [5.0, 6, 9, 12, 2, 8], strict=True))
    theirs = dict(zip("123456", [4.0, 4, 7, 6, 1, 9], strict=True))
    reference = row("theirs", groups, s=theirs)
    found = compare([row("ours", groups, s=ours), reference], reference, COLUMN)["ours"]
    assert (found.subjects, found.pairs) == (6, 3)
    assert found.difference == pytest.approx((1 + 2 + 2 + 6 + 1 - 1) / 6)
    assert found.p == pytest.approx(stats.wilcoxon([1.5, 4, 0]).pvalue)


def test_seeds_count_with_their_means():
    """The test sees a subject once, however many seeds it has."""
    many = row("a", {}, s1={"1": 3.0, "2": 5.0, "3": 4.0}, s2={"1": 5.0, "2": 6.0, "3": 9.0})
    other = row("b", {}, s1={"1": 1.0, "2": 2.0, "3": 3.0}, s2={"1": 2.0, "2": 2.0, "3": 2.0})
    single = row("c", {}, s3={"1": 1.5, "2": 2.0, "3": 2.5})
    for reference in (other, single):
        found = compare([many, reference], reference, COLUMN)["a"]
        assert found.p == pytest.approx(stats.wilcoxon([2.5, 3.5, 4.0]).pvalue)
        assert found.difference == pytest.approx(10 / 3)
    wide = compare([many, other], other, COLUMN)["a"].interval
    narrow = compare([many, single], single, COLUMN)["a"].interval
    assert wide[0] < narrow[0] < narrow[1] < wide[1]  # with seeds, the interval holds for other seeds too


def test_seeds_are_paired_by_their_name():
    """Not by the order in which runs are named."""
    scores = {f"s{k}": {str(n): 50.0 + 9 * k + n**2 % 7 for n in range(6)} for k in range(3)}
    better = {seed: {name: value + 1 for name, value in of_seed.items()} for seed, of_seed in scores.items()}
    reference = row("a", {}, **scores)
    for order in itertools.permutations(better):
        found = compare([row("b", {}, **{seed: better[seed] for seed in order}), reference], reference, COLUMN)["b"]
        assert found.interval == pytest.approx((1, 1))


def test_an_unknown_score_keeps_the_seeds_in_the_interval():
    """A subject's missing score counts as its mean over the other seeds; the seeds differ far more than subjects."""
    rng = np.random.default_rng(0)
    differences = np.array([[-3.0], [0.5], [4.0]]) + rng.normal(0, 0.1, (3, 8))
    filled = differences.copy()
    filled[1, 2] = differences[[0, 2], 2].mean()
    ours = {f"s{k}": {str(n): 50 + value for n, value in enumerate(of_seed)} for k, of_seed in enumerate(differences)}
    del ours["s1"]["2"]
    reference = row("r", {}, **{seed: {str(n): 50.0 for n in range(8)} for seed in ours})
    found = compare([row("a", {}, **ours), reference], reference, COLUMN)["a"]
    assert found.difference == pytest.approx(filled.mean())
    assert found.interval == pytest.approx(interval(filled, list("abcdefgh")))
    assert found.interval[0] < -2 and found.interval[1] > 2


def test_comparison_corrects_over_the_other_rows():
    reference = row("r", {}, s={str(k): 0.0 for k in range(8)})
    others = [row(f"o{n}", {}, s={str(k): k - n + 0.5 for k in range(8)}) for n in range(3)]
    found = compare([*others, reference], reference, COLUMN)
    raw = [found[result.name].p for result in others]
    assert [found[result.name].p_holm for result in others] == pytest.approx(holm(raw))
