"""Volumes in files: NIfTI, and what ITK reads safely; on one grid, whatever order each stores its axes in."""

from __future__ import annotations

import contextlib
import math
import mmap
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from data.geometry import MAX_VOXELS
from data.nifti import ENDINGS, MAX_CHANNELS, read_nifti, right_angles, to_image
from data.volumes import itk_path, itk_reason, like, turned
from utils import InputError, note

# Ending -> its reader in ITK, and what its header must not hold: names of other files, or offsets into one.
OTHERS = {
    ".mha": ("MetaImageIO", ()),
    ".nrrd": ("NrrdImageIO", (b"data file", b"datafile", b"line skip", b"byte skip")),
}
LAST_FIELD = b"\nElementDataFile = LOCAL\n"  # of an .mha
LONGEST_HEADER = 2**16  # bytes
PIECE = 2**16  # bytes that are unpacked at a time, to a thousand times as many at most
SPACINGS = {".mha": ("elementspacing", "elementsize"), ".nrrd": ("spacings", "space directions")}  # fields, in order
ROUNDED = 0.05  # what 8 bits with a scale may take from a label: 1 of 0 to 14 is 18 times 14 / 255


class VolumeFile(NamedTuple):
    """What a file holds."""

    channels: list[sitk.Image]
    """3-D volumes on one grid; several of a file with four dimensions."""
    header: nib.Nifti1Header | None
    """Of a NIfTI file: what a segmentation of it is written with."""


def read_file(path: Path) -> VolumeFile:
    """The volumes of a file. Raises InputError for a file that is missing, damaged or something else."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the name, or copy it")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty; copy it again")
    if path.name.lower().endswith(ENDINGS):
        values, header = read_nifti(path)
        if values.ndim == 3:
            return VolumeFile([to_image(values, header, path)], header)
        return VolumeFile([to_image(values[..., k], header, path) for k in range(values.shape[3])], header)
    image = _read_other(path)
    channels = [image] if image.GetDimension() == 3 else [image[..., k] for k in range(image.GetSize()[3])]
    return VolumeFile([_straight(channel, path) for channel in channels], None)


def read_label(path: Path) -> sitk.Image:
    """A 3-D volume of whole numbers, as 16 bits. Raises InputError for anything else."""
    channels = read_file(path).channels
    if len(channels) != 1:
        raise InputError(f"{path}: has four dimensions, not three; is it the label?")
    return as_label(channels[0], path)


def as_label(image: sitk.Image, path: Path) -> sitk.Image:
    """A volume as 16 bits, of whole numbers, or of what a scale has rounded them to. Raises InputError for others."""
    array = sitk.GetArrayViewFromImage(image)
    whole = array if array.dtype.kind in "iu" else np.rint(array)
    apart = np.abs(array - whole).max()
    is_small = apart > 0 and whole.max() == 0  # as a map of diffusion is
    if apart > ROUNDED or is_small or whole.min() < 0 or whole.max() >= 2**16:
        raise InputError(f"{path}: holds values that are no class numbers 0, 1, 2, ...; is it the label?")
    return like(image, whole.astype(np.uint16))


def aligned(image: sitk.Image, path: Path, other: sitk.Image, other_path: Path) -> sitk.Image:
    """The image with its axes in the order and sense of another one's, on whose voxels its own must lie.

    Raises InputError where they do not.
    """
    image = turned_like(image, other)
    check_same_grid(image, path, other, other_path)
    return image


def turned_like(image: sitk.Image, other: sitk.Image) -> sitk.Image:
    """The image with its axes in the order and sense that is nearest to those of another one."""
    turn = np.reshape(other.GetDirection(), (3, 3)).T @ np.reshape(image.GetDirection(), (3, 3))
    order = np.abs(turn).argmax(1)
    if sorted(order) == [0, 1, 2] and not np.array_equal(np.rint(turn), np.eye(3)):
        image = turned(image, order, np.diag(turn[:, order]) < 0)
    return image


def check_same_grid(image: sitk.Image, path: Path, other: sitk.Image, other_path: Path) -> None:
    """Raise InputError unless both lie on one grid; headers are float32, so a hundredth of a voxel is let pass."""
    if image.GetSize() != other.GetSize():
        raise InputError(f"{path}: has {image.GetSize()} voxels, {other_path} {other.GetSize()}; they must be the same")
    tolerance = 0.01 * min(image.GetSpacing())
    x, y, z = (n - 1 for n in image.GetSize())
    for corner in ((0, 0, 0), (x, 0, 0), (0, y, 0), (0, 0, z)):
        points = [volume.TransformIndexToPhysicalPoint(corner) for volume in (image, other)]
        if max(abs(a - b) for a, b in zip(*points, strict=True)) > tolerance:
            shown = " and ".join(f"({', '.join(f'{value:.2f}' for value in point)})" for point in points)
            raise InputError(
                f"{path}: lies elsewhere than {other_path}: voxel {corner} is at {shown} mm; "
                "correct the header that is wrong, or resample one onto the other"
            )


def _read_other(path: Path) -> sitk.Image:
    """A volume of 3 or 4 dimensions in a format that ITK reads from one file."""
    ending = path.suffix.lower()
    if ending not in OTHERS:
        known = ", ".join((".nii", ".nii.gz", ".hdr with .img", *OTHERS))
        raise InputError(f"{path}: is no file of a known kind ({known}); convert it to NIfTI, or name a DICOM folder")
    reader_name, forbidden = OTHERS[ending]
    fields = _header(path, ending, forbidden)
    _check_fields(fields, ending, path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(itk_path(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if math.prod(size[:3]) > MAX_VOXELS or math.prod(size[3:]) > MAX_CHANNELS:
            raise InputError(f"{path}: says that it has {size} voxels, of at most {MAX_VOXELS:,}; crop it")
        image = reader.Execute()
        if fields.get("compresseddata", "")[:1] in ("t", "1"):  # as ITK reads it
            _check_packed(path, fields, sitk.GetArrayViewFromImage(image).nbytes)
    except RuntimeError as error:
        raise InputError(f"{path}: not a readable volume ({itk_reason(error)}); copy or export it again") from None
    kind = image.GetPixelIDTypeAsString()
    if image.GetDimension() not in (3, 4) or image.GetNumberOfComponentsPerPixel() != 1 or "complex" in kind:
        raise InputError(f"{path}: is no volume of numbers ({image.GetDimension()} dimensions); export volumes")
    if "float" in kind and not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise InputError(f"{path}: holds voxels that are NaN or infinite; give them a value, such as that of air")
    return image


def _straight(image: sitk.Image, path: Path) -> sitk.Image:
    direction = np.reshape(image.GetDirection(), (3, 3))
    straight = right_angles(direction, path)
    if np.abs(direction - straight).max() > 1e-5:
        image.SetDirection(straight.ravel().tolist())
    return image


def _header(path: Path, ending: str, forbidden: tuple[bytes, ...]) -> dict[str, str]:
    """The fields of a header, in small letters.

    Raises InputError for one that leads to other files: ITK would read any of them, and takes their names for a format.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if ending == ".mha":  # nowhere else, whatever ITK takes for the end of the header
            end = content.find(LAST_FIELD)
            alone = len(re.findall(rb"(?i)elementdatafile", content)) == 1 and 0 < end < LONGEST_HEADER
        else:
            blank = re.search(rb"\r?\n\r?\n", content[:LONGEST_HEADER])
            end = blank.start() if blank else 0
            alone = blank is not None and not any(word in content[:end].lower() for word in forbidden)
        head = content[: max(0, end)].decode("latin-1").lower()
    if not alone:
        raise InputError(f"{path}: does not hold its own voxels; convert it to NIfTI")
    pairs = [line.split("=" if ending == ".mha" else ":", 1) for line in head.splitlines()]
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _check_packed(path: Path, fields: dict[str, str], size: int) -> None:
    """Raises InputError unless what stands behind the header unpacks to so many bytes: ITK takes what it gets."""
    content = path.read_bytes()
    packed = content[content.find(LAST_FIELD) + len(LAST_FIELD) :]
    unpacker, unpacked = zlib.decompressobj(), 0
    with contextlib.suppress(zlib.error):
        for start in range(0, len(packed), PIECE):
            unpacked += len(unpacker.decompress(packed[start : start + PIECE]))
    if not unpacker.eof or unpacked != size or fields.get("compresseddatasize") != str(len(packed)):
        raise InputError(f"{path}: its packed voxels are damaged; copy or export it again")


