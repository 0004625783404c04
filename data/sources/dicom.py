"""A DICOM series as a volume, put together by the positions of its slices."""

from __future__ import annotations

import contextlib
import math
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from data.volumes import itk_path, itk_reason
from utils import InputError, atomic_path

MAX_TILT = 0.5  # degrees; it shifts slices by a pixel (0.9 mm) in 100 mm, while rounded positions stay below 0.1
POSITION, ORIENTATION, SPACING, SERIES = "0020|0032", "0020|0037", "0028|0030", "0020|000e"
THICKNESS = ("0018|0088", "0018|0050")  # SpacingBetweenSlices, SliceThickness
# Patient, study, frame of reference and position of a slice: what its segmentation shares with it.
COPIED = (
    "0010|0010", "0010|0020", "0010|0030", "0010|0040", "0020|000d", "0020|0010", "0008|0020", "0008|0030", "0008|0050",
    "0020|0052", "0020|0013", "0018|0050", POSITION, ORIENTATION,
)  # fmt: skip
CHARSET = "0008|0005"
# DICOM's names of the sets that Python can decode. The others (ISO 2022, of ASCII bytes with escapes) stay as they are.
CODECS = {
    "": "utf-8",
    "ISO_IR 192": "utf-8",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 100": "latin-1",
    "ISO_IR 166": "tis-620",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
CODECS |= {
    f"ISO_IR {number}": f"iso8859-{part}"
    for number, part in {101: 2, 109: 3, 110: 4, 126: 7, 127: 6, 138: 8, 144: 5, 148: 9, 203: 15}.items()
}


class Series(NamedTuple):
    """A volume, and the files of its slices in the order of the volume's last axis."""

    image: sitk.Image
    files: list[Path]


class _Slice(NamedTuple):
    path: Path
    series: str
    orientation: np.ndarray
    position: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    pixels: np.ndarray


def read_series(folder: Path) -> Series:
    """All DICOM files of a folder as one volume, sorted along the slices' normal; other files are left out.

    The spacing between slices is the distance of their positions; of a single slice it is what the file states, else
    1 mm. Raises InputError for a folder without DICOM files, a file that cannot be read, slices of several series,
    sizes, spacings or orientations, positions that are missing or there twice, and slices that are shifted sideways, as
    with a tilted gantry.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and _is_dicom(path))
    if not paths:
        hint = f"; name NIfTI files one by one, as in {folder}/*.nii.gz" if any(folder.glob("*.nii*")) else ""
        raise InputError(f"{folder}: holds no DICOM files{hint}")
    slices = [_read_slice(path) for path in paths]
    _check_alike(slices)
    columns, rows = slices[0].orientation.reshape(2, 3)
    normal = np.cross(columns, rows)
    slices.sort(key=lambda item: float(item.position @ normal))
    gap = _slice_gap(slices, normal)
    _check_straight(slices, normal, folder)
    image = sitk.GetImageFromArray(np.stack([item.pixels for item in slices]))
    image.SetSpacing((*slices[0].spacing, gap))
    image.SetOrigin(slices[0].position)
    image.SetDirection(np.column_stack([columns, rows, normal]).ravel())
    return Series(image, [item.path for item in slices])


def write_series(folder: Path, label: sitk.Image, series: Series) -> None:
    """Write a label volume on the grid of `series` as a DICOM series of the same patient and study.

    One file for each slice, called just as the slice's and replaced if it is there; positions, orientation and frame of
    reference are the slice's own, so that viewers show both together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series_uid = _new_uid()
    for k, source in enumerate(series.files):
        tags = sitk.ImageFileReader()
        tags.SetFileName(itk_path(source))
        tags.ReadImageInformation()
        image = label[:, :, k]
        charset = tags.GetMetaData(CHARSET).strip() if tags.HasMetaDataKey(CHARSET) else ""
        codec = CODECS.get(charset, "utf-8")
        # UTF-8 is what SimpleITK writes its texts in.
        image.SetMetaData(CHARSET, "ISO_IR 192" if charset in CODECS else charset)
        for tag in COPIED:
            if tags.HasMetaDataKey(tag):
                stored = tags.GetMetaData(tag).encode("utf-8", "surrogateescape")
                image.SetMetaData(tag, stored.decode(codec, "replace"))
        new = {"0008|0060": "OT", "0008|103e": "Segmentation", SERIES: series_uid, "0008|0018": _new_uid()}
        for tag, value in new.items():
            image.SetMetaData(tag, value)
        with atomic_path(folder / source.name) as temporary:
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetImageIO("GDCMImageIO")
            writer.SetFileName(itk_path(temporary))
            writer.Execute(image)


def _new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix.lower() == ".dcm" or file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct or remove it") from None


def _read_slice(path: Path) -> _Slice:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_path(path))
    try:
        pixels = sitk.GetArrayFromImage(reader.Execute())
        position, orientation, spacing = (
            np.array([float(number) for number in reader.GetMetaData(tag).split("\\")])
            for tag in (POSITION, ORIENTATION, SPACING)
        )
        series = reader.GetMetaData(SERIES) if reader.HasMetaDataKey(SERIES) else ""
        stated = [_length(reader.GetMetaData(tag)) for tag in THICKNESS if reader.HasMetaDataKey(tag)]
        sizes = position.size, orientation.size, spacing.size
        if sizes != (3, 6, 2) or not np.isfinite([*position, *orientation, *spacing]).all() or min(spacing) <= 0:
            raise ValueError("position, orientation or pixel spacing are not 3, 6 and 2 numbers")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a readable DICOM slice ({itk_reason(error)})") from None
    if pixels.ndim == 3 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim != 2:
        raise InputError(f"{path}: is no single grey slice (shape {pixels.shape}); export one slice a file")
    # PixelSpacing is the distance of rows, then of columns: y before x.
    thickness = next(filter(None, stated), 1.0)
    return _Slice(path, series.strip(), orientation, position, (spacing[1], spacing[0]), thickness, pixels)


