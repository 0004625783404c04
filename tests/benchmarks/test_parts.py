"""The table of what the parts of the network cost."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import parts
from models.backbone import Backbone


@pytest.mark.slow
def test_parts_have_their_arithmetic_and_time(monkeypatch):
    monkeypatch.setattr(parts, "TURNS", 1)
    config = parts.NETWORKS["native"].change(backbone="resnet18", steps=1)
    measured = parts.measure(config, 64)
    assert measured.keys() == set(parts.PARTS.values())
    assert all(seconds > 0 for _, seconds in measured.values())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Backbone("resnet18").eval()(torch.rand(1, 1, 64, 64))
    assert measured["backbone"][0] == counter.get_total_flops()
    attention = 0
    for side, keys in ((16, 16), (8, 16), (4, 16), (2, 4)):  # with keys of means over 4, 2, 1 and 1 positions
        n = side**2
        attention += 2 * 2 * n * 9 * (128 * 64 + 64 * 64)  # the convolutions around the two attentions
        attention += 2 * n * 64 * 8 + 2 * keys * 64 * (8 + 64) + 2 * n * keys * (8 + 64)
        attention += 2 * 2 * n * 64 * 64
    assert measured["attention"][0] == attention
    assert len(parts.table({"native": measured}, 1e12).splitlines()) == 2 + len(parts.PARTS)
