"""A DICOM segmentation (SEG) as a label volume: many frames in one file, each a bit mask of one segment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import uid

from data.geometry import LONGEST, MAX_VOXELS, Grid
from data.sources.dicom_file import (
    DEFLATED,
    PLAIN,
    ROUNDED,
    explain,
    is_dicom,
    numbers,
    orientation,
    pixel_spacing,
    position,
    read_file,
    rounding,
    whole,
)
from data.volumes import MAX_SPAN, like, resample
from utils import InputError, note, some

MOST_PARTS = 4  # slices that the closest frames may be apart, where the header does not say the distance
PARALLEL = 0.999999  # cosine of the angle between two normals
KINDS = (uid.SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7")  # bits, and label maps


class _Frames(NamedTuple):
    """What the functional groups of a file say of its frames."""

    segments: list[int]
    positions: np.ndarray
    """(frames, 3) in mm."""
    axes: np.ndarray
    """Of columns, rows and slices, a unit vector a row."""
    spacing: np.ndarray
    """Of columns, then rows, in mm."""
    stated: list[float]
    """What the file says of the distance of its slices, and of their thickness; 0 for nothing."""


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation."""
    return is_dicom(path) and str(read_file(path).get("SOPClassUID")) in KINDS


def read_segmentation(path: Path) -> sitk.Image:
    """The numbers of the segments, uint16. Slices that the file leaves out between the outermost ones hold 0.

    Raises InputError for damage, fractional and compressed segmentations, label maps, segments that overlap, and
    frames that do not lie in one stack of slices at equal distances.
    """
    header = read_file(path)
    with explain(path):
        masks = _read_masks(path, header)
        frames = _read_frames(header, len(masks))
        heights = (frames.positions - frames.positions[0]) @ frames.axes[2]
        sideways = frames.positions - frames.positions[0] - np.outer(heights, frames.axes[2])
        if np.linalg.norm(sideways, axis=1).max() > rounding(frames.spacing.min()):
            raise InputError(f"{path}: its frames do not lie straight above each other; resample it to NIfTI")
        steps, gap = _steps(path, heights - heights.min(), frames.stated)
        shape = (max(steps) + 1, *masks.shape[1:])
        if shape[0] > MAX_SPAN or math.prod(shape) > MAX_VOXELS:
            raise InputError(f"{path}: its frames span {shape[0]} slices, more than a scan can have; export it again")
        volume = np.zeros(shape, np.uint16)
        for step, segment, mask in zip(steps, frames.segments, masks, strict=True):
            if volume[step][mask].any():
                raise InputError(f"{path}: its segments overlap in a slice; export one segment a voxel")
            volume[step][mask] = segment
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((*frames.spacing.tolist(), gap))
    image.SetOrigin(frames.positions[steps.index(0)].tolist())
    image.SetDirection(frames.axes.T.ravel().tolist())
    return image


def segmentation_in(path: Path) -> Path | None:
    """The DICOM segmentation that a path is, or that a folder holds as its only DICOM file; None for anything else."""
    inside = [path]
    if path.is_dir():
        inside = [file for file in path.iterdir() if file.is_file() and is_dicom(file)]
    return inside[0] if len(inside) == 1 and inside[0].is_file() and is_segmentation(inside[0]) else None


def check_frame(path: Path, scan: Path) -> None:
    """Raises InputError where a segmentation says another frame of reference than a file of a scan."""
    frames = []
    for file in (path, scan):
        header = read_file(file)
        with explain(file):
            frames.append(str(header.get("FrameOfReferenceUID") or "").strip())
    if all(frames) and frames[0] != frames[1]:
        raise InputError(
            f"{path}: lies in another frame of reference than {scan}, so their positions have nothing to do with each "
            "other; choose the segmentation of this series"
        )


def segment_names(path: Path) -> dict[int, str]:
    """Number of a segment -> its label; "segment 1" and the like of those that have none."""
    header = read_file(path)
    with explain(path):
        numbered = {int(segment.SegmentNumber): segment for segment in header.get("SegmentSequence") or []}
        labels = {number: str(segment.get("SegmentLabel") or "").strip() for number, segment in numbered.items()}
    return {number: label or f"segment {number}" for number, label in labels.items()}


