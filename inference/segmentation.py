"""Subjects through a network: the slices of a data set for scores, the slices of a scan for its segmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import EvaluationConfig
from data.batches import SubjectBatches, slice_loader
from data.dataset import SliceDataset
from data.mirror import Mirror
from data.volumes import Volume, assemble, largest_components
from training.device import Machine
from training.distributed import gather, shard
from training.epoch import progress
from utils import IGNORED, UNCOUNTED


def segment_split(
    model: nn.Module, dataset: SliceDataset, options: EvaluationConfig, machine: Machine, title: str
) -> list[Volume]:
    """All subjects of a split, each segmented in one of the processes, in the order of the data set."""
    own = shard(list(dataset.subjects()))
    return gather(list(segment_subjects(model, dataset, own, options, machine, title)))


@torch.inference_mode()
def segment_subjects(
    model: nn.Module,
    dataset: SliceDataset,
    subjects: Sequence[str],
    options: EvaluationConfig,
    machine: Machine,
    title: str = "segment",
) -> Iterator[Volume]:
    """Segment the slices of `subjects`, one forward pass each, and yield them as volumes, subject by subject."""
    model.eval()
    indices_of = dataset.subjects()
    batches = SubjectBatches(dataset, subjects, options.eval_batch_size)
    loader = slice_loader(dataset, batches, machine.workers, machine.pin_memory)
    waiting = list(subjects)
    predictions, targets, finite = [], [], True
    for image, target in progress(loader, title, "batch"):
        with machine.autocast():
            logits = model(machine.copy(image))
        finite = finite and bool(logits.isfinite().all())
        predictions.extend(logits.argmax(1).to("cpu", torch.uint8).numpy())
        targets.extend(target.where(target != UNCOUNTED, IGNORED).to(torch.uint8).numpy())
        subject = waiting[0]  # a batch has slices of one subject only
        if len(predictions) == len(indices_of[subject]):
            numbers = [dataset.slices[index].number for index in indices_of[subject]]
            prediction = np.stack(predictions)
            if options.largest_component:
                prediction = largest_components(prediction)
            yield Volume(subject, assemble(numbers, prediction), assemble(numbers, targets), finite)
            waiting.pop(0)
            predictions, targets, finite = [], [], True


def check_finite(volumes: Sequence[Volume], checkpoint: Path) -> None:
    """Raises FloatingPointError where the network of a checkpoint gave logits for a subject that are not finite."""
    for volume in volumes:
        if not volume.finite:
            raise not_finite(f"subject {volume.subject}", [checkpoint])


def not_finite(what: str, checkpoints: Sequence[Path]) -> FloatingPointError:
    """The error for a subject or scan of which networks make nothing."""
    names = ", ".join(map(str, checkpoints))
    return FloatingPointError(
        f"{what}: the network in {names} gives values that are not finite (NaN); it cannot segment this with its "
        "weights and --amp, so use another checkpoint, or train with a lower --lr or --amp off"
    )


@torch.inference_mode()
def segment_volume(
    models: Sequence[nn.Module],
    images: np.ndarray,
    batch_size: int,
    machine: Machine,
    flips: bool,
    mirror: Mirror | None = None,
) -> np.ndarray:
    """Images float32 (channels, D, H, W) -> class probabilities float32 (classes, D, H, W).

    They are the mean over `models` (in eval mode) and, with `flips`, over the slices flipped along neither, either and
    both of their axes. What a flip along the axis of `mirror` has exchanged is exchanged back.
    """
    turns = [(), (-1,), (-2,), (-2, -1)] if flips else [()]
    slices = torch.from_numpy(np.ascontiguousarray(images)).transpose(0, 1)
    probabilities = None
    for at in range(0, len(slices), batch_size):
        batch = machine.copy(slices[at : at + batch_size])
        total = torch.zeros(())
        for model in models:
            for axes in turns:
                with machine.autocast():
                    logits = model(batch.flip(axes))
                flipped_back = logits.float().softmax(1).flip(axes).cpu()
                if mirror is not None and mirror.axis in axes:
                    flipped_back = flipped_back[:, mirror.exchanged[: logits.shape[1]].tolist()]
                total = total + flipped_back
        if probabilities is None:
            probabilities = torch.empty(total.shape[1], *slices[:, 0].shape)
        torch.div(total.transpose(0, 1), len(models) * len(turns), out=probabilities[:, at : at + batch_size])
    return probabilities.numpy()
