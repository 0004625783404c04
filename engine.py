"""One epoch of training, and the segmentation of whole subjects. Everything comes in as an argument."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoint import StopSignal
from data.slices import ShuffledBatches, SliceDataset, SubjectBatches, read_batches
from data.volumes import Volume, assemble, largest_components
from distributed import add_up, rank, share
from losses import GuidedLoss, LossTerms
from optimization import Optimization
from utils import duration, seed_everything

REMEDY = "the last good checkpoint is kept; start again with a lower --lr or with --amp off"


@dataclass
class Epoch:
    """How far an epoch is: what a checkpoint in the middle of it needs besides weights and optimizer."""

    number: int
    """Counted from 0."""
    step: int = 0
    """Steps that are done."""
    slices: int = 0
    """Slices that were trained on."""
    skipped: int = 0
    """Steps that were left out."""
    seconds: float = 0.0
    """Time that it took before it was interrupted."""
    lr: float = 0.0
    """Learning rate of its first step."""
    sums: list[float] = field(default_factory=lambda: [0.0] * len(LossTerms._fields))
    """Of the loss and its terms over these slices."""

    def add(self, means: Sequence[float], slices: int) -> None:
        """Count a step: the means of the loss and its terms over so many slices."""
        self.sums = [total + mean * slices for total, mean in zip(self.sums, means, strict=True)]
        self.slices += slices

    def losses(self) -> dict[str, float]:
        """The means over slices, NaN where there are none, and the number of skipped steps."""
        means = [total / self.slices if self.slices else math.nan for total in self.sums]
        return dict(zip(LossTerms._fields, means, strict=True)) | {"skipped": self.skipped}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which Epoch(**values) is the same again."""
        return asdict(self)


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    criterion: GuidedLoss,
    optimization: Optimization,
    device: torch.device,
    bfloat16: bool,
    epoch: Epoch,
    max_skipped: int,
    stop: StopSignal,
    title: str,
) -> None:
    """Train on the batches of `loader`, a loader of ShuffledBatches, from where `epoch` stands; `epoch` is kept up.

    Ends before the last batch when a signal to stop has come. A step whose loss or gradient is not finite leaves
    weights and running statistics as they were; it is reported with the names of its slices.
    Raises FloatingPointError after more than `max_skipped` such steps.
    """
    model.train()
    batches: ShuffledBatches = loader.batch_sampler
    batches.begin(epoch.number, epoch.step)
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    before = [torch.empty_like(buffer) for buffer in statistics]
    began = time.monotonic()
    with progress(loader, title, "step", epoch.step) as bar:
        for image, target in bar:
            # All that is drawn at random follows from the position, so a resumed run draws the same.
            seed_everything(batches.seed, epoch.number, epoch.step, rank())
            if statistics:  # a U-Net without batch normalization has none
                torch._foreach_copy_(before, statistics)
            image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
            target = target.to(device, non_blocking=True)
            weight = batches.weight(epoch.step)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                terms = criterion(model(image), target, counted=weight > 0)
            (terms.total * weight).backward()
            norm = optimization.norm()
            values = (torch.stack([*terms, norm]) * weight).tolist()  # waits for the device
            finite = all(map(math.isfinite, values))
            *sums, broken, stopped = add_up([*values[:-1], not finite, bool(stop.received)])
            batch, lr = batches.batch(epoch.step), optimization.lr
            optimization.step(skip=bool(broken))
            epoch.step += 1
            if broken:
                if statistics:
                    torch._foreach_copy_(statistics, before)
                epoch.skipped += 1
                names = [loader.dataset.slices[index].images[0].name for index in batch]
                _report_skipped(epoch, max_skipped, names)
            else:
                epoch.add([value / batches.world for value in sums], len(batch))
            if epoch.step == 1:  # the first step also sets everything up
                began = time.monotonic()
            if epoch.number == 0 and epoch.step == 3 < len(batches):
                seconds = (time.monotonic() - began) / 2 * len(batches)
                tqdm.write(f"time     about {duration(seconds)} an epoch, without validation")
            bar.set_postfix_str(f"loss {sums[0] / batches.world:.3f}, lr {lr:.1e}", False)
            if stopped:
                break
    if epoch.slices == 0 and epoch.step == len(batches):
        raise FloatingPointError(f"epoch {epoch.number + 1}: no step had a finite loss and gradient; {REMEDY}")


def _report_skipped(epoch: Epoch, most: int, names: list[str]) -> None:
    place = f"epoch {epoch.number + 1}, step {epoch.step}: the loss or its gradient is not finite"
    if epoch.skipped > most:
        raise FloatingPointError(f"{place}, after {most} others; {REMEDY}. Its slices: {', '.join(names)}")
    count = f"{epoch.skipped} of at most {most} in an epoch"
    tqdm.write(f"warning: {place}; the step is left out ({count}). Its slices: {', '.join(names)}")


def progress(loader: DataLoader, title: str, unit: str, done: int = 0) -> tqdm:
    """A bar over the batches, `done` of which are done already; none where the output is no terminal."""
    hidden = None if rank() == 0 else True
    return tqdm(read_batches(loader), title, len(loader), leave=False, unit=unit, initial=done, disable=hidden)


@torch.inference_mode()
def segment_subjects(
    model: nn.Module,
    dataset: SliceDataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    bfloat16: bool,
    title: str,
    clean: bool = False,
) -> Iterator[Volume]:
    """Segment the slices of `dataset`, one forward pass each, and yield them as volumes, subject by subject.

    With `clean`, only the largest piece of each class is kept (`data.volumes.largest_components`). Of several
    processes, each yields its share of the subjects.
    """
    model.eval()
    batches = SubjectBatches(dataset, share(list(dataset.subjects())), batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda")
    remaining = {subject: len(indices) for subject, indices in dataset.subjects().items()}
    predictions, targets = [], []
    for indices, (image, target) in zip(batches, progress(loader, title, "batch"), strict=True):
        image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(image)
        predictions.extend(logits.argmax(1).to("cpu", torch.uint8).numpy())
        targets.extend(target.to(torch.uint8).numpy())
        subject = dataset.slices[indices[0]].subject
        if len(predictions) == remaining[subject]:
            numbers = [item.number for item in dataset.slices if item.subject == subject]
            stack = np.stack(predictions)
            prediction = largest_components(stack) if clean else stack
            yield Volume(subject, assemble(numbers, prediction), assemble(numbers, targets))
            predictions, targets = [], []


@torch.inference_mode()
def segment_volume(
    models: Sequence[nn.Module], images: np.ndarray, batch_size: int, device: torch.device, bfloat16: bool, flips: bool
) -> np.ndarray:
    """Images float32 (channels, D, H, W) -> class probabilities float32 (classes, D, H, W).

    They are the mean over `models` (in eval mode) and, with `flips`, over the slices flipped along neither, either and
    both of their axes.
    """
    turns = [(), (-1,), (-2,), (-2, -1)] if flips else [()]
    slices = torch.from_numpy(np.ascontiguousarray(images.swapaxes(0, 1)))
    probabilities = []
    for batch in slices.split(batch_size):
        batch = batch.to(device, memory_format=torch.channels_last)
        total = torch.zeros(())
        for model in models:
            for axes in turns:
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    logits = model(batch.flip(axes))
                total = total + logits.float().softmax(1).flip(axes).cpu()
        probabilities.append(total / (len(models) * len(turns)))
    return torch.cat(probabilities).numpy().swapaxes(0, 1)
