"""Segmentations of any origin beside their truth: subject by subject, on the grid of the truth."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from data.description import Description, Labels, description_beside, read_description, split_of
from data.geometry import Geometry, Grid
from data.label_files import (
    Files,
    LabelVolume,
    find_subjects,
    labels_of_masks,
    mask_files,
    read_classes,
    read_label_table,
)
from data.listing import as_subject
from data.png import PICTURES, read_image
from data.preparation import AXES, acquired_plane, stretch
from data.sources.dicom import read_series
from data.sources.dicom_seg import extended
from data.splits import read_groups
from data.volume_files import aligned, read_file, turned_like
from data.volumes import Volume, oriented, resample, to_scan
from utils import IGNORED, InputError, OptionError, errors_begin, natural, printable, read_json, some

SAME_DIRECTION = 1e-3  # of unit vectors


@dataclass(frozen=True)
class Sources:
    """What is compared with what, as evaluation.json keeps it."""

    predictions: Path
    """Folder with a segmentation for each subject, or one file."""
    truth: Path
    """Folder with a truth for each subject, such as DIR/test, or one file; its grid counts."""
    labels: Path | None = None
    """dataset.json that says the classes: ours, the Decathlon's or nnU-Net's; otherwise the one beside the truth."""
    names: str = ""
    """Names of the classes instead, separated by commas, without the background."""
    values: str = ""
    """Values of these classes, separated by commas; otherwise 1, 2, ..."""
    images: Path | None = None
    """Folder with the images, for the page and figures; otherwise those of DIR/test, or none."""
    prediction_names: str = ""
    """Pattern of files such as "{subject}_pred.nii.gz"; otherwise files are called as the subjects, with any ending."""
    truth_names: str = ""
    """The same for the truth."""
    image_names: str = ""
    """The same for the images, such as "{subject}_0000.nii.gz"."""
    groups: str = ""
    """Which subjects are of one patient, for intervals and tests: a .json file {"001": "patient 1"}, or a regular
    expression with the patient in parentheses; otherwise the "groups" of dataset.json."""
    partial: bool = False
    """Leave out truths without a segmentation, such as those of other folds."""

    def check(self) -> None:
        """Raises InputError for options that do not go together, and for files that do not exist."""
        if self.labels and self.names:
            raise OptionError("names: both names and --labels say the classes; give one of them")
        self.classes()
        for path in (self.predictions, self.truth, self.images, self.labels):
            if path is not None and not path.exists():
                raise InputError(f"{path}: no such file or folder; correct the name")

    def classes(self) -> dict[str, int]:
        """Name -> value of background and classes by `names` and `values`; empty without. Raises OptionError."""
        names = [part.strip() for part in self.names.split(",")] if self.names else []
        values = [part.strip() for part in self.values.split(",")] if self.values else []
        if len(set(names)) < len(names) or "" in names:
            raise OptionError(f"names {self.names}: must be names that differ; give one for each class")
        if values and len(values) != len(names):
            raise OptionError(f"values {self.values}: {len(values)} values for {len(names)} --names; give one for each")
        if not all(value.isascii() and value.isdigit() and len(value) < 6 for value in values):
            raise OptionError(f"values {self.values}: must be whole numbers, such as 1,4")
        if not names:
            return {}
        numbers = map(int, values) if values else range(1, len(names) + 1)
        return {"background": 0} | dict(zip(names, numbers, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with absolute paths."""
        values = dataclasses.asdict(self)
        if self.groups.endswith(".json"):
            values["groups"] = Path(self.groups)
        return {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in values.items()}

    @classmethod
    def read(cls, path: Path) -> Sources:
        """What an evaluation.json holds. Raises InputError for anything else."""
        content = read_json(path)
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            files = ("predictions", "truth", "images", "labels")
            paths = {key: Path(content[key]) for key in files if content.get(key) is not None}
            sources = cls(**content | paths)
            sources.classes()
            patterns = sources.prediction_names, sources.truth_names, sources.image_names, sources.groups
            if all(isinstance(pattern, str) for pattern in patterns):
                return sources
        raise InputError(f"{path}: was not written by this version of evaluate.py; evaluate again")


class Compared(NamedTuple):
    """A subject's segmentation and truth on one grid."""

    volume: Volume
    geometry: Geometry
    """Of its slices: their spacing, where it is known."""
    image: sitk.Image
    """The grid, with the truth on it."""
    numbers: tuple[int, ...]
    """Of the slices that there are."""
    truth: LabelVolume
    """As it was read."""
    how: str
    """"" where voxels stayed as they were, "resampled", or "cut" where some of the segmentation lies outside."""


