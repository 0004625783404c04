"""Averages over networks and flips."""

from __future__ import annotations

import numpy as np
import torch

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
