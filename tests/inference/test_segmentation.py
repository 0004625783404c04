"""Averages over networks and flips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.mirror import Mirror
from inference.segmentation import segment_volume
from training.device import Machine

CPU = Machine(torch.device("cpu"), dtype=torch.float32, workers=0)


class Constant(torch.nn.Module):
    """Logits that are the image's first channel and fixed numbers."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image):
        return torch.stack([image[:, 0] * 3, *(torch.full_like(image[:, 0], value) for value in self.logits)], 1)


def test_models_and_flips_are_averaged():
    images = np.random.default_rng(0).random((2, 5, 33, 34)).astype(np.float32)
    models = [Constant(1.0, 2.0), Constant(0.0, -1.0)]
    ours = segment_volume(models, images, 2, CPU, flips=True)
    expected = np.mean([model(torch.from_numpy(images.swapaxes(0, 1))).softmax(1).numpy() for model in models], 0)
    np.testing.assert_allclose(ours, expected.swapaxes(0, 1), rtol=1e-5)


class LeftToRight(torch.nn.Module):
    """Logits that grow along the columns: flips must undo them."""

    def forward(self, image):
        ramp = torch.linspace(0, 1, image.shape[-1]).expand_as(image[:, 0])
        return torch.stack([ramp, image[:, 0]], 1)


def test_flips_are_undone():
    images = np.random.default_rng(0).random((1, 2, 33, 34)).astype(np.float32)
    ours = segment_volume([LeftToRight()], images, 1, CPU, flips=True)
    ramp, flipped = np.linspace(0, 1, 34), np.linspace(1, 0, 34)
    expected = np.mean([1 / (1 + np.exp(images[0] - r)) for r in (ramp, flipped)], 0)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-5)


class BySide(torch.nn.Module):
    """Logits of the background, right and left that follow from the image and the position of each pixel."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, image):
        rows, columns = (torch.linspace(-1, 1, side) for side in image.shape[-2:])
        side = self.slope * (columns + 0.3 * rows[:, None])
        return torch.stack([image[:, 0], image[:, 0] - side, 2 * image[:, 0] + side], 1)


@pytest.mark.parametrize("axis", [-1, -2])
def test_flips_exchange_mirrored_classes_back(axis):
    """The mean by hand over two networks and four flips, of which those along the axis exchange classes 1 and 2."""
    images = np.random.default_rng(0).random((1, 3, 33, 34)).astype(np.float32)
    exchanged = np.arange(256, dtype=np.uint8)
    exchanged[[1, 2]] = 2, 1
    networks = [BySide(1.0), BySide(-2.5)]
    ours = segment_volume(networks, images, 2, CPU, flips=True, mirror=Mirror(axis, exchanged))
    found = []
    for network in networks:
        for axes in ((), (-1,), (-2,), (-2, -1)):
            logits = network(torch.from_numpy(np.flip(images[0], axes).copy())[:, None]).double().numpy()
            background, right, left = np.flip(np.exp(logits), axes).swapaxes(0, 1)
            if axis in axes:
                right, left = left, right
            found.append(np.stack([background, right, left]) / (background + right + left))
    np.testing.assert_allclose(ours, np.mean(found, 0), rtol=1e-5)
    without = segment_volume(networks, images, 2, CPU, flips=True)
    assert np.abs(ours - without).max() > 0.1


def test_without_flips_nothing_is_exchanged():
    images = np.random.default_rng(0).random((1, 1, 33, 34)).astype(np.float32)
    mirror = Mirror(-1, np.arange(256, dtype=np.uint8)[::-1])
    ours = segment_volume([BySide(1.0)], images, 1, CPU, flips=False, mirror=mirror)
    np.testing.assert_array_equal(ours, segment_volume([BySide(1.0)], images, 1, CPU, flips=False))
