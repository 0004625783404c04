"""One epoch of training. Everything comes in as an argument."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.batches import ShuffledBatches, read_batches
from losses import GuidedLoss, LossTerms
from training.device import Machine
from training.distributed import all_reduce, distribute, rank
from training.optimization import Optimization
from training.signals import StopSignal
from utils import duration, seed_everything

SKIPPED, BROKEN, STOPPED = -3, -2, -1  # positions of the flags in what `agree` returns
LAG = 4  # iterations after which the host reads what a GPU made of one
REMEDY = "last.pt is from before; begin another run with a lower --lr or with --amp off, from its weights by --init"


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
    """Iterations that were left out, but for those that only the scale of the loss made overflow."""
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


@dataclass
class Training:
    """What an epoch trains, and with what."""

    network: nn.Module
    loader: DataLoader
    """Of `ShuffledBatches`."""
    criterion: GuidedLoss
    optimization: Optimization
    machine: Machine
    stop: StopSignal
    model: nn.Module = field(init=False)
    """The network, distributed over the processes where there are several."""
    frozen: list[nn.Parameter] = field(init=False, default_factory=list)
    """Weights that would learn, if the backbone were not to stay."""

    def __post_init__(self) -> None:
        self.model = distribute(self.network, self.machine.device)

    def begin(self, epoch: int) -> None:
        """Let the parts learn that do so in an epoch, counted from 0."""
        freeze = epoch < self.optimization.options.freeze_backbone
        if freeze != bool(self.frozen):
            weights = self.frozen or [weight for weight in self.network.backbone.parameters() if weight.requires_grad]
            for weight in weights:
                weight.requires_grad_(not freeze)
            self.frozen = weights if freeze else []
            del self.model  # its hooks go with it
            self.model = distribute(self.network, self.machine.device)  # which must know what learns
        self.model.train()
        if freeze:
            self.network.backbone.eval()

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

    def restore_if(self, condition: Tensor) -> None:
        """Make them what they were at the last `keep` where `condition`, a boolean scalar of the device, holds."""
        for buffer, before in zip(self.buffers, self.before, strict=True):
            torch.where(condition, before, buffer, out=buffer)


def train_one_epoch(training: Training, epoch: Epoch, title: str) -> None:
    """Train on the batches of the loader from where `epoch` stands; `epoch` is kept up. The title is the bar's.

    Ends before the last batch when a signal to stop has come. An iteration whose loss or gradient is not finite leaves
    weights and running statistics as they were, which the device decides; it is reported with the names of its slices.
    Raises FloatingPointError after more than `max_skipped` such iterations.
    """
    batches, optimization = training.batches, training.optimization
    training.begin(epoch.number)
    training.loader.dataset.epoch = epoch.number
    batches.begin(epoch.number, epoch.iteration)
    if epoch.iteration == 0:
        epoch.lr = optimization.lr
    statistics = Statistics(training.model)
    with progress(training.loader, title, "batch", epoch.iteration) as bar:
        reports = Reports(training, epoch, bar)
        for image, target in bar:
            # All that is drawn at random follows from the position, so a resumed run draws the same.
            seed_everything(batches.seed, epoch.number, epoch.iteration, rank())
            statistics.keep()
            own = forward_and_backward(training, image, target, batches.weight(epoch.iteration))
            outcome = agree(own, optimization.scaled_too_far(), bool(training.stop.received))
            lr = optimization.lr
            skip = outcome[SKIPPED] > 0
            optimization.step(skip)
            statistics.restore_if(skip)
            reports.add(outcome, epoch.iteration, lr)
            epoch.iteration += 1
            if reports.stop:
                break
        reports.read_all()
    if epoch.slices == 0 and epoch.skipped > 0 and not training.interrupted(epoch):
        raise FloatingPointError(f"epoch {epoch.number + 1}: no batch had a finite loss and gradient; {REMEDY}")


def forward_and_backward(training: Training, image: Tensor, target: Tensor, weight: float) -> Tensor:
    """The gradients of a batch, whose loss counts `weight`; returns loss, terms and the gradient's norm, (5,)."""
    image = training.machine.copy(image)
    target = target.to(training.machine.device, non_blocking=True)
    with training.machine.autocast():
        terms = training.criterion(training.model(image), target, counted=weight > 0)
    training.optimization.backward(terms.total * weight)
    return torch.stack([*terms, training.optimization.norm()]).detach() * weight


