"""A DICOM series as a volume, put together by the positions of its slices."""

from __future__ import annotations

import contextlib
import io
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import uid

from data.geometry import LONGEST, MAX_VOXELS
from data.sources.dicom_file import (
    ROUNDED,
    Layout,
    explain,
    grey_slice,
    has_pixels,
    is_dicom,
    layout,
    numbers,
    orientation,
    pixel_spacing,
    position,
    read_file,
    read_pixels,
    rounding,
    study_of,
)
from utils import LEFTOVER, InputError, locked, make_folder, printable, some

MAX_TILT = 0.5  # degrees; it shifts slices by a pixel (0.9 mm) in 100 mm
MODALITY, DESCRIPTION = "OT", "Segmentation"  # of what is written
# Patient, study, frame of reference and position of a slice: what its segmentation shares with it.
COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "FrameOfReferenceUID", "InstanceNumber", "SliceThickness", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing",
)  # fmt: skip


class Series(NamedTuple):
    """A volume, and the files of its slices in the order of the volume's last axis."""

    image: sitk.Image
    files: list[Path]


class _Slice(NamedTuple):
    """What the header of a file says."""

    path: Path
    series: str
    axes: np.ndarray
    """Of columns, rows and slices, a unit vector a row."""
    position: np.ndarray
    spacing: np.ndarray
    """Of columns, then rows, in mm."""
    layout: Layout
    frame: str
    """Unique identifier of the frame of reference, in which positions are given; empty for none."""


def read_series(folder: Path) -> Series:
    """All DICOM images of a folder as one volume, sorted along the slices' normal; a note names what is left out.

    The spacing between slices is the distance of their positions; of a single slice it is what the file states, else
    1 mm. Raises InputError for a folder without DICOM images, a file that cannot be read, slices of several series,
    sizes, spacings or orientations, positions that are missing or there twice, slices that are shifted sideways, as
    with a tilted gantry, and more than MAX_VOXELS.
    """
    slices = _read_headers(folder)
    _check_alike(slices)
    normal = slices[0].axes[2]
    slices.sort(key=lambda item: float(item.position @ normal))
    gap = _slice_gap(slices, normal)
    _check_straight(slices, normal, folder)
    rows, columns = slices[0].layout.shape
    if rows * columns * len(slices) > MAX_VOXELS:
        raise InputError(f"{folder}: {len(slices)} slices of {rows} x {columns} pixels are more than a scan can have")
    image = sitk.GetImageFromArray(np.stack(read_pixels({item.path: item.layout for item in slices})))
    image.SetSpacing((*slices[0].spacing, gap))
    image.SetOrigin(slices[0].position)
    image.SetDirection(slices[0].axes.T.ravel())
    return Series(image, [item.path for item in slices])


def write_series(folder: Path, label: sitk.Image, series: Series) -> None:
    """Write a label volume on the grid of `series` as a DICOM series of the same patient and study.

    One file for each slice, called just as the slice's; positions, orientation and frame of reference are the slice's
    own, so that viewers show both together. The folder appears when it is complete, in the place of an earlier
    segmentation. Raises InputError where `folder` holds anything else, and for slices that cannot be read any more.
    """
    folder = folder.resolve()  # a link stays, and what it leads to is replaced
    _check_replaceable(folder, series)
    make_folder(folder.parent)
    series_uid = uid.generate_uid(None)
    with _replacing(folder) as new:
        for source, mask in zip(series.files, sitk.GetArrayViewFromImage(label), strict=True):
            content = io.BytesIO()
            header = read_file(source)
            with explain(source):
                _derive(header, mask, series_uid).save_as(content, enforce_file_format=True)
            with (new / source.name).open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())


def _derive(source: pydicom.FileDataset, mask: np.ndarray, series_uid: str) -> pydicom.Dataset:
    """A slice's segmentation (rows, columns)."""
    stored = Layout(mask.shape, mask.dtype, 8 * mask.dtype.itemsize, compressed=False)
    derived = grey_slice(uid.ImplicitVRLittleEndian, stored, mask.tobytes() + b"\0" * (mask.nbytes % 2))
    if "SpecificCharacterSet" in source:
        derived.SpecificCharacterSet = source.SpecificCharacterSet
    for keyword in COPIED:
        element = source.get_item(keyword) if keyword in source else None
        if isinstance(element, pydicom.dataelem.RawDataElement):
            # As UN, the bytes stay those of the file, whatever its character set.
            derived.add(pydicom.DataElement(element.tag, "UN", element.value or b""))
    derived.SeriesInstanceUID, derived.SeriesNumber = series_uid, None
    derived.Modality, derived.SeriesDescription = MODALITY, DESCRIPTION
    derived.ConversionType, derived.ImageType = "WSD", ["DERIVED", "SECONDARY"]
    return derived


