"""Which classes a flip of slices exchanges: in its mirror image, a body's left kidney is the right one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.description import MIRROR_AXES, Labels
from data.geometry import Geometry
from data.volumes import code_of
from utils import InputError

AXES = (*MIRROR_AXES, "no")  # of slices, in the order of a direction's axes; the last one is across them


@dataclass(frozen=True)
class Mirror:
    """How a flip of slices (..., H, W) from left to right changes class indices."""

    axis: int
    """-1 where columns run from left to right or back, -2 where rows do; flips along the other exchange nothing."""
    exchanged: np.ndarray
    """uint8 (256,): class index -> its index on the other side."""


def mirror_of(labels: Labels, geometry: Geometry) -> Mirror | None:
    """How flips exchange classes in the slices of a subject; None where they exchange none, as in sagittal slices.

    Raises InputError where it is not known along which axis they do, or known in two ways that differ.
    """
    if not labels.mirror:
        return None
    stated = known = labels.mirror_axis
    if geometry.direction is not None:
        letters = code_of(geometry.direction)
        known = next(axis for axis, letter in zip(AXES, letters, strict=True) if letter in "LR")
    if not known:
        first, second = labels.mirror[0]
        raise InputError(
            "it is not known which axis of its slices runs from left to right, along which a flip exchanges "
            f"{first} and {second}"
        )
    if stated not in ("", known):
        raise InputError(
            f"by its direction, {known} axis of its slices runs from left to right, by mirror_axis the {stated} one"
        )
    if known not in MIRROR_AXES:
        return None
    exchanged = np.arange(256, dtype=np.uint8)
    for pair in labels.mirror:
        first, second = map(labels.names.index, pair)
        exchanged[[first, second]] = second, first
    return Mirror(MIRROR_AXES[known], exchanged)
