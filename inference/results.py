"""The segmentation of a scan: written in the scan's own geometry, measured and scored."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

from data.colors import class_colors
from data.description import Labels, description_beside, read_description
from data.geometry import Geometry
from data.listing import list_images
from data.masks import MaskValues, check_colors
from data.nifti import write_nifti
from data.png import PICTURES, read_mask, unpack_color
from data.preparation import Preparation
from data.sources import dicom_seg_writer
from data.sources.dicom import write_series
from data.volume_files import aligned, read_label
from data.volumes import assemble, like, to_scan
from inference.networks import Ensemble
from inference.output import file_of
from inference.scans import Scan, check_preparation
from metrics import score_subject
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
    preparation: Preparation | None = None
    """How the network's scans became slices."""
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
    return Segmentation(scan, identity.labels, slices, image, identity.preparation, checkpoints, probabilities)


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
    """A row for each class: its voxels, and where the spacing is known its ml."""
    ml = segmentation.ml
    rows = []
    for name, count in segmentation.voxels.items():
        row = {"scan": segmentation.scan.name, "class": name, "voxels": count}
        rows.append(row if ml is None else row | {"ml": round(ml[name], 3)})
    return rows


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


def score(segmentation: Segmentation, truth: Path) -> list[dict[str, Any]]:
    """Rows of scores: against a label volume on the scan's own grid, against masks in a GT folder on that of slices."""
    scan, image, labels = segmentation.scan, segmentation.image, segmentation.labels
    mask = _mask_of(scan, truth)
    if mask is not None:
        prediction = sitk.GetArrayFromImage(image)
        target = labels.to_classes(read_mask(mask), mask)[None]
        spacing = None
        if target.shape != prediction.shape:
            raise InputError(
                f"{mask}: is {_size(target)} pixels, and the picture {scan.name} {_size(prediction)}; "
                "both must be of one size"
            )
    elif truth.is_dir():
        prediction = segmentation.slices
        target = assemble(scan.numbers, read_masks(segmentation, truth))
        spacing = scan.geometry.array_spacing
    else:
        label = read_label(truth)
        label = aligned(label, truth, image, Path(scan.name))
        prediction = sitk.GetArrayFromImage(image)
        target = labels.values_to_classes(sitk.GetArrayFromImage(label), truth)
        spacing = image.GetSpacing()[::-1] if scan.geometry.spacing is not None else None
    rows = score_subject(prediction, target, labels.names, spacing, labels.regions, labels.tolerances)
    return [{"subject": scan.name} | row for row in rows]


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


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[2]} x {picture.shape[1]}"


def read_masks(segmentation: Segmentation, folder: Path) -> list[np.ndarray]:
    """Class indices (H, W) of the scan's slices from a GT folder. Raises InputError for masks that are not theirs."""
    scan, labels = segmentation.scan, segmentation.labels
    described = read_description(description_beside(folder))
    theirs = described.labels
    if theirs and (theirs.names, theirs.codes) != (labels.names, labels.codes):
        raise InputError(f"{folder}: its dataset.json gives other labels than the network was trained on")
    check_preparation(folder, segmentation.preparation, described.preparation)
    _check_geometry(scan, described.geometry.get(scan.name, Geometry()), folder)
    masks = {number: paths[0] for number, paths in list_images(folder).get(scan.name, [])}
    for number in sorted({*masks, *scan.numbers}):
        if number not in masks:
            raise InputError(f"{folder}: has no mask of subject {scan.name}, slice {number}")
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
