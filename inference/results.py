"""The segmentation of a scan: written in the scan's own geometry, measured and scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from data.description import Labels
from data.folder import list_images
from data.geometry import Grid
from data.png import read_codes
from data.sources.dicom import write_series
from data.sources.nifti import check_same_grid, read_label
from data.volumes import assemble, like, to_scan, write_nifti
from inference.networks import Ensemble
from inference.scans import Scan, description_of
from metrics import score_subject
from utils import InputError


@dataclass(frozen=True)
class Segmentation:
    """Class indices of a scan."""

    scan: Scan
    labels: Labels
    slices: np.ndarray
    """uint8 (D, H, W), on the grid of its slices, where main.py scores."""
    image: sitk.Image
    """On the scan's own grid; where slices were resampled, from linearly interpolated probabilities."""


def on_own_grid(scan: Scan, probabilities: np.ndarray, ensemble: Ensemble) -> Segmentation:
    """Probabilities (classes, D, H, W) of a scan's slices -> its segmentation."""
    slices = assemble(scan.numbers, list(ensemble.classify(probabilities)))
    image = to_scan(slices, scan.geometry)
    if scan.geometry.was_resampled:
        maps = probability_maps(scan, probabilities)  # a view of an image is good as long as the image is there
        image = like(image, ensemble.classify(np.stack([sitk.GetArrayViewFromImage(each) for each in maps])))
    return Segmentation(scan, ensemble.labels, slices, image)


def probability_maps(scan: Scan, probabilities: np.ndarray) -> list[sitk.Image]:
    """Probabilities (classes, D, H, W) of slices -> each class's on the scan's own grid."""
    maps = [to_scan(assemble(scan.numbers, list(each)), scan.geometry, smooth=True) for each in probabilities]
    there = assemble(scan.numbers, list(np.ones_like(probabilities[0])))
    maps[0] += 1 - to_scan(there, scan.geometry, smooth=True)  # where no slice is, is background
    return maps


def write_segmentation(out: Path, segmentation: Segmentation, dicom: bool) -> None:
    """Write NAME.nii.gz, with `dicom` also the series NAME_dicom of a scan that was one; in the labels' values."""
    scan, image = segmentation.scan, segmentation.image
    written = like(image, segmentation.labels.to_values(sitk.GetArrayViewFromImage(image)))
    write_nifti(out / f"{scan.name}.nii.gz", written)
    if dicom and scan.series is not None:
        write_series(out / f"{scan.name}_dicom", written, scan.series)


def write_probabilities(out: Path, scan: Scan, probabilities: np.ndarray) -> None:
    """Write NAME_probabilities.nii.gz, with the classes along its fourth axis."""
    maps = probability_maps(scan, probabilities)
    write_nifti(out / f"{scan.name}_probabilities.nii.gz", sitk.JoinSeries(maps))


def measure(segmentation: Segmentation) -> list[dict[str, Any]]:
    """A row for each class: its voxels, and where the spacing is known its ml, in the scan's own grid."""
    scan, image, names = segmentation.scan, segmentation.image, segmentation.labels.names
    counts = np.bincount(sitk.GetArrayViewFromImage(image).ravel(), minlength=len(names))
    rows = []
    for name, count in zip(names[1:], counts[1:], strict=True):
        row = {"scan": scan.name, "class": name, "voxels": int(count)}
        if scan.geometry.spacing is not None:
            row["ml"] = round(float(count * np.prod(image.GetSpacing()) / 1000), 3)
        rows.append(row)
    return rows


def score(segmentation: Segmentation, truth: Path) -> list[dict[str, Any]]:
    """Rows of scores: against a label volume on the scan's own grid, against masks in a GT folder on that of slices."""
    scan, image, labels = segmentation.scan, segmentation.image, segmentation.labels
    if truth.is_dir():
        prediction = segmentation.slices
        target = assemble(scan.numbers, read_masks(scan, truth, labels))
        spacing = scan.geometry.array_spacing
    else:
        label = read_label(truth)
        check_same_grid(label, truth, image, Path(scan.name))
        prediction = sitk.GetArrayFromImage(image)
        target = labels.values_to_classes(sitk.GetArrayFromImage(label), truth)
        spacing = Grid.of(image).spacing[::-1] if scan.geometry.spacing is not None else None
    rows = score_subject(prediction, target, labels.names, spacing)
    return [{"subject": scan.name} | row for row in rows]


def read_masks(scan: Scan, folder: Path, labels: Labels) -> list[np.ndarray]:
    """Class indices (H, W) of the scan's slices from a GT folder. Raises InputError for masks that are not theirs."""
    theirs = description_of(folder).labels
    if theirs and (theirs.names, theirs.codes) != (labels.names, labels.codes):
        raise InputError(f"{folder}: its dataset.json gives other labels than the network was trained on")
    masks = {number: paths[0] for number, paths in list_images(folder).get(scan.name, [])}
    height, width = scan.images.shape[2:]
    classes = []
    for number in scan.numbers:
        if number not in masks:
            raise InputError(f"{folder}: has no mask of subject {scan.name}, slice {number}")
        mask = labels.to_classes(read_codes(masks[number]), masks[number])
        if mask.shape != (height, width):
            raise InputError(f"{masks[number]}: is no mask of {width} x {height} pixels, as its slice is")
        classes.append(mask)
    return classes
