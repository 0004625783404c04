"""Scans for a trained network: volumes, DICOM folders, folders of slices, pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from data.channels import check_order
from data.description import description_beside, read_description
from data.geometry import LONGEST, Geometry
from data.listing import list_images
from data.notes import OBLIQUE, number_notes
from data.png import PICTURES, read_image
from data.preparation import Preparation, acquired_plane, lie_of
from data.sources.dicom import Series, read_series
from data.sources.dicom_file import is_dicom
from data.volume_files import VolumeFile, aligned, read_file
from inference.networks import Ensemble
from utils import InputError, OptionError, changes, errors_begin, exists, natural, note


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
    """The DICOM series that it, or its first channel, was read from."""
    header: nib.Nifti1Header | None = None
    """The header of the NIfTI file that it was read from, which its segmentation gets too."""
    colored: bool = False
    """Whether the first three channels are red, green and blue."""
    files: Sequence[Path] = ()
    """What it was read from."""

    @property
    def is_picture(self) -> bool:
        """Whether it is a single slice of which no spacing is known."""
        return len(self.numbers) == 1 and self.geometry.spacing is None

    @property
    def shown(self) -> np.ndarray:
        """What is shown of it: the first channel, or the first three where they are colors, (1 or 3, D, H, W)."""
        return self.images[: 3 if self.colored else 1]

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


def files_of(source: str) -> list[Path]:
    """Files separated by commas, such as those of a scan's channels; what lies under the whole name is one file."""
    return [Path(source)] if exists(Path(source)) else [Path(file) for file in source.split(",")]


def _parts(source: str) -> list[str]:
    """The folders of an input and its name, without the ending of a file."""
    path = files_of(source)[0]
    # Not resolved: a link is called as it is, not as what it leads to.
    *folders, name = Path(os.path.normpath(path.absolute())).parts[1:] or ("",)
    if not path.is_dir():
        name = re.sub(r"(?i)\.gz$", "", name).rsplit(".", 1)[0]
    return [*folders, name]


def read_scans(source: str, name: str, ensemble: Ensemble) -> Iterator[Scan]:
    """The scans of one input, whatever kind it is; `name` is for a single one.

    Raises InputError for anything else, or other channels.
    """
    path = Path(source)
    files = files_of(source)
    check_order(files, ensemble.identity.channels)
    if not path.is_dir() and all(file.suffix.lower() in PICTURES for file in files):
        scans = iter([_read_picture(name, files, ensemble)])
    elif not path.is_dir():
        scans = iter([_read_volumes(name, files, ensemble)])
    elif (path / "Img").is_dir() or any(path.glob("Subj_*.png")):
        scans = _read_slices(path, ensemble)
    elif (path / "test" / "Img").is_dir():
        raise InputError(f"{path}: is a whole data set; name a split of it, such as {path / 'test'}")
    elif pictures := _list_pictures(path):
        scans = (_read_picture(picture.stem, [picture], ensemble) for picture in pictures)
    else:
        scans = iter([_read_volumes(name, files, ensemble)])
    for scan in scans:
        check(scan, source, ensemble)
        if len({file.resolve() for file in files}) < len(files):
            raise InputError(f"{source}: one file is given for two channels; each must have its own")
        yield scan


