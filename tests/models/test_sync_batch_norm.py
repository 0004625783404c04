"""Which batch normalizations may be synchronized. That they are: tests/training/test_distributed.py."""

from __future__ import annotations

import re

import pytest
from torch import nn

from models import synchronize_batch_norm
from models.network import BatchNorm
from utils import OptionError


class NormAndActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "norm",
    [
        NormAndActivation(3),
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm1d(3),
        nn.BatchNorm3d(3),
    ],
)
def test_what_would_no_longer_compute_the_same_is_refused(norm):
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Sequential(norm))
    with pytest.raises(OptionError, match=re.escape(f"sync_batch_norm: 1.0 of the network, a {type(norm).__name__}, ")):
        synchronize_batch_norm(network)


def test_plain_ones_and_ours_are_synchronized():
    network = nn.Sequential(nn.BatchNorm2d(3), BatchNorm(3), nn.GroupNorm(1, 3))
    synchronize_batch_norm(network)
    assert [type(part).__name__ for part in network] == ["SyncBatchNorm", "SyncBatchNorm", "GroupNorm"]
