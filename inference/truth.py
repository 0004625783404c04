"""The truth of a scan, and the scores of its segmentation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from data.description import Labels, description_beside, read_description
from data.geometry import Geometry
from data.listing import list_images
from data.masks import MaskValues, check_colors
from data.png import PICTURES, read_mask
from data.preparation import Preparation
from data.volume_files import aligned, read_label
from data.volumes import assemble, to_scan
from inference.results import Segmentation
from inference.scans import Scan, check_preparation
from metrics import score_subject
from utils import InputError, some


@dataclass(frozen=True)
class Truth:
    """What the segmentation of a scan is held against."""

    target: np.ndarray
    """Class indices (D, H, W)."""
    spacing: Sequence[float] | None
    """Of D, H and W in mm."""
    of_slices: bool
    """Whether it lies on the grid of the scan's slices, else on the scan's own."""


def check_truth(truth: Sequence[Path], labels: Labels) -> None:
    """Raises InputError where masks of pictures among `truth` differ in what the values of their palettes mean."""
    if labels.colors:
        return
    files = [path for each in truth for path in (sorted(each.iterdir()) if each.is_dir() else [each])]
    masks = []
    for path in files:
        if path.suffix.lower() in (".png", ".bmp") and path.is_file():
            with contextlib.suppress(InputError):  # said where it is the mask of a picture
                masks.append(MaskValues.of(read_mask(path), path))
    check_colors(masks, Path("dataset.json"))


def read_truth(path: Path, scan: Scan, labels: Labels, preparation: Preparation | None) -> Truth:
    """Masks in a GT folder, or in that of a split, a label volume, or a mask of a picture.

    Raises InputError for what is not of this scan, or has other labels or another preparation than the network.
    """
    if (path / "GT").is_dir():
        path /= "GT"
    nothing = assemble(scan.numbers, list(np.zeros_like(scan.images[0], np.uint8)))
    image = to_scan(nothing, scan.geometry)
    mask = _mask_of(scan, path)
    if mask is not None:
        target = labels.to_classes(read_mask(mask), mask)[None]
        shape = image.GetSize()[::-1]
        if target.shape != shape:
            raise InputError(
                f"{mask}: is {_size(target.shape)} pixels, and the picture {scan.name} {_size(shape)}; "
                "both must be of one size"
            )
        return Truth(target, None, of_slices=False)
    if path.is_dir():
        masks = read_masks(path, scan, labels, preparation)
        return Truth(assemble(scan.numbers, masks), scan.geometry.array_spacing, of_slices=True)
    label = aligned(read_label(path), path, image, Path(scan.name))
    target = labels.values_to_classes(sitk.GetArrayFromImage(label), path)
    spacing = image.GetSpacing()[::-1] if scan.geometry.spacing is not None else None
    return Truth(target, spacing, of_slices=False)


def score(segmentation: Segmentation, truth: Truth) -> list[dict[str, Any]]:
    """The rows of a subject in scores.csv."""
    labels, prediction = segmentation.labels, segmentation.slices
    if not truth.of_slices:
        prediction = sitk.GetArrayViewFromImage(segmentation.image)
    rows = score_subject(prediction, truth.target, labels.names, truth.spacing, labels.regions, labels.tolerances)
    return [{"subject": segmentation.scan.name} | row for row in rows]


def _mask_of(scan: Scan, truth: Path) -> Path | None:
    """The mask of a picture: the file itself, or the one of its name in a folder that has no numbered slices."""
    if not scan.is_picture:
        return None
    if truth.is_file():
        return truth if truth.suffix.lower() in PICTURES else None
    if any(truth.glob("Subj_*slice_*.png")):
        return None
    found = [truth / f"{scan.name}{ending}" for ending in (".png", ".bmp") if (truth / f"{scan.name}{ending}").exists()]
    if len(found) != 1:
        raise InputError(f"{truth}: has {len(found)} masks called {scan.name}.png or .bmp; each picture must have one")
    return found[0]


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]} x {shape[1]}"


def read_masks(folder: Path, scan: Scan, labels: Labels, preparation: Preparation | None) -> list[np.ndarray]:
    """Class indices (H, W) of the scan's slices from a GT folder. Raises InputError for masks that are not theirs."""
    described = read_description(description_beside(folder))
    theirs = described.labels
    if theirs and (theirs.names, theirs.codes) != (labels.names, labels.codes):
        raise InputError(f"{folder}: its dataset.json gives other labels than the network was trained on")
    check_preparation(folder, preparation, described.preparation)
    _check_geometry(scan, described.geometry.get(scan.name, Geometry()), folder)
    subjects = list_images(folder)
    if scan.name not in subjects:
        others = some(list(subjects))
        raise InputError(
            f"{folder}: has no masks of subject {scan.name} but of {others}; call the scan's file as its subject, or "
            "give its label volume"
        )
    masks = {number: paths[0] for number, paths in subjects[scan.name]}
    for number in sorted({*masks, *scan.numbers}):
        if number not in masks:
            raise InputError(f"{folder}: has no mask of subject {scan.name}, slice {number}; add it")
        if number not in scan.numbers:
            raise InputError(f"{masks[number]}: is the mask of a slice that the scan does not have; remove it")
    height, width = scan.images.shape[2:]
    reader = theirs or labels
    stored = {number: read_mask(masks[number]) for number in scan.numbers}
    if not reader.colors:
        values = [MaskValues.of(mask, masks[number]) for number, mask in stored.items()]
        check_colors(values, description_beside(folder))
    classes = []
    for number in scan.numbers:
        mask = reader.to_classes(stored[number], masks[number])
        if mask.shape != (height, width):
            raise InputError(f"{masks[number]}: is no mask of {width} x {height} pixels, as its slice is")
        classes.append(mask)
    return classes


def _check_geometry(scan: Scan, stated: Geometry, folder: Path) -> None:
    """Raises InputError where masks lie elsewhere than the slices, by what their dataset.json says; rounding passes."""
    ours, theirs = scan.geometry, stated.of_slices(min(scan.numbers), max(scan.numbers))
    spacing = min(ours.spacing or (1.0,))
    tolerances = {"size": 0.0, "spacing": 1e-3 * spacing, "direction": 1e-3, "origin": 1e-2 * spacing}
    for part, tolerance in tolerances.items():
        pair = getattr(ours, part), getattr(theirs, part)
        if None not in pair and not np.allclose(*pair, rtol=0, atol=tolerance):
            shown = " and ".join(f"({', '.join(f'{value:.4g}' for value in values)})" for values in pair)
            raise InputError(
                f"{folder}: its dataset.json says that the masks of subject {scan.name} have another {part} than the "
                f"scan's slices: {shown}; prepare both alike, or give the label volume"
            )