def scan_of(values: np.ndarray, spacing: Sequence[float], ensemble: Ensemble) -> Scan:
    """The values of a scan, (D, H, W) or (channels, D, H, W), and its spacing in mm, (D, H, W) -> the scan.

    Its axes are taken to run towards head, back and left, as in an axial scan. Raises InputError for anything else, and
    where the distance of slices, which is the largest, is not that along D.
    """
    channels = values if values.ndim == 4 else values[None]
    if channels.ndim != 4 or not channels.size or channels.dtype.kind not in "buif":
        raise InputError(f"array: is {values.dtype} of shape {values.shape}; it must be numbers (D, H, W)")
    lengths = np.asarray(spacing)
    are_numbers = lengths.shape == (3,) and lengths.dtype.kind in "iuf"
    if not (are_numbers and ((lengths > 1 / LONGEST) & (lengths < LONGEST)).all()):
        raise OptionError(f"spacing {spacing}: must be three lengths in mm, of the axes D, H and W")
    known = {"b": np.uint8, "f": np.float64 if values.dtype.itemsize > 4 else np.float32}  # to SimpleITK
    channels = channels.astype(known.get(values.dtype.kind, values.dtype.newbyteorder("=")))
    volumes = [sitk.GetImageFromArray(channel) for channel in channels]
    for volume in volumes:
        volume.SetSpacing(lengths[::-1].astype(float).tolist())
    if acquired_plane(volumes[0]) != "axial":
        raise OptionError(
            f"spacing {spacing}: is that of slices along H or W, not along D; an array must lie as an axial scan, so "
            "turn it and its spacing into the order D, H and W, or name the scan's file"
        )
    scan = _prepare("array", volumes, ensemble, Path("array"))
    check(scan, "array", ensemble)
    return scan


def check(scan: Scan, source: str, ensemble: Ensemble) -> None:
    """Raises InputError for other channels than the network takes; prints a warning where the scale is another."""
    if scan.colored and ensemble.channels == 1:
        raise InputError(f"{scan.files[0]}: is a picture in colors, and the network takes grey ones; save it as grey")
    if len(scan.images) != ensemble.channels:
        raise InputError(
            f"{source}: has {len(scan.images)} channels, the network takes {ensemble.channels}; "
            "give it these, and separate files of channels by commas"
        )
    warn_of_difference(scan, ensemble)


def warn_of_difference(scan: Scan, ensemble: Ensemble) -> None:
    """Print a warning where a scan's slices differ from the training data's: by over a third, or in their plane."""
    typical, spacing = ensemble.identity.typical, scan.geometry.spacing
    pairs = {"size in pixels": (scan.images.shape[:1:-1], typical.size[:2])}
    if spacing and typical.spacing:
        pairs["spacing in mm"] = (spacing[:2], typical.spacing[:2])
        pairs["distance of slices in mm"] = (spacing[2:], typical.spacing[2:])
    for what, (ours, theirs) in pairs.items():
        if max(max(a / b, b / a) for a, b in zip(ours, theirs, strict=True)) > 4 / 3:
            shown = [" x ".join(f"{value:.4g}" for value in values) for values in (ours, theirs)]
            print(
                f"warning: {scan.name}: its slices have the {what} {shown[0]}, those of the training typically "
                f"{shown[1]}; the segmentation may be poor"
            )
    if scan.geometry.direction and typical.direction:
        (plane, _), (usual, _) = lie_of(scan.geometry), lie_of(typical)
        if plane != usual:
            print(
                f"warning: {scan.name}: its slices are {plane}, those of the training typically {usual}; the "
                "segmentation may be poor"
            )


def _list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that holds no DICOM file. Raises InputError for two of one name."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    pictures = sorted((path for path in files if path.suffix.lower() in PICTURES), key=lambda path: natural(path.name))
    others = [path for path in files if path.suffix.lower() not in PICTURES]
    if not pictures or any(is_dicom(path) or path.name.upper() == "DICOMDIR" for path in others):
        return []
    for first, second in pairwise(pictures):
        if first.stem == second.stem:
            raise InputError(f"{second}: its segmentation would replace that of {first}; rename one of the two")
    if others:
        print(f"note: {folder}: {len(others)} files that are no pictures are left out, such as {others[0].name}")
    return pictures


