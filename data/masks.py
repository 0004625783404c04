"""What the masks of a data set must have in common, so that a value means one class in all of their files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.description import MAX_CLASSES, Labels
from data.png import GREY, NO_COLOR, PALETTE, RGB, Mask, unpack_color
from utils import InputError, some

MAX_SHOWN = 12  # colors or values in a message


class MaskValues(NamedTuple):
    """The values that a mask holds, and the colors that they are shown in."""

    path: Path
    kind: int
    """GREY, PALETTE or RGB."""
    colors: dict[int, int]
    """Stored value -> 0xRRGGBB, the most frequent first; of a mask in colors no more than show that it is no mask."""

    @classmethod
    def of(cls, mask: Mask, path: Path) -> MaskValues:
        """The values of a mask that was read from `path`."""
        values, counts = np.unique(mask.codes, return_counts=True)
        values = values[np.argsort(-counts, kind="stable")]
        if mask.kind == RGB:
            values = values[: MAX_CLASSES + 2]
        return cls(path, mask.kind, dict(zip(values.tolist(), mask.colors_of(values).tolist(), strict=True)))

    def classes(self, labels: Labels) -> set[int | None]:
        """The class indices in the mask, and IGNORED; None among them where a value or color is unknown."""
        known, found = labels.in_masks, self.colors.values() if labels.colors else self.colors
        return {known.get(value) for value in found}

    def shown(self) -> str:
        """The values in words."""
        return some(sorted(self.colors), MAX_SHOWN)


def check_colors(masks: Sequence[MaskValues], described: Path) -> None:
    """Raises InputError unless masks without a table of colors, in `described`, have one meaning for each value.

    That are masks in colors, and palettes that differ: one value in two colors, or one color with two values. Beside
    palettes, a grey value is the color that it is shown in.
    """
    remedy = f"list the color of each class in {described}, such as {_color_table(masks)}"
    for mask in masks:
        if mask.kind == RGB:
            raise InputError(f"{mask.path}: a mask in colors; {remedy}")
    if all(mask.kind == GREY for mask in masks):
        return
    color_of: dict[int, tuple[int, Path]] = {}
    value_of: dict[int, tuple[int, Path]] = {}
    for mask in sorted(masks, key=lambda mask: mask.kind == GREY):
        for value, color in mask.colors.items():
            first, path = color_of.setdefault(value, (color, mask.path))
            if color != first:
                here, there = _color_text(color), _color_text(first)
                raise InputError(f"{mask.path}: value {value} is shown in {here}, in {path} in {there}; {remedy}")
            first, path = value_of.setdefault(color, (value, mask.path))
            if value != first:
                shown = _color_text(color)
                raise InputError(f"{mask.path}: {shown} is value {value}, in {path} value {first}; {remedy}")


def check_background(masks: Sequence[MaskValues], described: Path) -> None:
    """Raises InputError where value 0, the background of masks without a table, is shown in a color and black is not 0.

    The masks have passed `check_colors`.
    """
    colors: dict[int, int] = {}
    for mask in masks:
        if mask.kind == PALETTE:
            colors |= mask.colors
    if colors.get(0, 0) != 0 and 0 in colors.values():
        path = next(mask.path for mask in masks if mask.kind == PALETTE and 0 in mask.colors)
        raise InputError(
            f"{path}: value 0 is shown in {_color_text(colors[0])}, and another value in black; list the color of each "
            f"class in {described}, such as {_color_table(masks)}"
        )


def extremes(masks: Sequence[MaskValues]) -> str:
    """The two masks with the smallest and the largest values, in words; an empty text where all end alike."""
    full = sorted((mask for mask in masks if max(mask.colors)), key=lambda mask: max(mask.colors))
    if not full or max(full[0].colors) == max(full[-1].colors):
        return ""
    low, high = full[0], full[-1]
    return f" ({low.path} holds {low.shown()} and {high.path} {high.shown()})"


def _color_table(masks: Sequence[MaskValues]) -> str:
    """The colors that are in most masks as a table for dataset.json, black as the background."""
    found = Counter(color for mask in masks for color in mask.colors.values() if color != NO_COLOR)
    colors = sorted((color for color, _ in found.most_common()), key=lambda color: color != 0)
    names = ["background", *(f"class {k}" for k in range(1, MAX_SHOWN))]
    table = {name: unpack_color(color) for name, color in zip(names, colors, strict=False)}
    text = json.dumps({"colors": table})
    if len(colors) > MAX_SHOWN:
        text += f" and more: {len(colors)} colors were found, as smoothing and JPEG make them"
    return text


def _color_text(color: int) -> str:
    return "a grey between those of 8 bits" if color == NO_COLOR else f"the color {unpack_color(color)}"