def read_named(path: Path, values: Mapping[str, int]) -> sitk.Image:
    """A segmentation in the `values` of the classes that its segments are called as.

    Capitals do not count. Where segments are called otherwise, their numbers are the values, with a note. Raises
    InputError as `read_segmentation` does, and where a segment is called as a class of another value than its number
    while other segments are no classes.
    """
    image, names = read_segmentation(path), segment_names(path)
    numbers = sitk.GetArrayViewFromImage(image)
    spelled = {name.casefold(): name for name in values} | {name: name for name in values}
    names = {number: spelled.get(name, spelled.get(name.casefold(), name)) for number, name in names.items()}
    found = {int(number): names[int(number)] for number in np.unique(numbers) if number}
    if not all(name in values for name in found.values()):
        for number, name in found.items():
            if values.get(name, number) != number:
                other = next(name for name in found.values() if name not in values)
                raise InputError(
                    f"{path}: its segment {number} is called {name}, which has the value {values[name]}, and a segment "
                    f"is called {other}, which is no class; name all segments as the classes, or number them so"
                )
        note(path, f"has segments that are not called as the classes ({some(list(found.values()))}); numbers count")
        return image
    table = np.zeros(max(found, default=0) + 1, np.uint16)
    table[0] = values.get("background", 0)
    for number, name in found.items():
        table[number] = values[name]
    return like(image, table[numbers])


def extended(image: sitk.Image, other: sitk.Image) -> sitk.Image:
    """A segmentation with the slices that it leaves out: as far as the other image reaches, at its distances.

    Frames that lie within a tenth of the distance at slices of the other image are those slices, and their pixels are
    those of the other image that lie as near as rounding moves them, since positions in DICOM files are rounded.
    """
    image = _on_pixels(_on_slices(image, other), other)
    grid = Grid.of(image)
    corners = product(*((-0.5, side - 0.5) for side in other.GetSize()))
    points = [other.TransformContinuousIndexToPhysicalPoint(corner) for corner in corners]
    heights = [image.TransformPhysicalPointToContinuousIndex(point)[2] for point in points]
    first, last = min(0, round(min(heights) + 0.5)), max(grid.size[2] - 1, round(max(heights) - 0.5))
    if last - first >= MAX_SPAN:
        return image
    size = (*grid.size[:2], last - first + 1)
    return resample(image, grid._replace(size=size, origin=tuple(grid.position((0, 0, first)))), smooth=False)


def _on_slices(image: sitk.Image, other: sitk.Image) -> sitk.Image:
    """A segmentation with its slices among those of the other image; as it is where they do not lie there."""
    grid, axes = Grid.of(image), np.reshape(other.GetDirection(), (3, 3))
    normal = np.reshape(grid.direction, (3, 3))[:, 2]
    lean = axes.T @ normal
    across = int(np.abs(lean).argmax())
    gap = float(np.sign(lean[across]) * other.GetSpacing()[across])  # below 0 where the other's slices run downwards
    base = (np.array(other.GetOrigin()) - grid.origin) @ normal
    stored = sitk.GetArrayViewFromImage(image)
    held = np.flatnonzero(stored.any((1, 2))) if stored.any() else np.arange(1)
    places = (held * grid.spacing[2] - base) / gap
    nearest = np.rint(places).astype(int)
    steps = (nearest - nearest[0]) * int(np.sign(gap))
    lies_there = abs(lean[across]) >= PARALLEL and np.abs(places - nearest).max() <= 0.1
    if not lies_there or len(set(steps)) < len(held) or not 0 <= steps[-1] < MAX_SPAN:
        return image
    array = np.zeros((steps[-1] + 1, *stored.shape[1:]), stored.dtype)
    array[steps] = stored[held]
    spread = sitk.GetImageFromArray(array)
    spread.SetSpacing((*grid.spacing[:2], abs(gap)))
    spread.SetOrigin((np.array(grid.origin) + (base + gap * nearest[0]) * normal).tolist())
    spread.SetDirection(grid.direction)
    return spread


def _on_pixels(image: sitk.Image, other: sitk.Image) -> sitk.Image:
    """A segmentation with its first pixel on that of the other image, where only rounding lies between them."""
    origin = np.array(image.GetOrigin())
    index = np.rint(other.TransformPhysicalPointToContinuousIndex(origin.tolist()))
    normal = np.reshape(image.GetDirection(), (3, 3))[:, 2]
    shift = Grid.of(other).position(index) - origin
    sideways = shift - (shift @ normal) * normal
    if np.linalg.norm(sideways) > rounding(min(image.GetSpacing()[:2])):
        return image
    moved = sitk.Image(image)
    moved.SetOrigin((origin + sideways).tolist())
    return moved