def _read_picture(name: str, files: Sequence[Path], ensemble: Ensemble) -> Scan:
    """A picture in one file, or with several files for its channels, as those that the network was trained on."""
    channels = [read_image(file) for file in files]
    rows, columns = channels[0].shape[1:]
    for file, channel in zip(files, channels, strict=True):
        if channel.shape[1:] != (rows, columns):
            raise InputError(
                f"{file}: is {channel.shape[2]} x {channel.shape[1]} pixels, {files[0]} {columns} x {rows}; "
                "the channels of a picture must have one size"
            )
    preparation = ensemble.identity.preparation or Preparation(normalize="none")
    if not preparation.of_pictures:
        raise InputError(
            f"{files[0]}: is a picture, and the network was trained on slices whose grey values were stretched; name "
            "the scan itself, or put all its slices into a data set"
        )
    images = preparation.fit(np.concatenate(channels))
    if min(images.shape[1:]) < 32:
        raise InputError(f"{files[0]}: is {columns} x {rows} pixels; the network needs 32 x 32")
    geometry = preparation.geometry_of_pictures((columns, rows, 1))
    return Scan(name, images[:, None], [1], geometry, colored=len(channels[0]) == 3, files=files)


def _read_volumes(name: str, files: Sequence[Path], ensemble: Ensemble) -> Scan:
    """A scan in one file or DICOM folder, or with one for each channel."""
    series = {file: read_series(file) for file in files if file.is_dir()}
    read = [VolumeFile([series[file].image], None) if file in series else read_file(file) for file in files]
    first = read[0].channels[0]
    volumes = [
        aligned(image, path, first, files[0]) for path, file in zip(files, read, strict=True) for image in file.channels
    ]
    scan = _prepare(name, volumes, ensemble, files[0])
    return replace(scan, series=series.get(files[0]), header=read[0].header, files=files)


def _prepare(name: str, volumes: Sequence[sitk.Image], ensemble: Ensemble, path: Path) -> Scan:
    """Do to a scan what was done to those that the network was trained on."""
    preparation = ensemble.identity.preparation or Preparation()
    with errors_begin(path):
        images, _, geometry = preparation.apply(volumes)
    if min(images.shape[2:]) < 32:
        raise InputError(
            f"{path}: has slices of {images.shape[3]} x {images.shape[2]} pixels; the network needs 32 x 32"
        )
    plane, degrees = lie_of(geometry)
    if degrees > OBLIQUE:
        how = "as they were acquired" if preparation.axis == "acquired" else f"in the {preparation.axis} plane"
        note(path, f"lies oblique, {degrees:.0f} degrees off {plane}; its slices are cut {how}")
    scaled = images.astype(np.float32) / np.float32(2**preparation.bits - 1)
    return Scan(name, scaled, list(range(1, images.shape[1] + 1)), geometry)


def _read_slices(folder: Path, ensemble: Ensemble) -> Iterator[Scan]:
    """The subjects of a folder of slices, or of a split; the geometry is that of the data set's dataset.json.

    Raises InputError where that says that scans became slices in another way than those of the network.
    """
    described = read_description(description_beside(folder))
    network = ensemble.identity
    check_preparation(folder, network.preparation, described.preparation)
    if described.channels and network.channels and described.channels != network.channels:
        raise InputError(
            f"{folder}: its dataset.json names the channels {', '.join(described.channels)}, and the network takes "
            f"{', '.join(network.channels)}; prepare them alike"
        )
    for subject, slices in list_images(folder).items():
        numbers = [number for number, _ in slices]
        for text in number_notes(subject, numbers):
            note(folder, text)
        images = _stack(subject, [paths for _, paths in slices])
        colored = len(read_image(slices[0][1][0])) == 3
        with errors_begin(folder):
            geometry = described.geometry_of(subject, numbers, images.shape[2:])
        files = [path for _, paths in slices for path in paths]
        yield Scan(subject, images, numbers, geometry, colored=colored, files=files)


def check_preparation(folder: Path, ours: Preparation | None, theirs: Preparation | None) -> None:
    """Raises InputError where the slices in `folder` were made in another way than those of the network."""
    if not ours or not theirs or ours == theirs:
        return
    raise InputError(
        f"{folder}: its slices were prepared in another way than those the network was trained on "
        f"({changes(ours.to_dict(), theirs.to_dict())}); "
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
