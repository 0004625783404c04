"""From slices to the volume of a subject, and from the grid of the slices to that of the scan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data.geometry import IDENTITY, Geometry, Grid
from utils import InputError

BODY = ("LR", "PA", "SI")  # letters for axes that increase along x, y and z of DICOM's space, and against them
# A turn by a tenth of a degree about no axis, so that an axis at 45 degrees is nearer to one of two.
ASKEW = Rotation.from_rotvec([0.0005, 0.0011, 0.0017]).as_matrix()
MAX_SPAN = 10_000  # slices; numbers further apart are dates or the like


class Volume(NamedTuple):
    """A subject's segmentation and truth: class indices, uint8 (slices, H, W); truth may be IGNORED."""

    subject: str
    prediction: np.ndarray
    target: np.ndarray
    finite: bool = True
    """Whether all logits were; without them, the prediction means nothing."""


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


def resample(image: sitk.Image, grid: Grid, smooth: bool, outside: float = 0.0) -> sitk.Image:
    """The image on another grid: linear where `smooth`, else nearest, exact for a crop; around it is `outside`."""
    if Grid.of(image) == grid:
        return image
    method = sitk.sitkLinear if smooth else sitk.sitkNearestNeighbor
    kind = image.GetPixelID()
    if smooth and kind not in (sitk.sitkFloat32, sitk.sitkFloat64):
        # For integers, ITK cuts off the fraction of what it interpolates; float32 holds those of 16 bits.
        kind = sitk.sitkFloat32 if image.GetSizeOfPixelComponent() <= 2 else sitk.sitkFloat64
    size, spacing, origin, direction = grid
    return sitk.Resample(image, size, sitk.Transform(), method, origin, spacing, direction, outside, kind)


def to_scan(volume: np.ndarray, geometry: Geometry, smooth: bool = False) -> sitk.Image:
    """A volume (D, H, W) on the grid of the scan that its slices were made of, labels to the nearest voxel.

    With `smooth`, for what is no label, linearly where slices were resampled; a crop keeps its voxels as they are.
    What the geometry does not know is 1 mm, the zero point, the identity, the grid of the slices, and LPS.
    """
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(geometry.spacing or (1.0, 1.0, 1.0))
    image.SetOrigin(geometry.origin or (0.0, 0.0, 0.0))
    image.SetDirection(geometry.direction or IDENTITY)
    if geometry.original is not None:
        original = geometry.original._replace(direction=image.GetDirection())
        image = resample(image, original, smooth=smooth and geometry.was_resampled)
    return oriented(image, geometry.orientation) if geometry.orientation else image


def axis_code(image: sitk.Image) -> str:
    """Towards what of the body the axes x, y and z of an image increase, as nearly as letters can say it: LPS, ...

    It does not depend on the order in which the axes are stored, also where they lie askew, unlike ITK's.
    """
    return code_of(image.GetDirection())


def code_of(axes: Sequence[float]) -> str:
    """`axis_code` of axes as nine numbers, row by row."""
    direction = ASKEW @ np.reshape(axes, (3, 3))
    body = max(permutations(range(3)), key=lambda axes: np.abs(direction[axes, range(3)]).sum())
    return "".join(BODY[axis][int(direction[axis, k] < 0)] for k, axis in enumerate(body))


def oriented(image: sitk.Image, code: str) -> sitk.Image:
    """The image with its axes in the order and sense of an axis code; each voxel keeps its place."""
    own = axis_code(image)
    pairs = [next(pair for pair in BODY if letter in pair) for letter in own]
    order = [next(k for k, pair in enumerate(pairs) if letter in pair) for letter in code]
    return turned(image, order, [own[k] != letter for k, letter in zip(order, code, strict=True)])


def turned(image: sitk.Image, order: Sequence[int], flips: Sequence[bool]) -> sitk.Image:
    """The image with its axes in another order, then reversed where `flips`; each voxel keeps its place."""
    image = sitk.PermuteAxes(image, [int(axis) for axis in order])
    return image[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    """An array (D, H, W) as an image on the grid of another one."""
    other = sitk.GetImageFromArray(array)
    other.CopyInformation(image)
    return other


def itk_path(path: Path) -> str:
    """The path for ITK, which ends the program where a name is no text. Raises InputError for such a name."""
    if str(path).encode(errors="replace").decode() != str(path):
        raise InputError(f"{path}: a name with bytes that are no UTF-8; rename the file or folder")
    return str(path)


def itk_reason(error: RuntimeError) -> str:
    """What an ITK error says, in a line without the addresses of objects."""
    return re.sub(r"^.*\(0x[0-9a-f]+\): ", "", str(error).strip().splitlines()[-1])
