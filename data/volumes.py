"""From slices to the volume of a subject, and from the volume to NIfTI in the geometry of its scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from utils import InputError, atomic_path

MAX_SPAN = 10_000  # slices; numbers further apart are dates or the like


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


def to_scan(volume: np.ndarray, geometry: dict[str, Any]) -> sitk.Image:
    """The volume (D, H, W) as an image with the geometry of dataset.json, axes in the order of the original scan.

    `geometry` may hold spacing (x, y, z) in mm, origin, direction (row by row) and orientation, the axis code of the
    scan before its slices were turned to LPS; what is missing is 1 mm, the zero point, the identity and LPS.
    """
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(geometry.get("spacing", (1.0, 1.0, 1.0)))
    image.SetOrigin(geometry.get("origin", (0.0, 0.0, 0.0)))
    image.SetDirection(geometry.get("direction", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)))
    return sitk.DICOMOrient(image, geometry["orientation"]) if "orientation" in geometry else image


def write_nifti(path: Path, volume: np.ndarray, geometry: dict[str, Any]) -> None:
    """Write a volume (D, H, W) to `path` (.nii.gz), atomically, so that it overlays its scan; see `to_scan`."""
    with atomic_path(path) as temporary:
        sitk.WriteImage(to_scan(volume, geometry), temporary, useCompression=True)
