"""An epoch with numbers that are not finite: nothing is lost, and all is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from config import OptimizationConfig
from data.batches import ShuffledBatches, slice_loader
from data.folder import open_data
from losses import GuidedLoss
from tests.helpers.networks import TinyNetwork
from training.device import Machine
from training.epoch import Epoch, Training, train_one_epoch
from training.optimization import Optimization
from training.signals import StopSignal


@pytest.fixture
def data(make_data) -> Path:
    """Three iterations in an epoch."""
    return make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))


class Spoiled(GuidedLoss):
    """A loss that is not finite, or whose gradient is not, in some iterations; it also ruins running statistics."""

    def __init__(self, model: nn.Module, bad: dict[int, str]) -> None:
        super().__init__()
        self.model, self.bad, self.iteration = [model], bad, 0

    def forward(self, output: Any, target: torch.Tensor, counted: bool = True) -> Any:
        terms = super().forward(output, target, counted)
        what = self.bad.get(self.iteration, "")
        self.iteration += 1
        if what:
            for buffer in self.model[0].buffers():
                buffer.data.fill_(7)  # without autograd noticing
        if what == "loss":
            return terms._replace(total=terms.total * float("nan"))
        if what == "gradient":  # the square root of 0 is finite, its derivative is not
            return terms._replace(total=terms.total + (terms.total * 0).sqrt())
        return terms


def train(data: Path, bad: dict[int, str], only: list[int] | None = None, max_skipped: int = 2):
    """One epoch of a small network; with `only`, of these iterations alone."""
    torch.manual_seed(0)
    model = TinyNetwork(1, 5)
    dataset = open_data(data).dataset("train")
    batches = ShuffledBatches(dataset, 2, seed=0)
    if only is not None:
        batches.begin = lambda epoch, iteration: None
        batches.order = [index for iteration in only for index in batches.batch(iteration)]
    batches.slices = len(batches.order)
    loader = slice_loader(dataset, batches)
    optimization = Optimization(model, OptimizationConfig(max_skipped=max_skipped), len(batches))
    machine = Machine(torch.device("cpu"), dtype=torch.float32, workers=0)
    training = Training(model, loader, Spoiled(model, bad), optimization, machine, StopSignal())
    epoch = Epoch(0)
    train_one_epoch(training, epoch, "")
    return model.state_dict(), epoch, batches


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_batch_that_is_not_finite_is_as_if_it_had_not_been(data, what, capsys):
    spoiled, epoch, batches = train(data, {1: what})
    without, _, _ = train(data, {}, only=[0, 2])
    floats = {key: value for key, value in spoiled.items() if value.is_floating_point()}
    torch.testing.assert_close(floats, {key: without[key] for key in floats}, rtol=0, atol=0)
    assert (epoch.skipped, epoch.iteration, epoch.slices) == (1, 3, 4)
    printed = capsys.readouterr().out
    assert "epoch 1, batch 2: the loss or its gradient is not finite" in printed
    names = sorted(path.name for path in (data / "train" / "Img").iterdir())
    for index in batches.batch(1):
        assert names[index] in printed


def test_more_such_batches_than_allowed_stop_the_training(data):
    with pytest.raises(FloatingPointError, match=r"batch 2.*after 1 others.*--lr.*slices: Subj_"):
        train(data, {0: "loss", 1: "loss"}, max_skipped=1)
    with pytest.raises(FloatingPointError, match="no batch had a finite loss"):
        train(data, {0: "loss", 1: "loss", 2: "loss"}, max_skipped=3)
