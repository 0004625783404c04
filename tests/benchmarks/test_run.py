"""The measurements, of a network that takes no time."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks import run
from losses import GuidedLoss
from tests.helpers.networks import TinyNetwork


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is measured: networks with weights of 0.1."""
    built: list[nn.Module] = []

    def network(way: str, steps: int = 2) -> nn.Module:
        built.append(TinyNetwork(1, run.CLASSES).to(**run.CHANNELS_LAST))
        for weight in built[-1].parameters():
            nn.init.constant_(weight, 0.1)
        return built[-1]

    monkeypatch.setattr(run, "_network", network)
    return built


def test_a_step_is_measured():
    found = run.measure_step("fast", size=48, batch=2, repeats=3)
    assert len(found["seconds"]) == 3 and min(found["seconds"]) > 0


def test_inference_is_measured():
    found = run.measure_inference("fast", slices=3, size=48, batch=2)
    assert len(found["seconds"]) == 3 and min(found["seconds"]) > 0


def test_an_epoch_is_measured():
    found = run.measure_epoch("fast", size=64, slices=6)
    assert found["seconds"][0] > found["waiting"] + found["start"] > 0


@pytest.mark.parametrize("way", ["plain", "fast"])
def test_a_measured_epoch_trains_all_weights(way, networks, monkeypatch):
    monkeypatch.setattr(run.plain, "plain_loss", GuidedLoss())  # the plain one wants a network with guidance
    run.measure_epoch(way, size=64, slices=6)
    assert all((weight != 0.1).any() for weight in networks[0].parameters())


def test_the_scores_of_a_subject_are_measured():
    found = run.measure_evaluation("fast", repeats=1)
    assert [row["class"] for row in found["scores"]] == ["1", "2", "3", "4"]
