"""How a scan becomes slices: the one way for training data and for new scans, kept in dataset.json and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from data.geometry import IDENTITY, LONGEST, MAX_VOXELS, Geometry, Grid, fit_grid
from data.png import MAX_PIXELS
from data.volumes import axis_code, code_of, oriented, resample
from utils import InputError, OptionError

# Axis codes (x, y, z increase towards ...) that show each kind of slice in the radiological convention.
AXES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
PLANES = {"axial": "SI", "coronal": "AP", "sagittal": "LR"}  # the axis across each plane
COARSER = 1.2  # times the other spacings: the distance of acquired slices


class Slices(NamedTuple):
    """A scan as slices: what is written as PNG or given to the network."""

    images: np.ndarray | list[np.ndarray]
    """(channels, D, H, W), uint8 or uint16, full range; of pictures, (D, H, W) or (D, H, W, 3) for each file."""
    label: np.ndarray | None
    """(D, H, W), integers."""
    geometry: Geometry
    """The way back to the scan."""


@dataclass(frozen=True)
class Preparation:
    """What is done to each scan. The defaults are the paper's: whole slices, each stretched to 8 bits."""

    axis: str = "acquired"
    """Slices are axial, coronal or sagittal, or lie as they were acquired: across the axis of the largest spacing."""
    size: int | None = None
    """Crop or pad slices about their center to this many rows and columns."""
    spacing: tuple[float, float] | None = None
    """Resample slices to this spacing (x, y) in mm: images linearly, labels to the nearest."""
    normalize: str = "slice"
    """Stretch each "slice" or each "volume" from its smallest to its largest value, or, "percentiles", each volume from
    its 0.5th to its 99.5th percentile. "none" is for pictures, which keep their values; of the rest, `size` counts."""
    window: tuple[float, float] | None = None
    """Center and width in the scan's units (CT: HU); values are cut to it and stretched from it instead."""
    bits: int = 8
    """Depth of the images, 8 or 16."""

    def __post_init__(self) -> None:
        if self.axis not in ("acquired", *AXES):
            raise OptionError(f"axis {self.axis}: must be one of acquired, {', '.join(AXES)}")
        if self.size is not None and not (type(self.size) is int and 32 <= self.size <= MAX_PIXELS**0.5):
            raise OptionError(f"size {self.size}: must be 32 to {int(MAX_PIXELS**0.5)}")
        if self.spacing is not None and not (_is_pair(self.spacing) and min(self.spacing) > 1 / LONGEST):
            raise OptionError(f"spacing {self.spacing}: must be two lengths in mm")
        if self.window is not None and not (_is_pair(self.window) and self.window[1] > 0):
            raise OptionError(f"window {self.window}: must be a center and a width above 0")
        if self.normalize not in ("slice", "volume", "percentiles", "none"):
            raise OptionError(f"normalize {self.normalize}: must be slice, volume, percentiles or none")
        if self.bits not in (8, 16):
            raise OptionError(f"bits {self.bits}: must be 8 or 16")

    def apply(self, images: Sequence[sitk.Image], label: sitk.Image | None = None) -> Slices:
        """Turn a scan's channels, and its label if it has one, into slices.

        Raises InputError for NaN, infinity, slices or volumes that are too large, and where it is for pictures.
        """
        if self.of_pictures:
            raise InputError("is a scan, while these slices are made of pictures; export its slices as PNG")
        orientation = axis_code(images[0])
        axes = AXES[acquired_plane(images[0]) if self.axis == "acquired" else self.axis]
        upright = [oriented(image, axes) for image in images]
        original = Grid.of(upright[0])
        grid = fit_grid(original, self.size, self.spacing)
        if grid.size[0] * grid.size[1] > MAX_PIXELS:
            raise InputError(f"would have slices of {grid.size[1]} x {grid.size[0]} pixels; choose a larger spacing")
        if math.prod(grid.size) > MAX_VOXELS:
            raise InputError(f"would have more than {MAX_VOXELS:,} voxels; choose a larger spacing")
        geometry = Geometry(
            spacing=grid.spacing,
            size=grid.size,
            origin=tuple(float(value) for value in grid.origin),
            direction=grid.direction,
            original=original if grid != original else None,
            orientation=orientation,
        )
        channels = []
        for image in upright:
            darkest = float(sitk.GetArrayViewFromImage(image).min())  # around a scan is air, in CT far from 0
            there = resample(image, grid, smooth=self.spacing is not None, outside=darkest)
            channels.append(sitk.GetArrayFromImage(there))
        mask = None
        if label is not None:
            turned = oriented(label, axes)
            mask = sitk.GetArrayFromImage(resample(turned, grid, smooth=False))
        inside = self._inside(original)
        return Slices(np.stack([self._grey(channel, inside) for channel in channels]), mask, geometry)

    @property
    def of_pictures(self) -> bool:
        """Whether it is for pictures: their values and colors stay."""
        return self.normalize == "none"

    def fit(self, pictures: np.ndarray, outside: int = 0) -> np.ndarray:
        """Pictures (D, H, W) or (D, H, W, 3), of any type, cropped or padded about their center to `size`."""
        if self.size is None:
            return pictures
        for axis in (1, 2):
            first = (pictures.shape[axis] - self.size) // 2
            before, after = max(0, -first), max(0, first + self.size - pictures.shape[axis])
            margins = [(before, after) if k == axis else (0, 0) for k in range(pictures.ndim)]
            padded = np.pad(pictures, margins, constant_values=outside)
            pictures = padded.take(range(max(0, first), max(0, first) + self.size), axis)
        return pictures

    def geometry_of_pictures(self, size: tuple[int, int, int]) -> Geometry:
        """Where fitted pictures lie in those of `size` (columns, rows, number); their spacing is not known."""
        if self.size is None:
            return Geometry(size=size)
        original = Grid(size, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
        fitted = fit_grid(original, self.size, None)
        return Geometry(size=fitted.size, origin=tuple(map(float, fitted.origin)), original=original)

    def _inside(self, original: Grid) -> tuple[slice, slice]:
        """The rows and columns of slices that are not padded."""
        columns, rows, _ = fit_grid(original, None, self.spacing).size
        first = [0 if self.size is None else (n - self.size) // 2 for n in (rows, columns)]
        return tuple(slice(max(0, -start), n - start) for start, n in zip(first, (rows, columns), strict=True))

    def _grey(self, volume: np.ndarray, inside: tuple[slice, slice]) -> np.ndarray:
        """Greys of slices (D, H, W); what says which value is black and which is white lies `inside`."""
        if not np.isfinite(volume).all():
            raise InputError("an image holds NaN or infinite values; correct the scan")
        if self.window is not None:
            center, width = self.window
            return stretch(volume, center - width / 2, center + width / 2, self.bits)
        scan = volume[:, *inside]
        if self.normalize == "volume":
            return stretch(volume, scan.min(), scan.max(), self.bits)
        if self.normalize == "percentiles":
            return stretch(volume, *np.percentile(scan, (0.5, 99.5)), self.bits)
        slices = zip(volume, scan, strict=True)
        return np.stack([stretch(pixels, part.min(), part.max(), self.bits) for pixels, part in slices])

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preparation:
        """The inverse of `to_dict`, also after JSON has made lists of tuples. Raises InputError for anything else."""
        if not isinstance(values, dict):
            raise InputError(f"is no set of options but {reprlib.repr(values)}")
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        except TypeError as error:
            raise InputError(f"preparation of another version ({error})") from None


def acquired_plane(image: sitk.Image) -> str:
    """The plane of AXES that is nearest to that in which a scan was acquired.

    Its slices lie along the axis of the largest spacing, and a single slice in its own plane; axial where neither says.
    """
    *_, second, largest = sorted(image.GetSpacing())
    sides = image.GetSize()
    if sides.count(1) == 1:
        axis = sides.index(1)
    elif largest >= COARSER * second:
        axis = image.GetSpacing().index(largest)
    else:
        return "axial"
    return _plane_across(axis_code(image)[axis])


def lie_of(geometry: Geometry) -> tuple[str, float]:
    """The plane of AXES that slices are nearest to, and by how many degrees one of their axes is off the body's."""
    axes = np.reshape(geometry.direction or IDENTITY, (3, 3))
    return _plane_across(code_of(axes)[2]), math.degrees(math.acos(min(1.0, np.abs(axes).max(0).min())))


def _plane_across(letter: str) -> str:
    """The plane of AXES that an axis towards this part of the body runs across."""
    return next(plane for plane, letters in PLANES.items() if letter in letters)


def _is_pair(values: Any) -> bool:
    return len(values) == 2 and all(type(value) in (int, float) and abs(value) <= LONGEST for value in values)


def stretch(values: np.ndarray, low: float, high: float, bits: int = 8) -> np.ndarray:
    """low to high -> 0 to the largest of so many bits, cut there, rounded to the nearest; low = high gives 0."""
    largest = 2**bits - 1
    dtype = np.uint8 if bits == 8 else np.uint16
    if not high > low:
        return np.zeros(values.shape, dtype)
    scaled = (values.astype(np.float64) - low) * (largest / (float(high) - float(low)))
    return np.rint(scaled.clip(0, largest)).astype(dtype)
