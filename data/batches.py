"""Which slices make a batch, and how they become one."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.dataset import SliceDataset
from utils import IGNORED, UNCOUNTED, InputError, OptionError, ceil_div

SHARED = Path("/dev/shm")


class ShuffledBatches:
    """Batch sampler for training: every slice once in an epoch, in an order that follows from seed and epoch alone.

    Of several processes, each takes every `world_size`-th slice of a batch. A last batch with fewer slices than
    processes goes to all of them as a whole, so that `SyncBatchNorm` has its statistics, and counts in the first alone.
    """

    def __init__(self, dataset: SliceDataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.slices, self.batch_size, self.seed = len(dataset), batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.begin(epoch=0)

    def begin(self, epoch: int, iteration: int = 0) -> None:
        """Go on with `epoch` at an iteration, counted from 0."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self.order = torch.randperm(self.slices, generator=generator).tolist()
        self.iteration = iteration

    def batch(self, iteration: int) -> list[int]:
        """The slices of an iteration, of all processes together."""
        return self.order[iteration * self.batch_size :][: self.batch_size]

    def weight(self, iteration: int) -> float:
        """What the loss of this process counts in the mean over the processes, so that each slice counts the same."""
        batch = self.batch(iteration)
        if len(batch) < self.world_size:
            return self.world_size if self.rank == 0 else 0
        return len(batch[self.rank :: self.world_size]) * self.world_size / len(batch)

    def __len__(self) -> int:
        return ceil_div(self.slices, self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.iteration, len(self)):
            batch = self.batch(iteration)
            yield batch if len(batch) < self.world_size else batch[self.rank :: self.world_size]


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


@dataclass
class Batch:
    """A batch as a loader's process hands it on: arrays go through its pipe, tensors would need room in /dev/shm."""

    images: np.ndarray
    """float32 (B, C, H, W)."""
    targets: np.ndarray
    """int16 (B, H, W), UNCOUNTED where pixels do not count."""

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What a network is trained on: images, and targets in int64."""
        return torch.from_numpy(self.images), torch.from_numpy(self.targets).long()

    def pin_memory(self) -> tuple[Tensor, Tensor]:
        """`tensors` in memory from which a GPU copies without waiting; a DataLoader with pin_memory calls it."""
        images, targets = self.tensors()
        return images.pin_memory(), targets.pin_memory()


def slice_loader(
    dataset: SliceDataset, batches: ShuffledBatches | SubjectBatches, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """What `read_batches` reads: `batches` of the data set, loaded by so many processes, or by this one for 0.

    Raises OptionError where /dev/shm has no room for the locks of the processes.
    """
    check_room(workers)
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pin_memory)


def read_batches(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, float32 (B, C, H, W), and targets, int64 (B, H, W), of each batch of a `slice_loader`.

    An InputError in one of its processes is raised here as it was there. They begin with SIGTERM, SIGUSR1 and SIGINT
    blocked: clusters and terminals send these to every process of a job, and the training decides what to do.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        for batch in batches:
            yield batch.tensors() if isinstance(batch, Batch) else batch
        return
    except InputError as error:
        message = error.with_traceback(None).args[0]
    # The traceback and this name hold PyTorch's iterator. Without them its processes end now and in order; in a cycle
    # with an error, they would wait for the end of the program and, with SIGTERM blocked, beyond it.
    del batches
    if loader.num_workers > 0:
        # PyTorch hands on the text of the process's traceback; its last line is the error's.
        message = message.rstrip().rpartition(f"\n{InputError.__module__}.InputError: ")[2]
    raise InputError(message)


def check_room(workers: int) -> None:
    """Raises OptionError where /dev/shm has no room for the locks of a loader's processes, a page for each lock."""
    locks = 3 * workers + 8 if workers else 0  # three of each process's queue, the others of all together
    room = os.statvfs(SHARED).f_bavail * os.statvfs(SHARED).f_frsize if SHARED.is_dir() else 0
    if room < locks * mmap.PAGESIZE:
        reason = f"{SHARED} has no room for their locks, {room >> 10} kB; use 0, or give it a megabyte"
        raise OptionError(f"workers {workers}: {reason} (shm-size of Docker)")


def collate(items: list[tuple[Tensor, Tensor]]) -> Batch:
    """Stack a batch; smaller slices are padded at the right and bottom with 0.

    Targets are UNCOUNTED there, and where they were IGNORED.
    """
    height, width = (max(target.shape[axis] for _, target in items) for axis in (0, 1))
    margins = [(0, width - target.shape[1], 0, height - target.shape[0]) for _, target in items]
    images = [F.pad(image, margin) for (image, _), margin in zip(items, margins, strict=True)]
    targets = [F.pad(target, margin, value=UNCOUNTED) for (_, target), margin in zip(items, margins, strict=True)]
    stacked = torch.stack(targets)
    return Batch(torch.stack(images).numpy(), stacked.where(stacked != IGNORED, UNCOUNTED).short().numpy())
