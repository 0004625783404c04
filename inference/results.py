"""The segmentation of a scan: written in the scan's own geometry, measured and scored."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

from data.colors import class_colors
from data.description import Labels
from data.nifti import write_nifti
from data.png import unpack_color
from data.sources import dicom_seg_writer
from data.sources.dicom import write_series
from data.volumes import assemble, like, to_scan
from inference.networks import Ensemble
from inference.output import file_of
from inference.scans import Scan
from utils import InputError, atomic_path


@dataclass(frozen=True)
class Segmentation:
    """A segmented scan: `image` and its probabilities on the scan's own grid, the others on that of its slices."""

    scan: Scan
    labels: Labels
    slices: np.ndarray
    """Class indices, uint8 (D, H, W), on the grid of its slices, where main.py scores."""
    image: sitk.Image
    """Class indices; where slices were resampled, from linearly interpolated probabilities."""
    checkpoints: Sequence[Path] = ()
    """Of the networks that it is of."""
    slice_probabilities: np.ndarray | None = None
    """float32 (classes, D, H, W), on the grid of its slices."""

    @property
    def values(self) -> np.ndarray:
        """The labels' values (D, H, W)."""
        return self.labels.to_values(sitk.GetArrayViewFromImage(self.image))

    @property
    def probabilities(self) -> np.ndarray:
        """The probability of each class, float32 (classes, D, H, W)."""
        maps = probability_maps(self.scan, self.slice_probabilities)
        return np.stack([sitk.GetArrayViewFromImage(each) for each in maps])

    @property
    def voxels(self) -> dict[str, int]:
        """The voxels of each class but background."""
        names = self.labels.names
        counts = np.bincount(sitk.GetArrayViewFromImage(self.image).ravel(), minlength=len(names))
        return dict(zip(names[1:], counts[1:].tolist(), strict=True))

    @property
    def ml(self) -> dict[str, float] | None:
        """The volume of each class but background in ml; None where the spacing is not known."""
        if self.scan.geometry.spacing is None:
            return None
        voxel = math.prod(self.image.GetSpacing()) / 1000
        return {name: count * voxel for name, count in self.voxels.items()}

    def save(self, path: str | Path) -> None:
        """Write the labels' values to `path`: NIfTI (.nii.gz) or, of a picture, a mask (.png).

        Raises InputError for a name with another ending, and for a file of the scan.
        """
        path, ending = Path(path), ".png" if self.scan.is_picture else ".nii.gz"
        if not path.name.endswith(ending):
            raise InputError(f"{path}: the name of a segmentation of {self.scan.name} must end with {ending}")
        if path.resolve() in {file.resolve() for file in self.scan.files}:
            raise InputError(f"{path}: is the scan itself, which results never replace; choose another name")
        if self.scan.is_picture:
            _write_mask(path, self)
        else:
            write_nifti(path, like(self.image, self.values), self.scan.header)


def on_own_grid(scan: Scan, probabilities: np.ndarray, ensemble: Ensemble) -> Segmentation:
    """Probabilities (classes, D, H, W) of a scan's slices -> its segmentation."""
    slices = assemble(scan.numbers, list(ensemble.classify(probabilities)))
    image = to_scan(slices, scan.geometry)
    if scan.geometry.was_resampled:
        maps = probability_maps(scan, probabilities)  # a view of an image is good as long as the image is there
        image = like(image, ensemble.classify(np.stack([sitk.GetArrayViewFromImage(each) for each in maps])))
    identity, checkpoints = ensemble.identity, [network.path for network in ensemble.networks]
    return Segmentation(scan, identity.labels, slices, image, checkpoints, probabilities)


def probability_maps(scan: Scan, probabilities: np.ndarray) -> list[sitk.Image]:
    """Probabilities (classes, D, H, W) of slices -> each class's on the scan's own grid."""
    maps = [to_scan(assemble(scan.numbers, list(each)), scan.geometry, smooth=True) for each in probabilities]
    there = assemble(scan.numbers, list(np.ones_like(probabilities[0])))
    maps[0] += 1 - to_scan(there, scan.geometry, smooth=True)  # where no slice is, is background
    return maps


def _write_mask(path: Path, segmentation: Segmentation) -> None:
    """Write a picture's mask in the values of masks, whose palette is that of the training masks or of the pages."""
    labels = segmentation.labels
    classes = sitk.GetArrayViewFromImage(segmentation.image)[0]
    codes = np.array(labels.codes, np.min_scalar_type(max(labels.codes)))[classes]
    picture = Image.fromarray(codes)
    if codes.dtype == np.uint8:  # codes of 16 bits have no palette
        palette = np.zeros((256, 3), np.uint8)
        colors = class_colors(len(labels.names))
        palette[list(labels.codes)] = [unpack_color(color) for color in labels.colors] or colors
        picture.putpalette(palette.tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary)


def write_dicom(out: Path, segmentation: Segmentation) -> None:
    """Write the DICOM segmentation NAME.seg.dcm of a scan that was a series."""
    scan, names = segmentation.scan, segmentation.labels.names
    path, made_by = out / file_of("dicom", scan.name), segmentation.checkpoints
    dicom_seg_writer.write_segmentation(path, segmentation.image, scan.series, names, made_by)


def write_dicom_series(out: Path, segmentation: Segmentation) -> None:
    """Write the series NAME_dicom of a scan that was one, in the labels' values."""
    scan = segmentation.scan
    values = like(segmentation.image, segmentation.values)
    write_series(out / file_of("dicom_series", scan.name), values, scan.series)


def write_probabilities(out: Path, segmentation: Segmentation) -> None:
    """Write NAME_probabilities.nii.gz, with the classes along its fourth axis."""
    scan = segmentation.scan
    maps = probability_maps(scan, segmentation.slice_probabilities)
    write_nifti(out / file_of("probabilities", scan.name), sitk.JoinSeries(maps), scan.header)


def measure(segmentation: Segmentation) -> list[dict[str, Any]]:
    """A row for each class: its voxels, where the spacing is known its ml, and the file or folder of the scan."""
    ml, scan = segmentation.ml, segmentation.scan
    rows = []
    for name, count in segmentation.voxels.items():
        row = {"scan": scan.name, "class": name, "voxels": count}
        if ml is not None:
            row["ml"] = round(ml[name], 3)
        if scan.files:  # a name may hold bytes that are no text
            row["file"] = os.fsencode(scan.files[0].absolute()).decode(errors="backslashreplace")
        rows.append(row)
    return rows