def _check_replaceable(folder: Path, series: Series) -> None:
    """Of an existing folder, only what `write_series` wrote may be lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; move it, or choose another folder")
    sources = {path.resolve() for path in series.files}
    studies = {study_of(path) for path in series.files}
    for path in folder.iterdir():
        if path.resolve() in sources:
            raise InputError(f"{path}: is a slice of the scan, which results never replace; choose another folder")
        if not path.name.startswith(".") and not _is_segmentation(path):
            raise InputError(f"{path}: is no segmentation of a slice, and would be lost with its folder; move it")
        if not path.name.startswith(".") and study_of(path) not in studies:
            raise InputError(f"{path}: is a segmentation of another study, and would be lost; choose another folder")


def _is_segmentation(path: Path) -> bool:
    if not path.is_file():
        return False
    with contextlib.suppress(InputError), explain(path):
        header = read_file(path)
        return (header.get("Modality"), header.get("SeriesDescription")) == (MODALITY, DESCRIPTION)
    return False


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `folder` when the block ends well, else is removed.

    So are those that killed processes have left, which hold no lock. OSErrors name `folder`.
    """
    new, old = (folder.with_name(f".{secrets.token_hex(8)}.partial.{folder.name}") for _ in range(2))
    try:
        for path in folder.parent.iterdir():
            ours = LEFTOVER.fullmatch(path.name) and path.name.endswith(f".partial.{folder.name}")
            if ours and not path.is_symlink() and path.is_dir():
                with contextlib.suppress(OSError), locked(path) as free:
                    if free:
                        shutil.rmtree(path)
        new.mkdir()
        with locked(new):
            yield new
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        error.filename, error.filename2 = str(folder), None
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _read_headers(folder: Path) -> list[_Slice]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct the name")
    slices, left_out = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        header = read_file(path) if is_dicom(path) else None
        if header is not None and has_pixels(path, header):
            slices.append(_read_slice(path, header))
        else:
            left_out.append(path.name)
    if not slices:
        hint = f"; name NIfTI files one by one, as in {folder}/*.nii.gz" if any(folder.glob("*.nii*")) else ""
        raise InputError(f"{folder}: holds no DICOM files with pixels{hint or '; name the folder that holds them'}")
    if left_out:
        count = f"{len(left_out)} of {len(left_out) + len(slices)} files"
        print(printable(f"note: {folder}: {count} left out, since they are no DICOM images: {some(left_out)}"))
    return slices


def _read_slice(path: Path, header: pydicom.FileDataset) -> _Slice:
    with explain(path):
        stored = layout(path, header)
        series = str(header.get("SeriesInstanceUID") or "").strip()
        frame = str(header.get("FrameOfReferenceUID") or "").strip()
        return _Slice(path, series, orientation(header), position(header), pixel_spacing(header), stored, frame)


def _thickness(path: Path) -> float:
    """What a file says of its only slice in mm; 1 where it says nothing."""
    header = read_file(path)
    with explain(path):
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            stated = float(numbers(header, keyword, default=0, largest=LONGEST)[0])
            if stated > 0:
                return stated
    return 1.0


def _check_alike(slices: list[_Slice]) -> None:
    first = slices[0]
    for item in slices[1:]:
        differences = {
            "series": item.series != first.series,
            "size": item.layout.shape != first.layout.shape,
            "pixel spacing": not np.allclose(item.spacing, first.spacing, rtol=1e-4),
            "orientation": not np.allclose(item.axes, first.axes, atol=1e-3),
            "frame of reference": "" not in (item.frame, first.frame) and item.frame != first.frame,
        }
        for what, differs in differences.items():
            if differs:
                raise InputError(
                    f"{item.path}: is of another {what} than {first.path.name}; keep one series in a folder"
                )


def _slice_gap(slices: list[_Slice], normal: np.ndarray) -> float:
    """The distance of neighboring slices in mm, which must be the same all along."""
    if len(slices) == 1:
        return _thickness(slices[0].path)
    heights = np.array([item.position @ normal for item in slices])
    gaps = np.diff(heights)
    gap = float(np.median(gaps))
    for k, distance in enumerate(gaps):
        pair = f"{slices[k + 1].path} and {slices[k].path.name}"
        if distance < 0.01 * gap or distance < 1e-3:
            raise InputError(f"{pair}: lie at the same position; keep one of the two")
        if abs(distance - gap) > rounding(gap):
            raise InputError(f"{pair}: are {distance:.2f} mm apart, the others {gap:.2f} mm; slices are missing")
    return float((heights[-1] - heights[0]) / (len(slices) - 1))


def _check_straight(slices: list[_Slice], normal: np.ndarray, folder: Path) -> None:
    """A volume's slices lie straight above each other; to take tilted ones for such would shear the anatomy."""
    shifts = np.array([item.position for item in slices]) - slices[0].position
    heights = shifts @ normal
    sideways = np.linalg.norm(shifts - np.outer(heights, normal), axis=1).max()
    tilt = math.degrees(math.atan2(sideways, heights[-1])) if len(slices) > 1 else 0.0
    if tilt > MAX_TILT and sideways > ROUNDED:
        raise InputError(
            f"{folder}: its slices shift sideways along the stack, as with a gantry tilted by {tilt:.1f} degrees; "
            "correct that first, such as with dcm2niix, and take the NIfTI file"
        )
