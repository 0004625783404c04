"""dataset.json: what a data set says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.geometry import Geometry
from data.preparation import Preparation
from utils import InputError, read_json

MAX_CLASSES = 256  # targets travel as uint8


@dataclass(frozen=True)
class Labels:
    """The one table of classes: class k is called names[k], codes[k] in masks and values[k] in volumes."""

    names: tuple[str, ...]
    codes: tuple[int, ...]
    values: tuple[int, ...]

    @classmethod
    def indexed(cls, names: tuple[str, ...], codes: tuple[int, ...]) -> Labels:
        """Labels whose values in volumes are the class indices."""
        return cls(names, codes, tuple(range(len(names))))

    def to_dict(self) -> dict[str, dict[str, int]]:
        """As dataset.json holds them."""
        return {
            "labels": dict(zip(self.names, self.codes, strict=True)),
            "values": dict(zip(self.names, self.values, strict=True)),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Labels:
        """The inverse of `to_dict`; values that are missing are the class indices. Raises InputError."""
        labels = content["labels"]
        _check_classes(labels, "labels", "masks")
        names, codes = tuple(labels), tuple(labels.values())
        if "values" not in content:
            return cls.indexed(names, codes)
        values = content["values"]
        if not isinstance(values, dict) or tuple(values) != names:
            raise InputError("values must give each class of labels, in their order, its value in volumes")
        _check_classes(values, "values", "volumes")
        return cls(names, codes, tuple(values.values()))

    def to_classes(self, codes: np.ndarray, path: Path) -> np.ndarray:
        """Mask values (H, W) -> class indices uint8 of the same shape. Raises InputError for an unknown value."""
        return _to_classes(codes, self.codes, path)

    def values_to_classes(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Volume values (D, H, W) -> class indices uint8 of the same shape. Raises InputError for an unknown value."""
        return _to_classes(values, self.values, path)

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """Class indices -> volume values, in the smallest unsigned type that holds all of them."""
        return np.array(self.values, np.min_scalar_type(max(self.values)))[classes]


@dataclass(frozen=True)
class Description:
    """What a dataset.json says; None or nothing where it says nothing."""

    labels: Labels | None = None
    geometry: dict[str, Geometry] = field(default_factory=dict)
    """Subject -> where its slices lie."""
    preparation: Preparation | None = None
    """How scans became slices."""


def read_description(path: Path) -> Description:
    """The content of a dataset.json, an empty description where there is none. Raises InputError, naming the file."""
    if not path.exists() and not path.is_symlink():
        return Description()
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f'{path}: must hold an object such as {{"labels": {{"background": 0, "liver": 63}}}}')
    if "values" in content and "labels" not in content:
        raise InputError(f"{path}: values must give each class of labels, in their order, its value in volumes")
    try:
        labels = Labels.from_dict(content) if "labels" in content else None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    preparation = content.get("preparation")
    if preparation is not None:
        try:
            preparation = Preparation.from_dict(preparation)
        except InputError as error:
            raise InputError(f"{path}: preparation: {error}; prepare the scans again") from None
    return Description(labels, _read_geometry(content.get("subjects", {}), path), preparation)


def _read_geometry(subjects: Any, path: Path) -> dict[str, Geometry]:
    if not isinstance(subjects, dict) or not all(isinstance(entry, dict) for entry in subjects.values()):
        raise InputError(f'{path}: subjects must be an object such as {{"1": {{"spacing": [1.5, 1.5, 8.0]}}}}')
    geometry = {}
    for subject, entry in subjects.items():
        try:
            geometry[subject] = Geometry.from_dict(entry)
        except InputError as error:
            raise InputError(f"{path}: subject {subject}: {error}; correct it") from None
    return geometry


def _check_classes(labels: Any, key: str, where: str) -> None:
    example = '{"background": 0, "liver": 63}'
    if not isinstance(labels, dict) or not all(type(code) is int and 0 <= code < 2**16 for code in labels.values()):
        raise InputError(f"{key} must give each class its value in the {where}, 0 to 65535, such as {example}")
    names, codes = tuple(labels), tuple(labels.values())
    if not 2 <= len(names) <= MAX_CLASSES or names[0] != "background":
        raise InputError(f"{key} must be 2 to {MAX_CLASSES} classes, the first called background, such as {example}")
    for name in names:
        if not name.strip() or not name.isprintable():
            raise InputError(f"{key}: the class name {name!r} is no printable text; choose another")
    if len(set(codes)) < len(codes):
        raise InputError(f"{key} gives two classes the same value; each needs its own")


def _to_classes(stored: np.ndarray, known: tuple[int, ...], path: Path) -> np.ndarray:
    table = np.full(max(int(stored.max()), *known) + 1, MAX_CLASSES, np.uint16)
    table[list(known)] = range(len(known))
    classes = table[stored]
    unknown = classes == MAX_CLASSES
    if unknown.any():
        value = stored[unknown][0]
        first = np.argwhere(stored == value)[0]
        axes = ("slice", "row", "column")[-stored.ndim :]
        position = ", ".join(f"{axis} {k}" for axis, k in zip(axes, first, strict=True))
        raise InputError(
            f"{path}: unknown mask value {value} at {position} ({(stored == value).sum()} pixels); "
            f"known are {list(known)}. Correct the mask, or list its values under labels in dataset.json"
        )
    return classes.astype(np.uint8)