def agree(own: Tensor, scaled_too_far: bool | Tensor, stop: bool) -> Tensor:
    """What all processes make of an iteration, float64 (7,), on the device.

    `own` is what `forward_and_backward` returned here. Sums over the processes: of the loss and its terms; of the
    processes whose loss or gradient is not finite (SKIPPED); of those where the loss scale alone does not explain it
    (BROKEN); of those that a signal to stop has reached (STOPPED).
    """
    finite = own.isfinite()
    skipped = ~finite.all()
    broken = skipped & ~(finite[:-1].all() & scaled_too_far)
    flags = torch.stack([skipped, broken, torch.full_like(skipped, stop)])
    return all_reduce(torch.cat([own[:-1].double(), flags.double()]))


class Reports:
    """What the host learns of the iterations: at once on the CPU; of a GPU some iterations later, without waiting."""

    def __init__(self, training: Training, epoch: Epoch, bar: tqdm) -> None:
        self.training, self.epoch, self.bar = training, epoch, bar
        self.lag = LAG if training.machine.device.type == "cuda" else 0
        self.waiting: deque[_Report] = deque()
        self.clock = Clock(epoch.number, len(training.batches))
        self.stop = False

    def add(self, outcome: Tensor, iteration: int, lr: float) -> None:
        """An iteration, of which `agree` returned `outcome`; reads those before it that are old enough."""
        copied = None
        values = outcome.to("cpu", non_blocking=True)
        if outcome.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        self.waiting.append(_Report(values, copied, iteration, lr))
        while len(self.waiting) > self.lag:
            self._read(self.waiting.popleft())

    def read_all(self) -> None:
        """Read what is left, and wait for it."""
        while self.waiting:
            self._read(self.waiting.popleft())

    def _read(self, report: _Report) -> None:
        if report.copied is not None:
            report.copied.synchronize()
        values = report.values.tolist()
        losses = [total / self.training.batches.world_size for total in values[:SKIPPED]]
        batch = self.training.batches.batch(report.iteration)
        if values[BROKEN]:
            self.epoch.skipped += 1
            report_skipped(self.training, self.epoch, report.iteration, batch)
        elif not values[SKIPPED]:
            self.epoch.add(losses, len(batch))
        self.stop = self.stop or values[STOPPED] > 0
        self.clock.tick(report.iteration)
        self.bar.set_postfix_str(f"loss {losses[0]:.3f}, lr {report.lr:.1e}", False)


class _Report(NamedTuple):
    values: Tensor
    """Of `agree`, on the host as soon as `copied` has happened."""
    copied: torch.cuda.Event | None
    iteration: int
    lr: float


def report_skipped(training: Training, epoch: Epoch, iteration: int, batch: Sequence[int]) -> None:
    """Name the slices of an iteration that was left out. Raises FloatingPointError where there are too many."""
    slices = training.loader.dataset.slices
    names = ", ".join(slices[index].images[0].name for index in batch)
    where = f"epoch {epoch.number + 1}, batch {iteration + 1}: the loss or its gradient is not finite"
    most = training.optimization.options.max_skipped
    if epoch.skipped > most:
        raise FloatingPointError(f"{where}, after {most} others; {REMEDY}. Its slices: {names}")
    count = f"{epoch.skipped} of at most {most} in an epoch"
    tqdm.write(f"warning: {where}; the batch is left out ({count}). Its slices: {names}")


class Clock:
    """Says after three iterations of the first epoch how long an epoch takes."""

    def __init__(self, epoch: int, iterations: int) -> None:
        self.epoch, self.iterations = epoch, iterations
        self.began = time.monotonic()

    def tick(self, iteration: int) -> None:
        """An iteration, counted from 0, is done."""
        if iteration == 0:  # the first iteration also sets everything up
            self.began = time.monotonic()
        if self.epoch == 0 and iteration == 2 and self.iterations > 3:
            seconds = (time.monotonic() - self.began) / 2 * self.iterations
            tqdm.write(f"time     about {duration(seconds)} an epoch, without validation")


def progress(loader: DataLoader, title: str, unit: str, done: int = 0) -> tqdm:
    """A bar over the batches, `done` of which are done already; none where the output is no terminal."""
    hidden = None if rank() == 0 else True
    return tqdm(read_batches(loader), title, len(loader), leave=False, unit=unit, initial=done, disable=hidden)
