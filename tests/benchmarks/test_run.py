"""The measurements, of a network that takes no time."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks import run
from tests.helpers.networks import TinyNetwork


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured."""

    def network(way: str, steps: int = 2) -> nn.Module:
        return TinyNetwork(1, run.CLASSES).to(**run.CHANNELS_LAST)

    monkeypatch.setattr(run, "_network", network)


def test_a_step_is_measured():
    found = run.measure_step("fast", size=48, batch=2, repeats=3)
    assert len(found["seconds"]) == 3 and min(found["seconds"]) > 0


def test_inference_is_measured():
    found = run.measure_inference("fast", slices=3, size=48, batch=2)
    assert len(found["seconds"]) == 3 and min(found["seconds"]) > 0


def test_an_epoch_is_measured():
    found = run.measure_epoch("fast", size=64, slices=6)
    assert found["seconds"][0] > found["waiting"] + found["start"] > 0


def test_the_scores_of_a_subject_are_measured():
    found = run.measure_evaluation("fast", repeats=1)
    assert [row["class"] for row in found["scores"]] == ["1", "2", "3", "4"]
