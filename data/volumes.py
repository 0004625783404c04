"""From slices to the volume of a subject, and between the grid of the slices and that of the scan."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from utils import InputError, atomic_path

MAX_SPAN = 10_000  # slices; numbers further apart are dates or the like
MAX_VOXELS = 2**31  # of a scan; 1024 x 1024 x 2048
LONGEST = 1e6  # mm, for lengths and positions; no scanner is a kilometer long
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class Volume(NamedTuple):
    """A subject's segmentation and truth: class indices, uint8 (slices, H, W)."""

    subject: str
    prediction: np.ndarray
    target: np.ndarray


class Grid(NamedTuple):
    """Where voxels lie: (x, y, z) size in voxels, spacing in mm, position of the first voxel, and axes row by row."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """The grid of an image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def to_dict(self) -> dict[str, Any]:
        """Size, spacing and origin as dataset.json keeps them; the direction stands once for all grids of a subject."""
        return {"size": list(self.size), "spacing": list(self.spacing), "origin": list(map(float, self.origin))}

    def position(self, index: Sequence[float]) -> np.ndarray:
        """The position in mm of a voxel index (x, y, z)."""
        return np.array(self.origin) + np.reshape(self.direction, (3, 3)) @ (np.array(index) * self.spacing)


def fit_grid(grid: Grid, size: int | None, spacing: tuple[float, float] | None) -> Grid:
    """The grid with another spacing (x, y) in mm, then cropped or padded about its center to `size` x `size` slices."""
    if spacing is not None:
        new = (*spacing, grid.spacing[2])
        count = tuple(max(1, round(n * s / t)) for n, s, t in zip(grid.size, grid.spacing, new, strict=True))
        # The middle of the scan stays where it is.
        middle = grid.position([(n - 1) / 2 for n in grid.size])
        half = Grid(count, new, (0.0, 0.0, 0.0), grid.direction).position([(n - 1) / 2 for n in count])
        grid = Grid(count, new, tuple(middle - half), grid.direction)
    if size is not None:
        first = [(n - size) // 2 for n in grid.size[:2]]
        grid = Grid((size, size, grid.size[2]), grid.spacing, tuple(grid.position([*first, 0])), grid.direction)
    return grid


def place(image: sitk.Image, grid: Grid, smooth: bool, outside: float = 0.0) -> sitk.Image:
    """The image on another grid: linear where `smooth`, else nearest, exact for a crop; around it is `outside`."""
    if Grid.of(image) == grid:
        return image
    method = sitk.sitkLinear if smooth else sitk.sitkNearestNeighbor
    kind = image.GetPixelID()
    if smooth and kind not in (sitk.sitkFloat32, sitk.sitkFloat64):
        kind = sitk.sitkFloat32  # for integers, ITK cuts off the fraction of what it interpolates
    size, spacing, origin, direction = grid
    return sitk.Resample(image, size, sitk.Transform(), method, origin, spacing, direction, outside, kind)


def itk_path(path: Path) -> str:
    """The path for ITK, which ends the program where a name is no text. Raises InputError for such a name."""
    if str(path).encode(errors="replace").decode() != str(path):
        raise InputError(f"{path}: a name with bytes that are no UTF-8; rename the file or folder")
    return str(path)


def itk_reason(error: RuntimeError) -> str:
    """What an ITK error says, in a line without the addresses of objects."""
    return re.sub(r"^.*\(0x[0-9a-f]+\): ", "", str(error).strip().splitlines()[-1])


def assemble(numbers: Sequence[int], slices: Sequence[np.ndarray]) -> np.ndarray:
    """Slices (H, W) of one subject -> volume (D, H, W), each at its number less the smallest; gaps hold zeros.

    Raises ValueError for a number given twice or slices of several shapes, InputError for numbers too far apart.
    """
    if len(set(numbers)) != len(slices) or len(numbers) != len(slices):
        raise ValueError(f"{len(slices)} slices need as many different numbers, not {sorted(numbers)}")
    first, last = min(numbers), max(numbers)
    if last - first >= MAX_SPAN:
        raise InputError(f"slice numbers run from {first} to {last} for {len(slices)} slices; number them one by one")
    volume = np.zeros((last - first + 1, *slices[0].shape), slices[0].dtype)
    for number, array in zip(numbers, slices, strict=True):
        if array.shape != slices[0].shape:
            raise ValueError(f"slices of one subject have shapes {slices[0].shape} and {array.shape}")
        volume[number - first] = array
    return volume


def array_spacing(geometry: dict[str, Any]) -> tuple[float, float, float] | None:
    """dataset.json's spacing (x, y, z) in the order of the array's axes (z, y, x), in mm; None where unknown."""
    return tuple(geometry["spacing"][::-1]) if "spacing" in geometry else None


def _are_numbers(values: Any, count: int, smallest: float = -LONGEST, kinds: tuple[type, ...] = (int, float)) -> bool:
    right = isinstance(values, list) and len(values) == count and all(type(value) in kinds for value in values)
    return right and all(smallest <= value <= LONGEST for value in values)


def _are_lengths(values: Any) -> bool:
    return _are_numbers(values, 3, 1 / LONGEST)


def _are_axes(values: Any) -> bool:
    if not _are_numbers(values, 9):
        return False
    axes = np.reshape(values, (3, 3))
    return np.allclose(axes @ axes.T, np.eye(3), atol=1e-2)


def _is_grid(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == {"size", "spacing", "origin"}
        and _are_numbers(values["size"], 3, 1, (int,))
        and math.prod(values["size"]) <= MAX_VOXELS
        and _are_lengths(values["spacing"])
        and _are_numbers(values["origin"], 3)
    )


def _is_code(value: Any) -> bool:
    # One letter of each pair RL, AP, IS: their places, halved, are 0, 1 and 2.
    return isinstance(value, str) and sorted("RLAPIS".find(letter) // 2 for letter in value) == [0, 1, 2]


# What `to_scan` takes from a subject's entry in dataset.json: a test of each value, and what it must be in words.
GEOMETRY = {
    "size": (lambda values: _are_numbers(values, 3, 1, (int,)), "three whole numbers (columns, rows, slices)"),
    "spacing": (_are_lengths, "three lengths in mm (x, y, z)"),
    "origin": (lambda values: _are_numbers(values, 3), "a position in mm (x, y, z)"),
    "direction": (_are_axes, "nine numbers, three axes at right angles, row by row"),
    "original": (_is_grid, f"size, spacing and origin of a scan of at most {MAX_VOXELS:,} voxels"),
    "orientation": (_is_code, "an axis code such as LPS"),
}


def largest_components(volume: np.ndarray) -> np.ndarray:
    """Class indices (D, H, W) -> the same, of each class only the largest piece; the rest becomes background.

    Voxels hang together that share a face. Of pieces of one size the first one, slice by slice and row by row, stays.
    """
    cleaned = np.zeros_like(volume)
    for k in np.unique(volume[volume > 0]):
        pieces, count = ndimage.label(volume == k)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        cleaned[pieces == 1 + sizes.argmax()] = k
    return cleaned


def was_resampled(geometry: dict[str, Any]) -> bool:
    """Whether a subject's slices have another spacing than its scan, by its entry in dataset.json."""
    return "original" in geometry and [*geometry["original"]["spacing"]] != [*geometry.get("spacing", (1.0, 1.0, 1.0))]


def to_scan(volume: np.ndarray, geometry: dict[str, Any], smooth: bool = False) -> sitk.Image:
    """A volume (D, H, W) on the grid of the scan that its slices were made of, labels to the nearest voxel.

    With `smooth`, for what is no label, linearly where slices were resampled; a crop keeps its voxels as they are.

    `geometry` is a subject's entry in dataset.json: spacing (x, y, z) in mm, origin, direction (row by row); original,
    the scan's own size, spacing and origin where the slices were cropped, padded or resampled; orientation, the scan's
    axis code before it was turned to LPS. What is missing is 1 mm, the zero point, the identity, the same, and LPS.
    """
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(geometry.get("spacing", (1.0, 1.0, 1.0)))
    image.SetOrigin(geometry.get("origin", (0.0, 0.0, 0.0)))
    image.SetDirection(geometry.get("direction", IDENTITY))
    if "original" in geometry:
        original = Grid(**geometry["original"], direction=image.GetDirection())
        image = place(image, original, smooth=smooth and was_resampled(geometry))
    return sitk.DICOMOrient(image, geometry["orientation"]) if "orientation" in geometry else image


def check_size(geometry: dict[str, Any], shape: tuple[int, int], where: Path, subject: str) -> None:
    """Raises InputError where slices (H, W) are not of the size that their entry in dataset.json gives."""
    rows, columns = shape
    if "size" in geometry and geometry["size"][:2] != [columns, rows]:
        stated = " x ".join(map(str, geometry["size"][:2]))
        raise InputError(
            f"{where}: the slices of subject {subject} have {columns} x {rows} pixels, and {stated} in dataset.json; "
            "prepare them again, or correct size, spacing and origin there"
        )


def geometry_of_slices(geometry: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """The geometry of a prepared scan, of which only the slices `first` to `last` are there (numbered from 1).

    They keep their place, and segmentations still come out on the grid of the whole scan.
    """
    if not geometry.keys() >= {"size", "spacing", "origin", "direction"}:
        return geometry
    count = geometry["size"][2]
    if not 1 <= first <= last <= count or last - first + 1 == count:
        return geometry
    whole = Grid(*(geometry[key] for key in ("size", "spacing", "origin", "direction")))
    origin = whole.position((0, 0, first - 1)).tolist()
    return {"original": whole.to_dict()} | geometry | {"origin": origin}


def write_nifti(path: Path, volume: np.ndarray, geometry: dict[str, Any]) -> None:
    """Write a label volume (D, H, W) to `path` (.nii.gz), atomically, so that it overlays its scan; see `to_scan`."""
    with atomic_path(path) as temporary:
        sitk.WriteImage(to_scan(volume, geometry), itk_path(temporary), useCompression=True)
