"""Readers of scans as they come. Each finds its subjects, knows its classes, and reads one subject as a Case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import SimpleITK as sitk

from data.preparation import Preparation, Slices


class Case(NamedTuple):
    """One subject's scan."""

    images: list[sitk.Image]
    """A 3-D volume for each channel, all on one grid."""
    label: sitk.Image
    """Label values, integers, on the same grid."""
    files: list[str]
    """What it was read from, relative to the source's folder."""
    numbers: Sequence[int] = ()
    """Of the slices; none: from 1."""
    channels: Sequence[str] = ()
    """Names of the channels, where they are known."""

    def has(self, value: int) -> bool:
        """Whether a label value is anywhere in the scan."""
        return bool((sitk.GetArrayViewFromImage(self.label) == value).any())

    def prepare(self, preparation: Preparation) -> Slices:
        """Its slices. Raises InputError as `Preparation.apply` does."""
        return preparation.apply(self.images, self.label)


class PictureCase(Case):
    """One subject's pictures: arrays of stored values instead of volumes.

    `images` has an array (D, H, W), or (D, H, W, 3) of RGB, for each file of a slice; `label` is (D, H, W).
    """

    def has(self, value: int) -> bool:
        """Whether a label value is anywhere in the pictures."""
        return bool((self.label == value).any())

    def prepare(self, preparation: Preparation) -> Slices:
        """The pictures of the size that is wanted, with their values."""
        rows, columns = self.label.shape[1:]
        span = max(self.numbers) - min(self.numbers) + 1
        images = [preparation.fit(pixels) for pixels in self.images]
        return Slices(images, preparation.fit(self.label), preparation.geometry_of_pictures((columns, rows, span)))


class Source(Protocol):
    """What `data.writer.write_data` needs of a source."""

    def subjects(self) -> list[str]:
        """All subjects that the source has."""

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """Label value -> class name, the background first; with `skip_bad`, by those subjects that can be read."""

    def read(self, subject: str) -> Case:
        """One subject. Raises InputError, naming the file, for whatever is wrong with it."""
