"""Augmentation: image and mask move together, and each change comes as often as it should."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from config import AugmentationConfig
from data.augment import augment


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(33, 64), st.integers(33, 64))
def test_augmentation_moves_image_and_mask_together(seed, height, width):
    """A bright disk far from the border stays on its own mask, whatever was drawn."""
    rows, columns = np.mgrid[:height, :width]
    disk = (rows - height * 0.45) ** 2 + (columns - width * 0.55) ** 2 < 49
    rng = np.random.default_rng(seed)
    image, target = augment(disk[None].astype(np.float32), disk.astype(np.uint8), AugmentationConfig(), rng)
    assert image.dtype == np.float32
    assert target.dtype == np.uint8
    assert image.shape == (1, height, width)
    assert set(np.unique(target)) <= {0, 1}
    assert abs(int(target.sum()) - int(disk.sum())) <= 12
    assert ((image[0] > 0.5) != target.astype(bool)).sum() <= 8


def augmented_masks(mask: np.ndarray, options: AugmentationConfig) -> list[np.ndarray]:
    """A mask as a thousand seeds change it."""
    image = mask[None].astype(np.float32)
    return [augment(image, mask, options, np.random.default_rng(seed))[1] for seed in range(1000)]


def test_flips_come_as_often_as_they_should():
    """Each of the four flips appears in a quarter of the draws."""
    corner = np.zeros((33, 33), np.uint8)
    corner[4:8, 12:15] = 1
    counts: dict[bytes, int] = {}
    for target in augmented_masks(corner, AugmentationConfig(rotation_probability=0)):
        counts[target.tobytes()] = counts.get(target.tobytes(), 0) + 1
    assert len(counts) == 4
    assert all(200 < count < 300 for count in counts.values())


def test_rotations_come_as_often_and_as_far_as_they_should():
    """A rotation appears in half of the draws, with angles up to the limit."""
    line = np.zeros((65, 65), np.uint8)
    line[32, 40:60] = 1
    angles = []
    for target in augmented_masks(line, AugmentationConfig(flip_probability=0, rotation_degrees=30)):
        rows, columns = np.nonzero(target)
        angles.append(np.degrees(np.arctan2((rows - 32).mean(), (columns - 32).mean())))
    turned = np.abs(angles) > 1
    assert 430 < turned.sum() < 520
    assert 25 < max(angles) < 31
    assert -31 < min(angles) < -25