class Evaluation:
    """Segmentations with their truths, found by name; `sources` says all that was found, too.

    Raises InputError for a truth without a segmentation, unless `sources.partial`, and where classes are not known.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.truths = find_subjects(sources.truth, sources.truth_names)
        self.predictions = find_subjects(sources.predictions, sources.prediction_names)
        self._match()
        self.labels, self.groups = self._read_labels()
        if sources.groups:
            self.groups = read_groups(sources.groups, list(self.truths), of_others=True)
        images, split = sources.images, split_of(sources.truth)
        if images is None and mask_files(self.truths) and (split / "Img").is_dir():
            images = split
        self.sources = replace(self.sources, images=images)
        self.images = find_subjects(images, sources.image_names, "Img") if images else {}
        if list(self.images.values()) == [images] and len(self.truths) == 1:
            self.images = dict(zip(self.truths, self.images.values(), strict=True))
        without = sorted(self.truths.keys() - self.images.keys(), key=natural)
        if sources.images and without:
            print(
                printable(
                    f"note: {images}: has no image of {some(without)}; where files have other names, give --image_names"
                )
            )

    def _match(self) -> None:
        sides = ((self.sources.predictions, self.predictions), (self.sources.truth, self.truths))
        if all(list(found.values()) == [source] for source, found in sides):  # one and one, whatever they are called
            self.predictions = dict(zip(self.truths, self.predictions.values(), strict=True))
        if not self.truths.keys() <= self.predictions.keys():  # prepare.py names its subjects so
            self.predictions = _as_subjects(self.predictions, self.truths)
        missing = sorted(self.truths.keys() - self.predictions.keys(), key=natural)
        lacking = f"has no segmentation of {len(missing)} of {len(self.truths)} subjects: {some(missing)}"
        if missing and not (self.sources.partial and len(missing) < len(self.truths)):
            raise InputError(
                f"{self.sources.predictions}: {lacking}; add them, or leave them out with --partial; where files have "
                "other names, give patterns of names"
            )
        if missing:
            print(printable(f"note: {self.sources.predictions}: {lacking}; they are left out"))
            self.truths = {subject: path for subject, path in self.truths.items() if subject not in missing}
        more = sorted(self.predictions.keys() - self.truths.keys(), key=natural)
        if more:
            print(printable(f"note: {self.sources.predictions}: {len(more)} without a truth, left out: {some(more)}"))
            self.predictions = {subject: self.predictions[subject] for subject in self.truths}

    def _read_labels(self) -> tuple[Labels, dict[str, str]]:
        """The classes, and subject -> group where the dataset.json says it."""
        sources, masks = self.sources, mask_files(self.truths)
        table, labels, groups = sources.labels or description_beside(sources.truth), None, {}
        if classes := sources.classes():
            with errors_begin("names and values of the classes"):
                labels = Labels.from_dict({"labels": classes, "values": classes})
        elif sources.labels or table.exists():
            labels, groups = read_label_table(table, of_volumes=not masks)
            self.sources = replace(sources, labels=table)
        if labels is None:
            labels = labels_of_masks(self._masks_of_data_set() or masks, None, table)
        if labels is None:
            raise InputError(
                f"{sources.truth}: it is not known which classes its values are; give --names, such as "
                '--names "liver,spleen", or --labels with a dataset.json'
            )
        labels_of_masks(masks, labels, table)
        labels_of_masks(mask_files(self.predictions), labels, description_beside(sources.predictions))
        if not classes:
            self._check_tables(labels)
        return labels, groups

    def _check_tables(self, labels: Labels) -> None:
        """Raises InputError where masks lie beside a dataset.json that gives them other values."""
        for source, found in ((self.sources.predictions, self.predictions), (self.sources.truth, self.truths)):
            table = description_beside(source)
            own = read_label_table(table, of_volumes=False)[0] if mask_files(found) and table.exists() else None
            if own and _in_masks(own) != _in_masks(labels):
                raise InputError(
                    f"{table}: gives the masks in {source} other labels than the truth has; prepare both alike, or say "
                    "the classes of both with --names and --values"
                )

    def _masks_of_data_set(self) -> list[Path]:
        """All masks of the data set that the truth is a split of: what values mean, they say together."""
        split = split_of(self.sources.truth)
        return sorted(split.parent.glob("*/GT/Subj_*slice_*.png")) if (split / "GT").is_dir() else []

    def subjects(self) -> list[str]:
        """All of them, in natural order."""
        return sorted(self.truths, key=natural)

    def compare(self, subject: str) -> Compared:
        """A subject's segmentation and truth.

        Raises InputError where files are damaged, hold unknown values, or lie in different spaces.
        """
        sides = []
        for source, files in (
            (self.sources.predictions, self.predictions[subject]),
            (self.sources.truth, self.truths[subject]),
        ):
            described = Description()
            if isinstance(files, dict) and description_beside(source).exists():
                described = read_description(description_beside(source))
            sides.append(read_classes(files, subject, self.labels, described))
        prediction, truth = sides
        if (sitk.GetArrayViewFromImage(prediction.image) == IGNORED).any():
            raise InputError(
                f"{prediction.path}: holds the value of ignore, which only a truth may hold; "
                "write a segmentation that has a class everywhere"
            )
        return compare(subject, prediction, truth)

    def pictures(self, compared: Compared) -> np.ndarray:
        """What is shown of a subject's slices, float32 (slices, 1 or 3, H, W) in [0, 1]; black without an image.

        A note says why an image that is there cannot be shown.
        """
        subject = compared.volume.subject
        if subject in self.images:
            try:
                return _pictures(self.images[subject], compared)
            except InputError as error:
                print(printable(f"note: no image of {subject}: {error}"))
        rows, columns = compared.volume.target.shape[1:]
        return np.zeros((len(compared.numbers), 1, rows, columns), np.float32)


def _in_masks(labels: Labels) -> dict[str, int]:
    """Class -> its value or color in masks."""
    return dict(zip(labels.names, labels.colors or labels.codes, strict=True))


def _as_subjects(found: dict[str, Files], truths: Collection[str]) -> dict[str, Files]:
    """Segmentations by the names of their truths, of which one may be written as a subject: pat-1-v2 for "pat 1.v2".

    Raises InputError where two of them would be of one truth.
    """
    free: dict[str, list[str]] = {}
    for truth in truths:
        if truth not in found:
            free.setdefault(as_subject(truth), []).append(truth)
    named: dict[str, Files] = {}
    for name, files in found.items():
        others = [] if name in truths else free.get(as_subject(name), [])
        subject = others[0] if len(others) == 1 else name
        if subject in named:
            raise InputError(f"two segmentations would be of {subject}, one of them called {name}; rename one")
        named[subject] = files
    return named


# ---------------------------------------------------------------- on one grid


def compare(subject: str, prediction: LabelVolume, truth: LabelVolume) -> Compared:
    """Bring a segmentation to the grid of its truth. Raises InputError where they do not lie in one space.

    Axes are turned. Another grid in the same box is resampled, to the nearest voxel. Where slices of the truth were cut
    out of a scan, or resampled, a segmentation on the scan's grid is treated as the scan was. A DICOM segmentation gets
    the slices that it leaves out, and is never resampled, since the distance of its slices is not sure.
    """
    if prediction.numbers and truth.numbers:
        _check_slices(prediction, truth)
    goal, moving = truth.image, prediction.image
    if prediction.numbers and not truth.numbers:
        moving = _on_scan(prediction)
    if truth.is_sparse:
        goal = extended(goal, moving)
    if prediction.numbers and truth.numbers and not (prediction.placed and truth.placed):
        brought, how = moving, ""
    else:
        brought, how = _brought(moving, prediction, goal, truth)
    if not truth.numbers and truth.placed:
        axes = AXES[acquired_plane(goal)]
        goal, brought = oriented(goal, axes), oriented(brought, axes)
    geometry = truth.geometry if truth.numbers or not truth.placed else Geometry(spacing=goal.GetSpacing())
    target = sitk.GetArrayFromImage(goal)
    numbers = truth.numbers or tuple(range(1, len(target) + 1))
    volume = Volume(subject, sitk.GetArrayFromImage(brought), target)
    return Compared(volume, geometry, goal, numbers, truth, how)


def _on_scan(slices: LabelVolume) -> sitk.Image:
    """The class indices of slices on the grid of their scan, with the axes of the slices."""
    return to_scan(sitk.GetArrayFromImage(slices.image), replace(slices.geometry, orientation=None))


def _check_slices(prediction: LabelVolume, truth: LabelVolume) -> None:
    """Slices are compared with those of the same numbers."""
    for number in sorted({*prediction.numbers, *truth.numbers}):
        if number not in prediction.numbers or number not in truth.numbers:
            lacking, other = (truth, prediction) if number in prediction.numbers else (prediction, truth)
            raise InputError(f"{lacking.path}: has no slice {number} as {other.path} does; each slice needs both")
    sizes = [" x ".join(map(str, each.image.GetSize()[:2])) for each in (prediction, truth)]
    if sizes[0] != sizes[1]:
        raise InputError(f"{prediction.path}: its slices have {sizes[0]} pixels, those of {truth.path} {sizes[1]}")


def _brought(
    moving: sitk.Image, prediction: LabelVolume, goal: sitk.Image, truth: LabelVolume
) -> tuple[sitk.Image, str]:
    """A segmentation on the grid of `goal`, and how it got there; see `Compared.how`."""
    scan = _on_scan(truth) if truth.geometry.original else goal
    for place, was_resampled in ((goal, False), (scan, truth.geometry.was_resampled)):
        with contextlib.suppress(InputError):
            whole = extended(moving, place) if prediction.is_sparse else moving
            there = aligned(whole, prediction.path, place, truth.path)
            brought = resample(there, Grid.of(goal), smooth=False)
            if was_resampled:
                return brought, "resampled"
            before, after = (np.count_nonzero(sitk.GetArrayViewFromImage(each)) for each in (there, brought))
            return brought, "cut" if after < before else ""
    same_space = truth.placed and prediction.placed and not (truth.is_sparse or prediction.is_sparse)
    for place in (goal, scan):
        turned = turned_like(moving, place)
        if same_space and _in_same_box(Grid.of(turned), Grid.of(place)):
            return resample(turned, Grid.of(goal), smooth=False), "resampled"
    both_placed = truth.placed and prediction.placed
    hint = "resample it there" if both_placed else "where slices lie is said in their dataset.json"
    grids = [Grid.of(turned_like(moving, goal)), Grid.of(goal)]
    shown = [_in_words(grid) for grid in grids]
    if not np.allclose(grids[0].direction, grids[1].direction, rtol=0, atol=SAME_DIRECTION):
        shown[1] += " along other axes"
    raise InputError(
        f"{prediction.path}: does not lie where its truth {truth.path} does: {shown[0]}, and {shown[1]}; {hint}"
    )


def _in_same_box(grid: Grid, other: Grid) -> bool:
    """Whether two grids have the same axes and fill the same box, to half of the larger voxel at each side."""
    if not np.allclose(grid.direction, other.direction, rtol=0, atol=SAME_DIRECTION):
        return False
    sizes, spacings = np.array([grid.size, other.size]), np.array([grid.spacing, other.spacing])
    shift = np.reshape(other.direction, (3, 3)).T @ (np.array(grid.origin) - other.origin)
    low = np.array([shift, np.zeros(3)]) - spacings / 2
    high = low + sizes * spacings
    tolerance = 0.5 * spacings.max(0) + 0.01 * spacings.min(0)
    return bool((np.abs(low[0] - low[1]) <= tolerance).all() and (np.abs(high[0] - high[1]) <= tolerance).all())


def _pictures(files: Files, compared: Compared) -> np.ndarray:
    """The image of a subject as `Evaluation.pictures` has it. Raises InputError where it does not fit its masks."""
    if isinstance(files, Path) and files.suffix.lower() not in PICTURES:
        image = read_series(files).image if files.is_dir() else read_file(files).channels[0]
        if not compared.truth.placed:
            raise InputError(f"{files}: its masks do not say where they lie")
        darkest = float(sitk.GetArrayViewFromImage(image).min())
        there = sitk.Resample(image, compared.image, sitk.Transform(), sitk.sitkLinear, darkest, sitk.sitkFloat32)
        volume = sitk.GetArrayFromImage(there)[[number - compared.numbers[0] for number in compared.numbers]]
        return stretch(volume, *np.percentile(volume, (0.5, 99.5)))[:, None].astype(np.float32) / 255
    of_slices = files if isinstance(files, dict) else {compared.numbers[0]: files}
    slices = []
    for number in compared.numbers:
        if number not in of_slices or (isinstance(files, dict) and not compared.truth.numbers):
            raise InputError(f"{next(iter(of_slices.values()))}: there is none of slice {number}")
        slices.append(read_image(of_slices[number]))
        if slices[-1].shape[1:] != compared.volume.target.shape[1:] or len(slices[-1]) != len(slices[0]):
            raise InputError(f"{of_slices[number]}: has another size or color than its mask or the other slices")
    return np.stack(slices)


def _in_words(grid: Grid) -> str:
    """Size, spacing and position."""
    parts = [" x ".join(f"{value:.4g}" for value in values) for values in (grid.size, grid.spacing)]
    return f"{parts[0]} voxels of {parts[1]} mm from ({', '.join(f'{value:.1f}' for value in grid.origin)})"
