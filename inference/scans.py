"""Scans for a trained network: volumes, DICOM folders, folders of slices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data.description import Description, read_description
from data.folder import list_images
from data.geometry import Geometry
from data.png import read_image
from data.preparation import Preparation
from data.sources.dicom import Series, read_series
from data.sources.nifti import check_same_grid, read_channels
from inference.networks import Ensemble
from utils import InputError


@dataclass(frozen=True)
class Scan:
    """Slices for the network, and the way back."""

    name: str
    images: np.ndarray
    """float32 (channels, D, H, W) in [0, 1]."""
    numbers: list[int]
    """Of the slices."""
    geometry: Geometry
    series: Series | None = None
    """The DICOM series that it was read from."""

    @property
    def positions(self) -> list[int]:
        """Where the slices are in the volume (`data.volumes.assemble`)."""
        return [number - min(self.numbers) for number in self.numbers]


def scan_names(sources: Sequence[str]) -> list[str]:
    """The last part of each path, or as many parts as tell them apart: CHAOS calls all its DICOM folders InPhase."""
    paths = [_parts(source) for source in sources]
    longest = max(len(parts) for parts in paths)
    for length in range(1, longest + 1):
        names = ["_".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [parts[-1] for parts in paths]


def _parts(source: str) -> list[str]:
    """The folders of an input and its name, without the ending of a file."""
    path = Path(source) if Path(source).is_dir() else Path(source.split(",")[0])
    # Not resolved: a link is called as it is, not as what it leads to.
    _root, *folders, name = Path(os.path.normpath(path.absolute())).parts
    if not path.is_dir():
        name = name.removesuffix(".gz").rsplit(".", 1)[0]
    return [*folders, name]


def read_scans(source: str, name: str, ensemble: Ensemble) -> Iterator[Scan]:
    """The scans of one input, whatever kind it is; `name` is for a single one.

    Raises InputError for anything else, or other channels.
    """
    path = Path(source)
    if not path.is_dir():
        scans = iter([_read_volumes(name, [Path(file) for file in source.split(",")], ensemble)])
    elif (path / "Img").is_dir() or any(path.glob("Subj_*.png")):
        scans = _read_slices(path, ensemble)
    else:
        series = read_series(path)
        scans = iter([_prepare(name, [series.image], ensemble, path, series)])
    for scan in scans:
        if len(scan.images) != ensemble.channels:
            raise InputError(
                f"{source}: has {len(scan.images)} channels, the network takes {ensemble.channels}; "
                "separate the files of the channels by commas"
            )
        yield scan


def _read_volumes(name: str, files: Sequence[Path], ensemble: Ensemble) -> Scan:
    """A scan in one file, or with a file for each channel."""
    volumes: list[sitk.Image] = []
    for file in files:
        channels = read_channels(file)
        volumes += channels
        check_same_grid(channels[0], file, volumes[0], files[0])
    return _prepare(name, volumes, ensemble, files[0])


def _prepare(
    name: str, volumes: Sequence[sitk.Image], ensemble: Ensemble, path: Path, series: Series | None = None
) -> Scan:
    """Do to a scan what was done to those that the network was trained on."""
    preparation = ensemble.preparation or Preparation()
    try:
        images, _, geometry = preparation.apply(volumes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if min(images.shape[2:]) < 32:
        raise InputError(
            f"{path}: has slices of {images.shape[3]} x {images.shape[2]} pixels; the network needs 32 x 32"
        )
    scaled = images.astype(np.float32) / np.float32(2**preparation.bits - 1)
    return Scan(name, scaled, list(range(1, images.shape[1] + 1)), geometry, series)


def _read_slices(folder: Path, ensemble: Ensemble) -> Iterator[Scan]:
    """The subjects of a folder of slices, or of a split; the geometry is that of the data set's dataset.json.

    Raises InputError where that says that scans became slices in another way than those of the network.
    """
    described = description_of(folder)
    _check_preparation(folder, ensemble.preparation, described.preparation)
    for subject, slices in list_images(folder).items():
        numbers = [number for number, _ in slices]
        images = _stack(subject, [paths for _, paths in slices])
        whole = described.geometry.get(subject, Geometry())
        try:
            whole.check_size(images.shape[2:])
        except InputError as error:
            raise InputError(f"{folder}: subject {subject}: its {error}") from None
        yield Scan(subject, images, numbers, whole.of_slices(min(numbers), max(numbers)))


def _check_preparation(folder: Path, ours: Preparation | None, theirs: Preparation | None) -> None:
    if not ours or not theirs or ours == theirs:
        return
    before, now = ours.to_dict(), theirs.to_dict()
    changed = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in before if before[name] != now[name])
    raise InputError(
        f"{folder}: its slices were prepared in another way than those the network was trained on ({changed}); "
        "prepare them alike, or name the scans themselves"
    )


def _stack(subject: str, files: Sequence[Sequence[Path]]) -> np.ndarray:
    """The files of each slice, one a channel or more -> float32 (channels, D, H, W). Raises InputError."""
    slices: list[np.ndarray] = []
    expected: list[tuple[int, ...]] = []
    for paths in files:
        images = [read_image(path) for path in paths]
        expected = expected or [(len(image), *images[0].shape[1:]) for image in images]
        for path, image, shape in zip(paths, images, expected, strict=True):
            if image.shape != shape or min(shape[1:]) < 32:
                raise InputError(
                    f"{path}: is {image.shape[1]} x {image.shape[2]} pixels in {len(image)} channels; export "
                    f"all slices of subject {subject} alike, and of at least 32 x 32"
                )
        slices.append(np.concatenate(images))
    return np.stack(slices, 1)


def description_of(folder: Path) -> Description:
    """What the dataset.json says that a folder of slices belongs to: a split, or Img or GT in one."""
    split = folder.resolve()
    if split.name in ("Img", "GT"):
        split = split.parent
    return read_description(split.parent / "dataset.json")
