"""One epoch of training. Everything comes in as an argument."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.batches import ShuffledBatches, read_batches
from losses import GuidedLoss, LossTerms
from training.device import Machine
from training.distributed import all_reduce_sum, rank
from training.optimization import Optimization
from training.signals import StopSignal
from utils import duration, seed_everything

REMEDY = "the last good checkpoint is kept; start again with a lower --lr or with --amp off"


@dataclass
class Epoch:
    """How far an epoch is: what a checkpoint in the middle of it needs besides weights and optimizer."""

    number: int
    """Counted from 0."""
    iteration: int = 0
    """Iterations that are done."""
    slices: int = 0
    """Slices that were trained on."""
    skipped: int = 0
    """Iterations that were left out."""
    seconds: float = 0.0
    """Time that it took before it was interrupted."""
    lr: float = 0.0
    """Learning rate of its first iteration."""
    sums: list[float] = field(default_factory=lambda: [0.0] * len(LossTerms._fields))
    """Of the loss and its terms over these slices."""

    def add(self, means: Sequence[float], slices: int) -> None:
        """Count an iteration: the means of the loss and its terms over so many slices."""
        self.sums = [total + mean * slices for total, mean in zip(self.sums, means, strict=True)]
        self.slices += slices

    def losses(self) -> dict[str, float]:
        """The means over slices, NaN where there are none, and the number of skipped iterations."""
        means = [total / self.slices if self.slices else math.nan for total in self.sums]
        return dict(zip(LossTerms._fields, means, strict=True)) | {"skipped": self.skipped}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which Epoch(**values) is the same again."""
        return asdict(self)


@dataclass
class Training:
    """What an epoch trains, and with what."""

    model: nn.Module
    """The network, distributed over the processes where there are several."""
    loader: DataLoader
    """Of `ShuffledBatches`."""
    criterion: GuidedLoss
    optimization: Optimization
    machine: Machine
    max_skipped: int
    """Iterations of an epoch that may be left out because their loss or gradient is not finite."""
    stop: StopSignal

    @property
    def batches(self) -> ShuffledBatches:
        """Which slices are in which iteration."""
        return self.loader.batch_sampler

    def interrupted(self, epoch: Epoch) -> bool:
        """Whether iterations of the epoch are left."""
        return epoch.iteration < len(self.batches)


class Statistics:
    """The running statistics of batch normalization, which an iteration changes before its loss is known."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.before = [torch.empty_like(buffer) for buffer in self.buffers]

    def keep(self) -> None:
        """Remember them as they are."""
        if self.buffers:  # a U-Net without batch normalization has none
            torch._foreach_copy_(self.before, self.buffers)

    def restore(self) -> None:
        """Make them what they were at the last `keep`."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.before)


def train_one_epoch(training: Training, epoch: Epoch, title: str) -> None:
    """Train on the batches of the loader from where `epoch` stands; `epoch` is kept up. The title is the bar's.

    Ends before the last batch when a signal to stop has come. An iteration whose loss or gradient is not finite leaves
    weights and running statistics as they were; it is reported with the names of its slices.
    Raises FloatingPointError after more than `training.max_skipped` such iterations.
    """
    batches, optimization = training.batches, training.optimization
    training.model.train()
    training.loader.dataset.epoch = epoch.number
    batches.begin(epoch.number, epoch.iteration)
    if epoch.iteration == 0:
        epoch.lr = optimization.lr
    statistics = Statistics(training.model)
    clock = Clock(epoch, len(batches))
    with progress(training.loader, title, "batch", epoch.iteration) as bar:
        for image, target in bar:
            # All that is drawn at random follows from the position, so a resumed run draws the same.
            seed_everything(batches.seed, epoch.number, epoch.iteration, rank())
            statistics.keep()
            own = forward_and_backward(training, image, target, batches.weight(epoch.iteration))
            outcome = agree(own, batches.world_size, bool(training.stop.received))
            lr = optimization.lr
            batch = batches.batch(epoch.iteration)
            optimization.step(skip=not outcome.finite)
            epoch.iteration += 1
            if outcome.finite:
                epoch.add(outcome.losses, len(batch))
            else:
                statistics.restore()
                epoch.skipped += 1
                report_skipped(training, epoch, batch)
            clock.tick()
            bar.set_postfix_str(f"loss {outcome.losses[0]:.3f}, lr {lr:.1e}", False)
            if outcome.stop:
                break
    if epoch.slices == 0 and not training.interrupted(epoch):
        raise FloatingPointError(f"epoch {epoch.number + 1}: no batch had a finite loss and gradient; {REMEDY}")


def forward_and_backward(training: Training, image: torch.Tensor, target: torch.Tensor, weight: float) -> list[float]:
    """The gradients of a batch, whose loss counts `weight`; returns the loss, its terms and the gradient's norm."""
    image = training.machine.copy(image)
    target = target.to(training.machine.device, non_blocking=True)
    with training.machine.autocast():
        terms = training.criterion(training.model(image), target, counted=weight > 0)
    (terms.total * weight).backward()
    norm = training.optimization.norm()
    return (torch.stack([*terms, norm]) * weight).tolist()  # waits for the device


class Outcome(NamedTuple):
    """What all processes together make of an iteration."""

    losses: list[float]
    """The loss and its terms, means over the slices of all processes."""
    finite: bool
    """Whether loss and gradient are, in every process."""
    stop: bool
    """Whether a signal to stop has come to any of them."""


def agree(own: Sequence[float], world_size: int, stop: bool) -> Outcome:
    """One exchange between the processes: `own` is what `forward_and_backward` returned here."""
    *losses, _norm = own
    broken = not all(math.isfinite(value) for value in own)
    *sums, any_broken, any_stop = all_reduce_sum([*losses, broken, stop])
    return Outcome([total / world_size for total in sums], any_broken == 0, any_stop > 0)


def report_skipped(training: Training, epoch: Epoch, batch: Sequence[int]) -> None:
    """Name the slices of an iteration that was left out. Raises FloatingPointError where there are too many."""
    slices = training.loader.dataset.slices
    names = ", ".join(slices[index].images[0].name for index in batch)
    where = f"epoch {epoch.number + 1}, batch {epoch.iteration}: the loss or its gradient is not finite"
    most = training.max_skipped
    if epoch.skipped > most:
        raise FloatingPointError(f"{where}, after {most} others; {REMEDY}. Its slices: {names}")
    count = f"{epoch.skipped} of at most {most} in an epoch"
    tqdm.write(f"warning: {where}; the batch is left out ({count}). Its slices: {names}")


class Clock:
    """Says after three iterations of the first epoch how long an epoch takes."""

    def __init__(self, epoch: Epoch, iterations: int) -> None:
        self.epoch, self.iterations = epoch, iterations
        self.began = time.monotonic()

    def tick(self) -> None:
        """An iteration is done."""
        if self.epoch.iteration == 1:  # the first iteration also sets everything up
            self.began = time.monotonic()
        if self.epoch.number == 0 and self.epoch.iteration == 3 and self.iterations > 3:
            seconds = (time.monotonic() - self.began) / 2 * self.iterations
            tqdm.write(f"time     about {duration(seconds)} an epoch, without validation")


def progress(loader: DataLoader, title: str, unit: str, done: int = 0) -> tqdm:
    """A bar over the batches, `done` of which are done already; none where the output is no terminal."""
    hidden = None if rank() == 0 else True
    return tqdm(read_batches(loader), title, len(loader), leave=False, unit=unit, initial=done, disable=hidden)