def _length(text: str) -> float | None:
    """A length in mm, None where the text is none: fields may be empty."""
    with contextlib.suppress(ValueError):
        return float(text) if 0 < float(text) < math.inf else None


def _check_alike(slices: list[_Slice]) -> None:
    first = slices[0]
    for item in slices[1:]:
        differences = {
            "series": item.series != first.series,
            "size": item.pixels.shape != first.pixels.shape,
            "pixel spacing": not np.allclose(item.spacing, first.spacing, rtol=1e-4),
            "orientation": not np.allclose(item.orientation, first.orientation, atol=1e-3),
        }
        for what, differs in differences.items():
            if differs:
                raise InputError(
                    f"{item.path}: is of another {what} than {first.path.name}; keep one series in a folder"
                )


def _slice_gap(slices: list[_Slice], normal: np.ndarray) -> float:
    """The distance of neighboring slices in mm, which must be the same all along."""
    if len(slices) == 1:
        return slices[0].thickness
    heights = np.array([item.position @ normal for item in slices])
    gaps = np.diff(heights)
    gap = float(np.median(gaps))
    for k, distance in enumerate(gaps):
        pair = f"{slices[k + 1].path} and {slices[k].path.name}"
        if distance < 0.01 * gap or distance < 1e-3:
            raise InputError(f"{pair}: lie at the same position; keep one of the two")
        if abs(distance - gap) > 0.1 * gap:
            raise InputError(f"{pair}: are {distance:.2f} mm apart, the others {gap:.2f} mm; slices are missing")
    return float((heights[-1] - heights[0]) / (len(slices) - 1))


def _check_straight(slices: list[_Slice], normal: np.ndarray, folder: Path) -> None:
    """A volume's slices lie straight above each other; to take tilted ones for such would shear the anatomy."""
    shifts = np.array([item.position for item in slices]) - slices[0].position
    heights = shifts @ normal
    sideways = np.linalg.norm(shifts - np.outer(heights, normal), axis=1).max()
    tilt = math.degrees(math.atan2(sideways, heights[-1])) if len(slices) > 1 else 0.0
    if tilt > MAX_TILT:
        raise InputError(
            f"{folder}: its slices shift sideways along the stack, as with a gantry tilted by {tilt:.1f} degrees; "
            "correct that first, such as with dcm2niix, and take the NIfTI file"
        )