def _check_fields(fields: dict[str, str], ending: str, path: Path) -> None:
    """Raises InputError where ITK would make up a spacing, or leave out a unit or a scale."""
    spacing = next((fields[name] for name in SPACINGS[ending] if name in fields), "")
    numbers = [part for part in re.split(r"[\s(),]+", spacing) if part]
    if len(numbers) < 3 or "nan" in numbers:
        raise InputError(
            f"{path}: does not say how large its voxels are; export it with a spacing, or convert it to NIfTI"
        )
    unit = " ".join(fields.get(name, "") for name in ("distanceunits", "space units", "units"))
    if not set(re.findall(r"[^\s\"]+", unit)) <= {"mm", "?"}:
        raise InputError(f"{path}: its unit is {unit.strip()}; export it in mm")
    if fields.get("headersize", "0") not in ("0", "-1"):
        raise InputError(f"{path}: has a HeaderSize, so its voxels begin elsewhere; export it again")
    scale = [fields.get(f"elementtointensityfunction{name}", "") for name in ("slope", "offset")]
    if any(text and _number(text) != neutral for text, neutral in zip(scale, (1, 0), strict=True)):
        raise InputError(
            f"{path}: its values are to be scaled, which is not done; export it with ElementToIntensity"
            "FunctionSlope 1 and Offset 0"
        )
    if ending == ".nrrd" and not re.match(r"r.*a.*s|l.*a.*s|l.*p.*s", fields.get("space", "")):
        note(path, "does not say in which space it lies; its axes are taken as left, posterior, superior, as in ITK")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
