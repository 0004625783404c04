"""Where the voxels of a scan and of its slices lie, in mm."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from utils import InputError

MAX_VOXELS = 2**31  # of a scan; 1024 x 1024 x 2048
LONGEST = 1e6  # mm, for lengths and positions; no scanner is a kilometer long
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


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


@dataclass(frozen=True)
class Geometry:
    """A subject's entry in dataset.json: where its slices lie, and the way back to its scan. None: not known."""

    spacing: tuple[float, float, float] | None = None
    """Of columns, rows and slices (x, y, z), in mm."""
    size: tuple[int, int, int] | None = None
    """Columns, rows and slices."""
    origin: tuple[float, float, float] | None = None
    """Position of the first voxel in mm."""
    direction: tuple[float, ...] | None = None
    """Axes, row by row; of the slices and of `original`."""
    original: Grid | None = None
    """The scan's own grid where the slices were cropped, padded or resampled."""
    orientation: str | None = None
    """The scan's axis code before it was turned to that of the slices, such as RAS."""

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Geometry:
        """An entry of dataset.json, of which other keys are left out. Raises InputError for a value that is none."""
        for key, (fits, wanted) in CHECKS.items():
            if key in entry and not fits(entry[key]):
                raise InputError(f"{key} must be {wanted}, not {reprlib.repr(entry[key])}")
        known = {key: entry[key] for key in CHECKS if key in entry}
        for key in ("spacing", "origin", "direction"):
            if key in known:
                known[key] = tuple(float(value) for value in known[key])
        if "size" in known:
            known["size"] = tuple(known["size"])
        if "original" in known:
            grid = {key: tuple(values) for key, values in known["original"].items()}
            known["original"] = Grid(**grid, direction=known.get("direction", IDENTITY))
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        entry = {key: getattr(self, key) for key in CHECKS if getattr(self, key) is not None}
        if self.original is not None:
            entry["original"] = self.original.to_dict()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in entry.items()}

    @property
    def array_spacing(self) -> tuple[float, float, float] | None:
        """The spacing in the order of an array's axes (z, y, x)."""
        return self.spacing and self.spacing[::-1]

    @property
    def pixel_aspect(self) -> float:
        """The height of a pixel by its width; 1 where the spacing is not known."""
        return self.spacing[1] / self.spacing[0] if self.spacing else 1.0

    @property
    def was_resampled(self) -> bool:
        """Whether the slices have another spacing than the scan."""
        return self.original is not None and self.original.spacing != (self.spacing or (1.0, 1.0, 1.0))

    @property
    def grid(self) -> Grid | None:
        """The grid of the slices, where all of it is known."""
        parts = self.size, self.spacing, self.origin, self.direction
        return None if None in parts else Grid(*parts)

    def check_size(self, shape: tuple[int, int]) -> None:
        """Raises InputError where slices (H, W) are not of the size that the entry gives."""
        rows, columns = shape
        if self.size is not None and self.size[:2] != (columns, rows):
            stated = " x ".join(map(str, self.size[:2]))
            raise InputError(
                f"its slices have {columns} x {rows} pixels, and {stated} in dataset.json; "
                "prepare them again, or correct size, spacing and origin there"
            )

    def of_slices(self, first: int, last: int) -> Geometry:
        """The geometry where only the slices `first` to `last` of the scan are there (numbered from 1).

        They keep their position, and segmentations still come out on the grid of the whole scan.
        """
        if self.grid is None:
            return self
        count = self.grid.size[2]
        inside = 1 <= first <= last <= count
        if not inside or last - first + 1 == count:
            return self
        origin = tuple(self.grid.position((0, 0, first - 1)).tolist())
        return replace(self, origin=origin, original=self.original or self.grid)


def _are_numbers(values: Any, count: int, smallest: float = -LONGEST, kinds: tuple[type, ...] = (int, float)) -> bool:
    if not isinstance(values, list | tuple) or len(values) != count:
        return False
    return all(type(value) in kinds and smallest <= value <= LONGEST for value in values)


def _are_lengths(values: Any) -> bool:
    return _are_numbers(values, 3, 1 / LONGEST)


def _are_counts(values: Any) -> bool:
    return _are_numbers(values, 3, 1, (int,))


def _are_coordinates(values: Any) -> bool:
    return _are_numbers(values, 3)


def _are_axes(values: Any) -> bool:
    if not _are_numbers(values, 9):
        return False
    axes = np.reshape(values, (3, 3))
    return np.allclose(axes @ axes.T, np.eye(3), atol=1e-2)


def _is_grid(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == {"size", "spacing", "origin"}
        and _are_counts(values["size"])
        and math.prod(values["size"]) <= MAX_VOXELS
        and _are_lengths(values["spacing"])
        and _are_coordinates(values["origin"])
    )


def _is_code(value: Any) -> bool:
    axes = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}
    return isinstance(value, str) and sorted(axes.get(letter, -1) for letter in value) == [0, 1, 2]


# What `Geometry` takes from a subject's entry in dataset.json: a test of each value, and what it must be in words.
CHECKS = {
    "size": (_are_counts, "three whole numbers (columns, rows, slices)"),
    "spacing": (_are_lengths, "three lengths in mm (x, y, z)"),
    "origin": (_are_coordinates, "a position in mm (x, y, z)"),
    "direction": (_are_axes, "nine numbers, three axes at right angles, row by row"),
    "original": (_is_grid, f"size, spacing and origin of a scan of at most {MAX_VOXELS:,} voxels"),
    "orientation": (_is_code, "an axis code such as LPS"),
}
