"""A network that trains in no time, with checkpoints of a few kB."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import models
from models.network import Network, Output


class TinyNetwork(Network):
    """Two convolutions and a batch normalization."""

    multiple, smallest = 1, 32

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, classes, 1)
        )

    def maps(self, image: Tensor) -> Output:
        """Image (B, C, H, W) -> Output with one map of logits at full size."""
        return Output.of_logits(self.layers(image))


class BulkyNetwork(TinyNetwork):
    """The same with checkpoints of 4 MB."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.ballast = nn.Parameter(torch.rand(2**20))


def register(patch: pytest.MonkeyPatch) -> None:
    """Let --model tiny be this network."""
    patch.setitem(models.NETWORKS, "tiny", TinyNetwork)
