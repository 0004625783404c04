"""Readers of scans as they come. Each finds its subjects, knows its classes, and reads one subject as a Case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import SimpleITK as sitk


class Case(NamedTuple):
    """One subject's scan."""

    images: list[sitk.Image]
    """A 3-D volume for each channel, all on one grid."""
    label: sitk.Image
    """Label values, integers, on the same grid."""
    files: list[str]
    """What it was read from, relative to the source's folder."""


class Source(Protocol):
    """What `data.writer.write_data` needs of a source."""

    def subjects(self) -> list[str]:
        """All subjects that the source has."""

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """Label value -> class name, the background first; with `skip_bad`, by those subjects that can be read."""

    def read(self, subject: str) -> Case:
        """One subject. Raises InputError, naming the file, for whatever is wrong with it."""
