"""One epoch of training, and the segmentation of whole subjects. Everything comes in as an argument."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.slices import SliceDataset, SubjectBatches, read_batches
from data.volumes import assemble
from losses import GuidedLoss, LossTerms

REFRESH = 0.5  # seconds between looks at the loss; each look waits for the device


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    criterion: GuidedLoss,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    bfloat16: bool,
    title: str,
) -> dict[str, float]:
    """Train on every batch of `loader`; return the mean over slices of the loss and its terms.

    Raises FloatingPointError when the loss is no longer finite.
    """
    model.train()
    sums = torch.zeros(len(LossTerms._fields), device=device)
    slices, looked = 0, 0.0
    with tqdm(read_batches(loader), title, len(loader), leave=False, unit="step", disable=None) as bar:
        for image, target in bar:
            image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
            target = target.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                terms = criterion(model(image), target)
            terms.total.backward()
            optimizer.step()
            optimizer.zero_grad()  # frees the gradients, so that the next forward pass has their memory
            sums += torch.stack(terms).detach() * len(image)
            slices += len(image)
            if time.monotonic() - looked > REFRESH:
                looked = time.monotonic()
                bar.set_postfix_str(f"loss {terms.total.item():.3f}, lr {optimizer.param_groups[0]['lr']:.1e}")
    means = dict(zip(LossTerms._fields, (sums / slices).tolist(), strict=True))
    if not np.isfinite(means["total"]):
        raise FloatingPointError("the loss is not finite any more; lower --lr, or try --amp off")
    return means


class Volume(NamedTuple):
    """A subject's segmentation and truth: class indices, uint8 (slices, H, W)."""

    subject: str
    prediction: np.ndarray
    target: np.ndarray


@torch.inference_mode()
def segment_subjects(
    model: nn.Module,
    dataset: SliceDataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    bfloat16: bool,
    title: str,
) -> Iterator[Volume]:
    """Segment the slices of `dataset`, one forward pass each, and yield them as volumes, subject by subject."""
    model.eval()
    batches = SubjectBatches(dataset, batch_size)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda")
    remaining = {subject: len(indices) for subject, indices in dataset.subjects().items()}
    predictions, targets = [], []
    bar = tqdm(read_batches(loader), title, len(loader), leave=False, disable=None)
    for indices, (image, target) in zip(batches, bar, strict=True):
        image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(image)
        predictions.extend(logits.argmax(1).to("cpu", torch.uint8).numpy())
        targets.extend(target.to(torch.uint8).numpy())
        subject = dataset.slices[indices[0]].subject
        if len(predictions) == remaining[subject]:
            numbers = [item.number for item in dataset.slices if item.subject == subject]
            yield Volume(subject, assemble(numbers, predictions), assemble(numbers, targets))
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
