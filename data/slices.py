"""The slices of a split as a dataset of tensors: pairs of image and target, in batches."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from data.augment import Augmentation
from data.png import read_pair
from utils import InputError

IGNORED = -100  # target of pixels that pad a batch; cross-entropy leaves them out
MAX_CLASSES = 256  # targets travel as uint8
DIGITS = "0123456789"  # not str.isdigit(), which takes those of all scripts


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts 2 before 10, also where a number has more digits than Python converts."""
    parts = (part for part in re.split(r"([0-9]+)", text) if part)
    return [(0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in DIGITS else (1, 0, part) for part in parts]


class Slice(NamedTuple):
    """One slice's files."""

    subject: str
    number: int
    images: tuple[Path, ...]
    mask: Path
    shape: tuple[int, int, int] | None = None
    """Channels, rows and columns when it was checked."""


class Labels(NamedTuple):
    """The one table between mask values and classes: class k is called names[k] and stored as codes[k]."""

    names: tuple[str, ...]
    codes: tuple[int, ...]

    def to_classes(self, codes: np.ndarray, path: Path) -> np.ndarray:
        """Mask values (H, W) or (D, H, W) -> class indices uint8 of the same shape.

        Raises InputError that says which unknown value, where and how many pixels.
        """
        table = np.full(max(int(codes.max()), *self.codes) + 1, MAX_CLASSES, np.uint16)
        table[list(self.codes)] = range(len(self.codes))
        classes = table[codes]
        unknown = classes == MAX_CLASSES
        if unknown.any():
            value = codes[unknown][0]
            axes = ("slice", "row", "column")[-codes.ndim :]
            place = ", ".join(f"{axis} {k}" for axis, k in zip(axes, np.argwhere(codes == value)[0], strict=True))
            raise InputError(
                f"{path}: unknown mask value {value} at {place} ({(codes == value).sum()} pixels); "
                f"known are {list(self.codes)}. Correct the mask, or list its values under labels in dataset.json"
            )
        return classes.astype(np.uint8)


class SliceDataset(Dataset):
    """The slices of one split, subject by subject and in the order of their numbers.

    Item i is the image, float32 (channels, H, W) in [0, 1], and the target, int64 (H, W). With an augmentation, it is
    drawn from (seed, epoch, i) alone, so that an epoch is the same for any number of workers. Raises InputError for
    files that are not any more what they were when they were checked.
    """

    def __init__(
        self, slices: Sequence[Slice], labels: Labels, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self.slices = sorted(slices, key=lambda s: (natural(s.subject), s.subject, s.number))
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        item = self.slices[index]
        image, codes = read_pair(item.images, item.mask)
        if item.shape not in (None, image.shape):
            raise InputError(
                f"{item.images[0]}: was {_shape(item.shape)} and is {_shape(image.shape)} now; leave the data as it is "
                "during training, then --resume"
            )
        target = self.labels.to_classes(codes, item.mask)
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            image, target = self.augmentation(image, target, rng)
        return torch.from_numpy(image), torch.from_numpy(target.astype(np.int64))

    def fingerprint(self) -> str:
        """A text that is the same for the same slices only."""
        names = "\n".join(f"{item.subject} {item.number}" for item in self.slices)
        return hashlib.sha256(names.encode()).hexdigest()

    def subjects(self) -> dict[str, list[int]]:
        """Subject -> indices of its slices, in the order of their numbers."""
        indices: dict[str, list[int]] = {}
        for index, item in enumerate(self.slices):
            indices.setdefault(item.subject, []).append(index)
        return indices

    def places(self, indices: Sequence[int]) -> list[int]:
        """Where slices of one subject are in its volume (`data.volumes.assemble`)."""
        first = self.slices[self.subjects()[self.slices[indices[0]].subject][0]].number
        return [self.slices[index].number - first for index in indices]


class ShuffledBatches:
    """Batch sampler for training: every slice once in an epoch, in an order that follows from seed and epoch alone.

    Of several processes, each takes every `world`-th slice of a batch. A last batch with fewer slices than there are
    processes goes to all of them as a whole, so that `SyncBatchNorm` has its statistics, and counts in the first alone.
    """

    def __init__(self, dataset: SliceDataset, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.slices, self.batch_size, self.seed = len(dataset), batch_size, seed
        self.rank, self.world = rank, world
        self.begin(epoch=0)

    def begin(self, epoch: int, step: int = 0) -> None:
        """Go on with `epoch` at `step`, counted from 0."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self.order = torch.randperm(self.slices, generator=generator).tolist()
        self.epoch, self.step = epoch, step

    def batch(self, step: int) -> list[int]:
        """The slices of a step, of all processes together."""
        return self.order[step * self.batch_size :][: self.batch_size]

    def weight(self, step: int) -> float:
        """What the loss of this process counts in the mean over the processes, so that each slice counts the same."""
        batch = self.batch(step)
        if len(batch) < self.world:
            return self.world if self.rank == 0 else 0
        return len(batch[self.rank :: self.world]) * self.world / len(batch)

    def __len__(self) -> int:
        return -(-self.slices // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.step, len(self)):
            batch = self.batch(step)
            yield batch if len(batch) < self.world else batch[self.rank :: self.world]


class SubjectBatches:
    """Batch sampler for evaluation: the slices of `subjects` in order, at most `batch_size` in each, of one subject."""

    def __init__(self, dataset: SliceDataset, subjects: Sequence[str], batch_size: int) -> None:
        indices = dataset.subjects()
        self.batches = [
            indices[subject][start : start + batch_size]
            for subject in subjects
            for start in range(0, len(indices[subject]), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def read_batches(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `loader`; an InputError in one of its processes is raised here as it was there.

    Its processes begin with SIGTERM and SIGUSR1 blocked: clusters send these to every process of a job, and it is the
    training that decides what to do.
    """
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
        try:
            batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from batches
        return
    except InputError as error:
        # Without its traceback, which holds PyTorch's loader in a cycle, the processes end now and in order.
        message = error.with_traceback(None).args[0]
    if loader.num_workers > 0:
        # PyTorch hands on the text of the process's traceback; its last line is the error's.
        message = message.rstrip().rpartition(f"\n{InputError.__module__}.InputError: ")[2]
    raise InputError(message)


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channels of {shape[1]} x {shape[2]} pixels"


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack a batch; smaller slices are padded at the right and bottom, images with 0 and targets with IGNORED."""
    height, width = (max(target.shape[axis] for _, target in items) for axis in (0, 1))
    margins = [(0, width - target.shape[1], 0, height - target.shape[0]) for _, target in items]
    images = [F.pad(image, margin) for (image, _), margin in zip(items, margins, strict=True)]
    targets = [F.pad(target, margin, value=IGNORED) for (_, target), margin in zip(items, margins, strict=True)]
    return torch.stack(images), torch.stack(targets)
