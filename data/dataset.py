"""The slices of a split as a dataset of tensors: pairs of image and target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from config import AugmentationConfig
from data.augment import augment
from data.description import Labels
from data.mirror import Mirror
from data.png import read_image, read_pair
from utils import InputError, natural


class Slice(NamedTuple):
    """One slice's files."""

    subject: str
    number: int
    images: tuple[Path, ...]
    mask: Path
    shape: tuple[int, int, int] | None = None
    """Channels, rows and columns when it was checked."""
    digest: str = ""
    """Of its pixels and mask when it was checked; see `digest_of`."""
    classes: tuple[int, ...] = ()
    """Indices of the classes in its mask when it was checked, without the background."""


def digest_of(image: np.ndarray, codes: np.ndarray) -> str:
    """A text that follows from the values of an image (channels, H, W) and its mask (H, W) alone, not from files."""
    digest = hashlib.sha256(f"{image.shape} {image.dtype}".encode())
    digest.update(np.ascontiguousarray(image))
    digest.update(np.ascontiguousarray(codes, np.uint32))
    return digest.hexdigest()


class SubjectSlices:
    """Slices to look at, subject by subject."""

    labels: Labels
    slices: Sequence[Any]
    """Each has a `subject` and a `number`."""

    @cached_property
    def _indices(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, item in enumerate(self.slices):
            indices.setdefault(item.subject, []).append(index)
        return indices

    def subjects(self) -> dict[str, list[int]]:
        """Subject -> indices of its slices, in the order of their numbers."""
        return self._indices

    def positions(self, subject: str) -> list[int]:
        """Where a subject's slices are in its volume (`data.volumes.assemble`), in the order of `subjects`."""
        numbers = [self.slices[index].number for index in self._indices[subject]]
        return [number - numbers[0] for number in numbers]

    def picture(self, index: int) -> np.ndarray:
        """What is shown of a slice, float32 (1 or 3, H, W) in [0, 1]."""
        raise NotImplementedError


class SliceDataset(SubjectSlices, Dataset):
    """The slices of one split, subject by subject and in the order of their numbers.

    Item i is the image, float32 (channels, H, W) in [0, 1], and the target, class indices int64 (H, W), IGNORED where
    nobody annotated it. An augmentation is drawn from (seed, epoch, i) alone, so that an epoch is the same for any
    number of workers: set `epoch` before each one. Workers that stay from epoch to epoch (persistent_workers of a
    DataLoader) do not see it. Raises InputError for files whose size or channels have changed since they were checked.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        labels: Labels,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
        mirrors: Mapping[str, Mirror | None] | None = None,
    ) -> None:
        self.slices = sorted(slices, key=lambda s: (natural(s.subject), s.subject, s.number))
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed
        self.mirrors = mirrors or {}
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self))[index]  # the augmentation is that of the slice, also of one counted from the end
        item = self.slices[index]
        image, mask = read_pair(item.images, item.mask)
        if item.shape not in (None, image.shape):
            raise InputError(
                f"{item.images[0]}: was {_shape(item.shape)} and is {_shape(image.shape)} now; leave the data as it is "
                "during training, then resume"
            )
        target = self.labels.to_classes(mask, item.mask)
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            image, target = augment(image, target, self.augmentation, rng, self.mirrors.get(item.subject))
        return torch.from_numpy(image), torch.from_numpy(target.astype(np.int64))

    def picture(self, index: int) -> np.ndarray:
        """What is shown of a slice: its first image."""
        return read_image(self.slices[index].images[0])

    def fingerprint(self) -> str:
        """A text that is the same for the same slices only: their names, pixels and masks."""
        return _fingerprint(self.slices)

    def fingerprints(self) -> dict[str, str]:
        """Subject -> the same of its slices, without its name."""
        return {
            subject: _fingerprint([self.slices[index]._replace(subject="") for index in indices])
            for subject, indices in self.subjects().items()
        }


def _fingerprint(slices: Sequence[Slice]) -> str:
    lines = "\n".join(f"{item.subject} {item.number} {item.digest}" for item in slices)
    return hashlib.sha256(lines.encode()).hexdigest()


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channels of {shape[1]} x {shape[2]} pixels"
