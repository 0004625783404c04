"""Readers of scans as they come. Each finds its subjects, knows its classes, and reads one subject as a Case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import SimpleITK as sitk

from data.preparation import Preparation, Slices
from utils import InputError

T = TypeVar("T")


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
    background: int = 0
    """The label value of pixels that are added around pictures."""

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
        label = preparation.fit(self.label, self.background)
        return Slices(images, label, preparation.geometry_of_pictures((columns, rows, span)))


def read_each(read: Callable[[str], T], subjects: Sequence[str], skip_bad: bool) -> dict[str, T]:
    """Subject -> what `read` makes of it; with `skip_bad`, of those subjects that can be read."""

    def attempt(subject: str) -> T | None:
        try:
            return read(subject)
        except InputError:
            if not skip_bad:
                raise
            return None  # the subject is left out when it is read as a whole

    with ThreadPoolExecutor(4) as pool:
        outcomes = zip(subjects, pool.map(attempt, subjects), strict=True)
        return {subject: outcome for subject, outcome in outcomes if outcome is not None}


class Source(Protocol):
    """What `data.writer.write_data` needs of a source."""

    def subjects(self) -> list[str]:
        """All subjects that the source has."""

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """Label value -> class name, the background first; with `skip_bad`, by those subjects that can be read."""

    def classes_of(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[str, set[int]]:
        """Subject -> label values of the classes that it has, without the background. Reads labels, not images."""

    def read(self, subject: str) -> Case:
        """One subject. Raises InputError, naming the file, for whatever is wrong with it."""
