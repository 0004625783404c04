"""What the slice viewer of a page holds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.folder import open_data
from data.geometry import Geometry
from data.volumes import Volume
from metrics import dice
from reporting.viewer import Segmented, confusion, mean_dice, view, worst_slice
from tests.helpers.pages import big_set


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_slice_scores_against_the_metrics(seed, classes):
    rng = np.random.default_rng(seed)
    target, prediction = (rng.integers(0, rng.integers(1, classes + 1), (4, 3, 3)).astype(np.uint8) for _ in range(2))
    counts = confusion(Volume("1", prediction, target), classes)
    means = []
    for a, b in zip(prediction, target, strict=True):
        values = [dice(a == k, b == k) for k in range(1, classes)]
        known = [value for value in values if not math.isnan(value)]
        means.append(sum(known) / len(known) if known else math.nan)
    np.testing.assert_allclose(mean_dice(counts), means)
    worst = worst_slice(counts)
    fullest = max((plane > 0).sum() for plane in target)
    wrong = [
        (b != a).sum() for a, b in zip(prediction, target, strict=True)
        if max((a > 0).sum(), (b > 0).sum()) >= fullest / 10
    ]  # fmt: skip
    assert (prediction[worst] != target[worst]).sum() == max(wrong)


def test_a_false_blob_in_an_end_slice_is_not_shown_first():
    """Its Dice is 0, but it holds 9 pixels, where the fullest slice of the truth has 100."""
    target = np.zeros((4, 20, 20), np.uint8)
    target[1:3, 5:15, 5:15] = 1
    prediction = target.copy()
    prediction[0, :3, :3] = 2
    prediction[2, 5, 5:13] = 0
    assert worst_slice(confusion(Volume("1", prediction, target), 3)) == 2
    prediction[0, :10, :10] = 2  # as large as the organ
    assert worst_slice(confusion(Volume("1", prediction, target), 3)) == 0
    nothing = np.zeros_like(target)
    prediction[1] = 1
    assert worst_slice(confusion(Volume("1", prediction, nothing), 3)) == 1
    assert worst_slice(confusion(Volume("1", nothing, nothing), 3)) == 0


@pytest.mark.slow
def test_a_subject_too_large_is_cut_to_slices_about_its_worst(tmp_path):
    segmented = big_set(tmp_path / "data", 2, 6)
    counts = {volume.subject: confusion(volume, 5) for volume in segmented.volumes}
    whole = view(segmented, list(segmented.volumes[:1]), counts, 10**8)[0]
    cut = view(segmented, list(segmented.volumes), counts, 200_000)
    assert len(cut) == 1 and len(json.dumps(cut[0])) <= 200_000
    numbers = cut[0]["numbers"]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert whole["numbers"][whole["worst"]] == numbers[cut[0]["worst"]]


def test_slices_are_shown_with_the_sides_of_their_pixels(data, volumes):
    dataset = open_data(data).dataset("test")
    counts = {volume.subject: confusion(volume, 5) for volume in volumes}
    for spacing, aspect in ((None, 64 / 48), ((3.0, 2.0, 9.0), 64 * 3 / (48 * 2))):
        geometry = {volume.subject: Geometry(spacing=spacing) for volume in volumes}
        subjects = view(Segmented("test", dataset, volumes, geometry), volumes, counts, 10**8)
        assert [subject["aspect"] for subject in subjects] == [pytest.approx(aspect)] * 2
