"""Stretching between percentiles."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from data.preparation import Preparation


@pytest.mark.parametrize("bits", [8, 16])
def test_percentiles_are_those_of_the_sorted_voxels(bits):
    volume = np.random.default_rng(0).normal(100, 30, (3, 40, 44))
    ordered = np.sort(volume.ravel())
    positions = np.array([0.005, 0.995]) * (ordered.size - 1)
    low, high = np.interp(positions, np.arange(ordered.size), ordered)
    expected = np.rint(((volume - low) / (high - low)).clip(0, 1) * (2**bits - 1))
    ours = Preparation(normalize="percentiles", bits=bits).apply([sitk.GetImageFromArray(volume)]).images[0]
    assert (ours == expected).mean() > 0.999 and np.abs(ours - expected).max() <= 1
