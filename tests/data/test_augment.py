"""Augmentation: image and mask move together, and each change comes as often as it should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import nn

from config import AugmentationConfig
from data.augment import augment, change_intensities


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(33, 64), st.integers(33, 64))
def test_augmentation_moves_image_and_mask_together(seed, height, width):
    """A bright disk far from the border stays on its own mask, whatever was drawn.

    Where a pixel lies between four of the disk, or four beside it, image and mask both say so; they may differ only on
    the edge, where the bilinear value is a mixture.
    """
    rows, columns = np.mgrid[:height, :width]
    disk = (rows - height * 0.45) ** 2 + (columns - width * 0.55) ** 2 < 49
    rng = np.random.default_rng(seed)
    image, target = augment(disk[None].astype(np.float32), disk.astype(np.uint8), AugmentationConfig(), rng)
    assert image.dtype == np.float32
    assert target.dtype == np.uint8
    assert image.shape == (1, height, width)
    assert set(np.unique(target)) <= {0, 1}
    assert abs(int(target.sum()) - int(disk.sum())) <= 12
    inside, outside = image[0] > 1 - 1e-5, image[0] < 1e-5
    assert (target[inside] == 1).all() and (target[outside] == 0).all()
    assert inside.sum() > 90  # of 149; the edge is a ring of two pixels at most


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


class Drawn:
    """A stand-in for a generator that draws what it is told to."""

    def __init__(self, *values: float | np.ndarray) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)

    def uniform(self, *range_: float) -> float | np.ndarray:
        return self.values.pop(0)

    def normal(self, mean: float, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
        return mean + deviation * self.values.pop(0)


@pytest.mark.parametrize("angle", [-29.5, -7.0, 13.0, 30.0])
def test_rotation_is_pillows(angle):
    rng = np.random.default_rng(0)
    image, target = rng.random((2, 20, 27), np.float32), rng.integers(0, 5, (20, 27), np.uint8)
    rotated, mask = augment(image, target, AugmentationConfig(), Drawn(1, 1, 0, angle, 1))
    for ours, before in zip(rotated, image, strict=True):
        assert (ours == np.asarray(Image.fromarray(before).rotate(angle, Image.Resampling.BILINEAR))).all()
    assert (mask == np.asarray(Image.fromarray(target).rotate(angle))).all()


def test_affine_moves_image_and_mask_as_scipy_does():
    """Away from the edge, where the two fill differently."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((40, 48)), 2).astype(np.float32)
    target = (image > image.mean()).astype(np.uint8)
    scales, shear, shift = np.array([0.5, -1.0]), 0.08, np.array([0.05, -0.1])
    options = AugmentationConfig(affine_probability=1)
    ours, mask = augment(image[None], target, options, Drawn(1, 1, 1, 0, scales, shear, shift))
    size, aspect = 1.25**0.5, 1.25**-0.4
    x_y = np.diag([size * aspect, size / aspect]) @ np.array([[1, shear], [0, 1]])
    matrix = x_y[::-1, ::-1]  # rows before columns
    center = np.array([20, 24]) - 0.5
    offset = center + np.array([-0.1 * 40, 0.05 * 48]) - matrix @ center
    expected = ndimage.affine_transform(image, matrix, offset, order=1)
    inside = ndimage.affine_transform(np.ones_like(image), matrix, offset, order=1) == 1
    inside = ndimage.binary_erosion(inside, iterations=2)
    assert inside.sum() > 500
    np.testing.assert_allclose(ours[0][inside], expected[inside], atol=1e-5)
    nearest = ndimage.affine_transform(target, matrix, offset, order=0)
    assert (mask[inside] != nearest[inside]).mean() < 0.01  # halfway between two pixels either is right


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(32, 50), st.integers(32, 50), st.integers(0, 2**32 - 1))
def test_changed_intensities_stay_images(channels, height, width, seed):
    image = np.random.default_rng(seed).random((channels, height, width), np.float32)
    kept = image.copy()
    ours, again = (change_intensities(image, 0.5, np.random.default_rng(seed)) for _ in range(2))
    assert ours.shape == image.shape and ours.dtype == np.float32
    assert np.isfinite(ours).all() and ours.min() >= 0 and ours.max() <= 1
    assert (ours == again).all() and (image == kept).all()


CHANGES = ("noise", "blur", "brightness", "contrast", "low resolution", "bias field", "gamma")


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_of_intensities_is_its_formula(name):
    """One change at a time, with draws that are known, on two channels of different brightness."""
    rng = np.random.default_rng(0)
    image = (rng.random((2, 10, 12)) * [[[0.5]], [[1.2]]] - 0.05).astype(np.float32)
    noise, x = rng.normal(size=image.shape), image.astype(float)
    height, width = image.shape[1:]
    match name:
        case "noise":
            draws, expected = (0.05, noise), x + 0.05 * noise
        case "blur":
            kernel = np.exp(-0.5 * (np.arange(-3, 4) / 0.8) ** 2)
            kernel /= kernel.sum()
            padded, draws = np.pad(x, ((0, 0), (3, 3), (3, 3)), "symmetric"), (0.8,)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))
            expected = np.einsum("chwij,i,j->chw", windows, kernel, kernel)
        case "brightness":
            draws, expected = (1.2,), 1.2 * x
        case "contrast":
            draws, expected = (1.25,), np.stack([c.mean() + 1.25 * (c - c.mean()) for c in x])
        case "low resolution":
            small = torch.from_numpy(x[None, :, 1::2, 1::2])  # the pixel that is nearest to the middle, to the right
            large = nn.functional.interpolate(small, (height, width), mode="bicubic", antialias=True)
            draws, expected = (0.5,), large[0].numpy()
        case "bias field":
            draws, expected = (np.array([0.1, -0.2, 0.3, -0.1, 0.2]),), x.copy()
            for row in range(height):
                for column in range(width):
                    v, u = 2 * row / (height - 1) - 1, 2 * column / (width - 1) - 1
                    field = math.exp(0.1 * v - 0.2 * u + 0.3 * v * v - 0.1 * u * u + 0.2 * v * u)
                    expected[:, row, column] *= field
        case "gamma":
            draws, expected = (1.4,), x.clip(0, 1) ** 1.4
    before = CHANGES.index(name)
    drawn = Drawn(*[1] * before, 0, *draws, *[1] * (6 - before))
    np.testing.assert_allclose(change_intensities(image, 0.5, drawn), expected.clip(0, 1), atol=2e-6)
    assert not drawn.values


def test_intensities_change_after_the_rest_and_in_images_alone():
    image, target = np.random.default_rng(1).random((1, 40, 48), np.float32), np.ones((40, 48), np.uint8)
    options = AugmentationConfig(flip_probability=0, rotation_probability=0, intensity_probability=1)
    ours, mask = augment(image, target, options, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.random(4)  # neither flip, no rotation, no affine change
    assert (ours == change_intensities(image, 1, rng)).all() and (ours != image).any()
    assert (mask == target).all()


def test_rotation_and_affine_are_one_transformation():
    """A rotation alone, drawn together with an affine change of nothing, is Pillow's rotation."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((40, 48)), 2).astype(np.float32)
    target = np.zeros((40, 48), np.uint8)
    draws = Drawn(1, 1, 0, 17.0, 0, np.zeros(2), 0.0, np.zeros(2))
    ours, _ = augment(image[None], target, AugmentationConfig(affine_probability=1), draws)
    np.testing.assert_allclose(
        ours[0], np.asarray(Image.fromarray(image).rotate(17.0, Image.Resampling.BILINEAR)), atol=1e-5
    )
