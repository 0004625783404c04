"""Pairs of image and label volumes, NIfTI or anything else that ITK reads, found by name patterns."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data.layout import Case
from data.volumes import Grid, fit_grid, place
from utils import InputError


@dataclass(frozen=True)
class NiftiPairs:
    """Images and labels in `folder`; the patterns hold {subject}. One image pattern for each channel."""

    folder: Path
    images: Sequence[str]
    label: str
    size: int | None = None
    """Crop or pad the slices about their center to this many rows and columns."""
    spacing: tuple[float, float] | None = None
    """Resample the slices to this spacing (x, y) in mm, images linearly, labels to the nearest."""

    def label_values(self, subjects: Sequence[str]) -> list[int]:
        """All values in the labels of `subjects`, in order, the background 0 in any case."""
        with ThreadPoolExecutor(4) as pool:
            labels = pool.map(lambda subject: _integers(self._read(self.label, subject)[1], subject), subjects)
            return sorted({0}.union(*(np.unique(label).tolist() for label in labels)))

    def read(self, subject: str) -> Case:
        """Raises InputError for a missing or unreadable file, and for volumes that do not share one grid."""
        label_path, label = self._read(self.label, subject)
        channels = []
        for pattern in self.images:
            path, image = self._read(pattern, subject)
            _check_same_grid(image, path, label, label_path)
            channels.append(image)
        orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(label.GetDirection())
        channels, label = [sitk.DICOMOrient(image, "LPS") for image in channels], sitk.DICOMOrient(label, "LPS")
        original = Grid.of(label)
        grid = fit_grid(original, self.size, self.spacing)
        arrays = [sitk.GetArrayFromImage(place(image, grid, smooth=self.spacing is not None)) for image in channels]
        geometry = grid.to_dict() | {"orientation": orientation, "direction": list(label.GetDirection())}
        if grid != original:
            geometry["original"] = original.to_dict()
        mask = _integers(place(label, grid, smooth=False), subject)
        return Case(subject, np.stack(arrays), mask, geometry)

    def _read(self, pattern: str, subject: str) -> tuple[Path, sitk.Image]:
        path = self.folder / pattern.replace("{subject}", subject)
        if not path.is_file():
            raise InputError(f"{path}: no such file for subject {subject}; check the pattern {pattern} and the split")
        try:
            image = sitk.ReadImage(path)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{path}: not a readable volume ({reason})") from None
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(f"{path}: has {image.GetDimension()} dimensions; give each channel as a 3-D volume")
        return path, image


def _check_same_grid(image: sitk.Image, path: Path, label: sitk.Image, label_path: Path) -> None:
    """NIfTI headers are float32, so positions may differ by a little: a hundredth of a voxel, not more."""
    if image.GetSize() != label.GetSize():
        raise InputError(f"{path}: has {image.GetSize()} voxels, {label_path} {label.GetSize()}; they must be the same")
    corners = [(0, 0, 0), tuple(n - 1 for n in image.GetSize())]
    tolerance = 0.01 * min(image.GetSpacing())
    for corner in corners:
        points = [volume.TransformIndexToPhysicalPoint(corner) for volume in (image, label)]
        if max(abs(a - b) for a, b in zip(*points, strict=True)) > tolerance:
            shown = ", ".join(f"({', '.join(f'{x:.2f}' for x in point)})" for point in points)
            raise InputError(
                f"{path}: lies elsewhere than {label_path} (voxel {corner} at {shown} mm); correct one of the headers"
            )


def _integers(label: sitk.Image, subject: str) -> np.ndarray:
    array = sitk.GetArrayFromImage(label)
    integers = np.rint(array).astype(np.int64)
    if not np.array_equal(array, integers) or integers.min() < 0:
        raise InputError(f"subject {subject}: the label volume holds values that are no class numbers 0, 1, 2, ...")
    return integers
