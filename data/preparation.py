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

from data.geometry import LONGEST, MAX_VOXELS, Geometry, Grid, fit_grid
from data.png import MAX_PIXELS
from data.volumes import resample
from utils import InputError, OptionError

# ITK's axis codes (x, y, z increase towards ...) that show each kind of slice in the radiological convention.
AXES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}


class Slices(NamedTuple):
    """A scan as slices: what is written as PNG or given to the network."""

    images: np.ndarray
    """(channels, D, H, W), uint8 or uint16, full range."""
    label: np.ndarray | None
    """(D, H, W), integers."""
    geometry: Geometry
    """The way back to the scan."""


@dataclass(frozen=True)
class Preparation:
    """What is done to each scan. The defaults are the paper's: whole axial slices, each stretched to 8 bits."""

    axis: str = "axial"
    """Slices are axial, coronal or sagittal."""
    size: int | None = None
    """Crop or pad slices about their center to this many rows and columns."""
    spacing: tuple[float, float] | None = None
    """Resample slices to this spacing (x, y) in mm: images linearly, labels to the nearest."""
    normalize: str = "slice"
    """Stretch each "slice" or each "volume" from its smallest to its largest value, or, "percentiles", each volume from
    its 0.5th to its 99.5th percentile."""
    window: tuple[float, float] | None = None
    """Center and width in the scan's units (CT: HU); values are cut to it and stretched from it instead."""
    bits: int = 8
    """Depth of the images, 8 or 16."""

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise OptionError(f"axis {self.axis}: must be one of {', '.join(AXES)}")
        if self.size is not None and not (type(self.size) is int and 32 <= self.size <= MAX_PIXELS**0.5):
            raise OptionError(f"size {self.size}: must be 32 to {int(MAX_PIXELS**0.5)}")
        if self.spacing is not None and not (_is_pair(self.spacing) and min(self.spacing) > 1 / LONGEST):
            raise OptionError(f"spacing {self.spacing}: must be two lengths in mm")
        if self.window is not None and not (_is_pair(self.window) and self.window[1] > 0):
            raise OptionError(f"window {self.window}: must be a center and a width above 0")
        if self.normalize not in ("slice", "volume", "percentiles"):
            raise OptionError(f"normalize {self.normalize}: must be slice, volume or percentiles")
        if self.bits not in (8, 16):
            raise OptionError(f"bits {self.bits}: must be 8 or 16")

    def apply(self, images: Sequence[sitk.Image], label: sitk.Image | None = None) -> Slices:
        """Turn a scan's channels, and its label if it has one, into slices.

        Raises InputError for NaN, infinity, and slices or volumes that are too large.
        """
        orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images[0].GetDirection())
        upright = [sitk.DICOMOrient(image, AXES[self.axis]) for image in images]
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
            turned = sitk.DICOMOrient(label, AXES[self.axis])
            mask = sitk.GetArrayFromImage(resample(turned, grid, smooth=False))
        return Slices(np.stack([self._grey(channel) for channel in channels]), mask, geometry)

    def _grey(self, volume: np.ndarray) -> np.ndarray:
        if not np.isfinite(volume).all():
            raise InputError("an image holds NaN or infinite values; correct the scan")
        if self.window is not None:
            center, width = self.window
            return stretch(volume, center - width / 2, center + width / 2, self.bits)
        if self.normalize == "volume":
            return stretch(volume, volume.min(), volume.max(), self.bits)
        if self.normalize == "percentiles":
            return stretch(volume, *np.percentile(volume, (0.5, 99.5)), self.bits)
        return np.stack([stretch(pixels, pixels.min(), pixels.max(), self.bits) for pixels in volume])

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