def _read_masks(path: Path, header: pydicom.FileDataset) -> np.ndarray:
    """The bits of the frames, bool (frames, rows, columns)."""
    kind = str(header.get("SegmentationType") or "").strip()
    syntax = header.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)
    if kind != "BINARY" or header.get("BitsAllocated") != 1:
        raise InputError(f"{path}: is a segmentation of type {kind or 'unknown'}; export a BINARY one, of one bit")
    if syntax not in (*PLAIN, DEFLATED):
        raise InputError(f"{path}: is compressed ({uid.UID(syntax).name}); unpack it, such as with gdcmconv")
    rows, columns = (whole(header, keyword, range(1, 2**16)) for keyword in ("Rows", "Columns"))
    count = whole(header, "NumberOfFrames", range(1, 2**20), 1)
    pixels = header.get_item("PixelData").value
    voxels = count * rows * columns
    if voxels > MAX_VOXELS or 8 * len(pixels) < voxels:
        raise ValueError(f"its pixels are cut: holds {8 * len(pixels):,} of {voxels:,} bits")
    bits = np.unpackbits(np.frombuffer(pixels, np.uint8), count=voxels, bitorder="little")
    return bits.reshape(count, rows, columns).astype(bool)


def _read_frames(header: pydicom.FileDataset, count: int) -> _Frames:
    """Raises ValueError where something is missing, or axes and spacings of frames differ."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    of_frames = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if len(of_frames) != count:
        raise ValueError(f"it describes {len(of_frames)} of its {count} frames")

    def group(frame: pydicom.Dataset, keyword: str) -> pydicom.Dataset:
        found = frame.get(keyword) or shared.get(keyword)
        if not found:
            raise ValueError(f"it has no {keyword}")
        return found[0]

    declared = {int(segment.SegmentNumber) for segment in header.get("SegmentSequence") or []}
    segments, positions, axes, spacings, gaps = [], [], [], [], []
    for frame in of_frames:
        segment = group(frame, "SegmentIdentificationSequence")
        segments.append(whole(segment, "ReferencedSegmentNumber", sorted(declared - {0})))
        place, lie = group(frame, "PlanePositionSequence"), group(frame, "PlaneOrientationSequence")
        positions.append(position(place))
        axes.append(orientation(lie))
        measures = group(frame, "PixelMeasuresSequence")
        spacings.append(pixel_spacing(measures))
        stated = [numbers(measures, name, default=0)[0] for name in ("SpacingBetweenSlices", "SliceThickness")]
        gaps.append(np.abs(stated))
    if not all(np.allclose(values, values[0], rtol=1e-4, atol=1e-4) for values in (axes, spacings, gaps)):
        raise ValueError("its frames differ in orientation or spacing")
    return _Frames(segments, np.array(positions), axes[0], spacings[0], gaps[0].tolist())


def _steps(path: Path, heights: np.ndarray, stated: list[float]) -> tuple[list[int], float]:
    """The slice of each frame, counted from the lowest, and the distance of slices.

    Slices without a segment may be missing: the distance is the largest of which the frames are multiples apart, and
    only then what headers say of it, which is often the thickness of slices, or 1.
    """
    levels = np.unique(heights)
    apart = np.diff(levels)
    apart = apart[apart > 1e-2]
    stated = [value for value in stated if value > 1 / LONGEST]
    if not apart.size:
        return [0] * len(heights), stated[0] if stated else 1.0
    parts = [float(apart.min()) / part for part in range(1, MOST_PARTS + 1)]
    fits = [(*_fit(levels, gap), min(ROUNDED / 2, 0.05 * gap)) for gap in (*parts, *stated)]
    fits += [(gap, 0.0, 0.1 * gap) for gap in parts]
    for gap, lowest, most in fits:
        steps = np.rint((heights - lowest) / gap)
        if np.abs(heights - lowest - steps * gap).max() < most:
            return steps.astype(int).tolist(), float(heights.max() / steps.max())
    shown = some([f"{value:.2f}" for value in np.unique(np.round(heights, 2))])
    raise InputError(f"{path}: its frames lie at no equal distances ({shown} mm); resample it to NIfTI")


def _fit(levels: np.ndarray, gap: float) -> tuple[float, float]:
    """The distance of rounded heights, about `gap`, and the lowest height, as more and more of them say it."""
    lowest, count = 0.0, 2
    while True:
        near = levels[:count]
        steps = np.rint((near - lowest) / gap)
        if steps.any():
            gap, lowest = np.polyfit(steps, near, 1).tolist()
        if count >= len(levels):
            return gap, lowest
        count *= 2
