"""dataset.json: what a data set says of itself."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.geometry import CHECKS, LONGEST, Geometry
from data.png import NO_COLOR, RGB, Mask, pack_colors, unpack_color
from data.preparation import Preparation
from utils import IGNORED, InputError, errors_begin, read_json, some

MAX_CLASSES = IGNORED  # class indices are uint8
UNKNOWN = 256  # no class index
MIRROR_AXES = {"horizontal": -1, "vertical": -2}  # which axis of slices (H, W) runs from left to right
IGNORE = "ignore"  # in the tables of dataset.json, as nnU-Net has it: what marks pixels that nobody annotated

KEYS = (
    "labels", "colors", "values", "regions", "tolerances", "mirror", "mirror_axis", "groups", "subjects", "preparation",
    "channels",
)  # fmt: skip
KEYS_OF_SUBJECT = (*CHECKS, "lost")


@dataclass(frozen=True)
class Ignore:
    """How pixels are marked that nobody annotated."""

    code: int
    """In masks."""
    value: int
    """In volumes."""
    color: int | None = None
    """0xRRGGBB, where masks are read by their colors."""


@dataclass(frozen=True)
class Labels:
    """The one table of classes: class k is called names[k], codes[k] in masks and values[k] in volumes."""

    names: tuple[str, ...]
    codes: tuple[int, ...]
    values: tuple[int, ...]
    colors: tuple[int, ...] = ()
    """0xRRGGBB of each class, where masks are read by their colors instead of their codes."""
    regions: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """Region -> the classes that it joins. Regions are scored beside the classes; no network depends on them."""
    tolerances: dict[str, float] = field(default_factory=dict, compare=False)
    """Class or region -> distance in mm that the normalised surface Dice allows, where it is not the usual one."""
    ignore: Ignore | None = None
    """Of pixels that are IGNORED as class indices, where there are any; it is none of the classes."""
    mirror: tuple[tuple[str, str], ...] = ()
    """Pairs of classes that are each other on the other side of the body: a left-right flip exchanges them."""
    mirror_axis: str = ""
    """Axis of all slices that runs from left to right, one of MIRROR_AXES, where the data set says it."""

    @classmethod
    def indexed(cls, names: tuple[str, ...], codes: tuple[int, ...]) -> Labels:
        """Labels whose values in volumes are the class indices."""
        return cls(names, codes, tuple(range(len(names))))

    def to_dict(self) -> dict[str, Any]:
        """As dataset.json holds them."""
        tables: dict[str, Any] = {
            "labels": dict(zip(self.names, self.codes, strict=True)),
            "values": dict(zip(self.names, self.values, strict=True)),
        }
        if self.colors:
            tables["colors"] = dict(zip(self.names, map(unpack_color, self.colors), strict=True))
        if self.ignore:
            tables["labels"][IGNORE], tables["values"][IGNORE] = self.ignore.code, self.ignore.value
            if self.ignore.color is not None:
                tables["colors"][IGNORE] = unpack_color(self.ignore.color)
        if self.regions:
            tables["regions"] = {region: list(members) for region, members in self.regions.items()}
        if self.tolerances:
            tables["tolerances"] = dict(self.tolerances)
        if self.mirror:
            tables["mirror"] = [list(pair) for pair in self.mirror]
        if self.mirror_axis:
            tables["mirror_axis"] = self.mirror_axis
        return tables

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Labels:
        """The inverse of `to_dict`; values, and labels beside colors, that are missing are the class indices.

        Raises InputError, and KeyError where there are neither labels nor colors.
        """
        colors = _read_colors(content["colors"]) if "colors" in content else {}
        labels = content["labels"] if "labels" in content or not colors else numbered(colors)
        _check_classes(labels, "labels", "masks")
        if colors and colors.keys() != labels.keys():
            raise InputError("colors must give each class of labels its color; background is black unless it says more")
        values = content.get("values", numbered(labels))
        if not isinstance(values, dict) or list(values) != list(labels):
            raise InputError("values must give each class of labels, in their order, its value in volumes")
        _check_classes(values, "values", "volumes")
        ignore = Ignore(labels[IGNORE], values[IGNORE], colors.get(IGNORE)) if IGNORE in labels else None
        names = tuple(name for name in labels if name != IGNORE)
        codes, in_volumes = (tuple(table[name] for name in names) for table in (labels, values))
        in_order = tuple(colors[name] for name in names) if colors else ()
        regions = _read_regions(content.get("regions", {}), names)
        tolerances = _read_tolerances(content.get("tolerances", {}), (*names[1:], *regions))
        with errors_begin("mirror"):
            mirror = read_mirror(content.get("mirror", []), names)
        mirror_axis = content.get("mirror_axis", "")
        if mirror_axis not in ("", *MIRROR_AXES):
            raise InputError('mirror_axis must be "horizontal", where columns run from left to right, or "vertical"')
        return cls(names, codes, in_volumes, in_order, regions, tolerances, ignore, mirror, mirror_axis)

    @property
    def in_masks(self) -> dict[int, int]:
        """Value in masks, or color where there is a table of colors -> class index, or IGNORED."""
        known = {stored: k for k, stored in enumerate(self.colors or self.codes)}
        if self.ignore:
            known[self.ignore.color if self.colors else self.ignore.code] = IGNORED
        return known

    @property
    def in_volumes(self) -> dict[int, int]:
        """Value in volumes -> class index, or IGNORED."""
        known = {value: k for k, value in enumerate(self.values)}
        return known | {self.ignore.value: IGNORED} if self.ignore else known

    def to_classes(self, mask: Mask, path: Path) -> np.ndarray:
        """A mask (H, W) -> class indices uint8 of the same shape, IGNORED where nobody annotated it.

        Raises InputError for an unknown value or color, and for a mask in colors where there is no table of them.
        """
        if self.colors:
            return _colors_to_classes(mask, self.in_masks, path)
        if mask.kind == RGB:
            raise InputError(f"{path}: a mask in colors; list the color of each class under colors in dataset.json")
        return _to_classes(mask.codes, self.in_masks, path, "labels")

    def values_to_classes(self, values: np.ndarray, path: Path) -> np.ndarray:
        """The same of a volume (D, H, W). Raises InputError for an unknown value."""
        return _to_classes(values, self.in_volumes, path, "values")

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
    channels: tuple[str, ...] = ()
    """Names of the channels."""
    lost: dict[str, list[str]] = field(default_factory=dict)
    """Subject -> classes of which preparation has left no pixel."""
    groups: dict[str, str] = field(default_factory=dict)
    """Subject -> group, such as the patient; a subject that is not named is a group of its own, called as itself."""

    def geometry_of(self, subject: str, numbers: Sequence[int], shape: tuple[int, int]) -> Geometry:
        """Where those slices (H, W) of a subject lie. Raises InputError for another size than it says."""
        whole = self.geometry.get(subject, Geometry())
        with errors_begin(f"subject {subject}"):
            whole.check_size(shape)
        return whole.of_slices(min(numbers), max(numbers))


def read_description(path: Path) -> Description:
    """The content of a dataset.json, an empty description where there is none. Raises InputError, naming the file."""
    if not path.exists() and not path.is_symlink():
        return Description()
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f'{path}: must hold an object such as {{"labels": {{"background": 0, "liver": 63}}}}')
    if "values" in content and "labels" not in content:
        raise InputError(f"{path}: values must give each class of labels, in their order, its value in volumes")
    for key in ("regions", "tolerances", "mirror", "mirror_axis"):
        if key in content and "labels" not in content and "colors" not in content:
            raise InputError(f"{path}: {key} needs classes; list all classes with their values under labels, too")
    with errors_begin(path):
        _check_spelling(content, KEYS)
        labels = Labels.from_dict(content) if "labels" in content or "colors" in content else None
        groups = parse_groups(content.get("groups", {}))
    preparation = content.get("preparation")
    if preparation is not None:
        with errors_begin(f"{path}: preparation", "; prepare the scans again"):
            preparation = Preparation.from_dict(preparation)
    subjects, channels = content.get("subjects", {}), content.get("channels", [])
    geometry = _read_geometry(subjects, path)
    if not is_list_of_names(channels):
        raise InputError(f'{path}: channels must be a list of names that differ, such as ["flair", "t1"]')
    lost = {subject: entry["lost"] for subject, entry in subjects.items() if is_list_of_names(entry.get("lost"))}
    return Description(labels, geometry, preparation, tuple(channels), lost, groups)


def split_of(source: Path) -> Path:
    """The folder of a source; of Img or GT in a split, the split."""
    folder = source if source.is_dir() else source.parent
    return folder.absolute().parent if folder.absolute().name in ("Img", "GT") else folder.absolute()


def description_beside(source: Path) -> Path:
    """The dataset.json in a folder or the one above it, of a split first the one above; also where a link leads to.

    Where there is none, where it would be.
    """
    places = []
    for folder in (split_of(source), split_of(source.resolve())):
        here, above = folder / "dataset.json", folder.parent / "dataset.json"
        is_split = (folder / "GT").is_dir() or (folder / "Img").is_dir()
        places += [above, here] if is_split else [here, above]
    return next((place for place in places if place.exists()), places[0])


def numbered(names: Collection[str]) -> dict[str, int]:
    """Class -> its index; IGNORE, which may stand anywhere, gets the number after the last one."""
    classes = [name for name in names if name != IGNORE]
    return {name: len(classes) if name == IGNORE else classes.index(name) for name in names}


def is_list_of_names(names: Any) -> bool:
    """Whether this is a list of printable texts that differ."""
    texts = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
    return texts and len(set(names)) == len(names)


def _read_geometry(subjects: Any, path: Path) -> dict[str, Geometry]:
    if not isinstance(subjects, dict) or not all(isinstance(entry, dict) for entry in subjects.values()):
        raise InputError(f'{path}: subjects must be an object such as {{"1": {{"spacing": [1.5, 1.5, 8.0]}}}}')
    geometry = {}
    for subject, entry in subjects.items():
        with errors_begin(f"{path}: subject {subject}"):
            _check_spelling(entry, KEYS_OF_SUBJECT)
        with errors_begin(f"{path}: subject {subject}", "; correct it"):
            geometry[subject] = Geometry.from_dict(entry)
    return geometry


def _check_spelling(content: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises InputError for a key that is spelled nearly as a known one that is missing: it would count for nothing."""
    for key in content.keys() - {*known}:
        close = difflib.get_close_matches(key.lower(), known, 1, cutoff=0.8)
        if close and close[0] not in content:
            raise InputError(f"has the key {key!r}, which means nothing; correct it to {close[0]}, or rename it")


def _check_classes(labels: Any, key: str, where: str) -> None:
    example = '{"background": 0, "liver": 63}'
    if not isinstance(labels, dict) or not all(type(code) is int and 0 <= code < 2**16 for code in labels.values()):
        raise InputError(f"{key} must give each class its value in the {where}, 0 to 65535, such as {example}")
    names, codes = [name for name in labels if name != IGNORE], tuple(labels.values())
    if not 2 <= len(names) <= MAX_CLASSES or names[0] != "background":
        raise InputError(f"{key} must be 2 to {MAX_CLASSES} classes, the first called background, such as {example}")
    for name in names:
        if not name.strip() or not name.isprintable():
            raise InputError(f"{key}: the class name {name!r} is no printable text; choose another")
        if name.strip().lower() == IGNORE:
            raise InputError(f"{key}: {name!r} must be called {IGNORE} to mark pixels that nobody annotated; rename it")
    if len(set(codes)) < len(codes):
        raise InputError(f"{key} gives two classes the same value; each needs its own")


def _read_regions(regions: Any, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Region -> its classes; `classes` are all, the background first."""
    if not isinstance(regions, dict) or not all(is_list_of_names(joined) and joined for joined in regions.values()):
        example = '{"whole tumour": ["edema", "enhancing"]}'
        raise InputError(f"regions must give each region a list of the classes that it joins, such as {example}")
    for region, joined in regions.items():
        if not region.strip() or not region.isprintable():
            raise InputError(f"regions: the name {region!r} is no printable text; choose another")
        if region in classes:
            raise InputError(f"regions: a class is called {region!r}, too; choose another name for the region")
        if region == IGNORE:
            raise InputError(f"regions: {IGNORE} marks pixels that nobody annotated; give it one value, or rename it")
        for name in joined:
            if name not in classes[1:]:
                raise InputError(f"regions: {region!r} joins {name!r}; choose from the classes {some(classes[1:], 20)}")
    return {region: tuple(joined) for region, joined in regions.items()}


def _read_tolerances(tolerances: Any, names: Sequence[str]) -> dict[str, float]:
    """Class or region -> mm; `names` are all that may have one."""
    if not isinstance(tolerances, dict) or not all(
        type(distance) in (int, float) and 0 < distance <= LONGEST for distance in tolerances.values()
    ):
        raise InputError('tolerances must give classes or regions a distance above 0 mm, such as {"liver": 2.0}')
    for name in tolerances:
        if name not in names:
            raise InputError(f"tolerances: {name!r} is no class or region; choose from {some(names, 20)}")
    return {name: float(distance) for name, distance in tolerances.items()}


def parse_mirror(text: str) -> list[list[str]]:
    """ "a=b, c=d" -> [["a", "b"], ["c", "d"]], for `read_mirror`. Raises InputError."""
    pairs = [[name.strip() for name in pair.split("=")] for pair in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError("must be pairs of two classes, such as right kidney=left kidney, right lung=left lung")
    return pairs


def read_mirror(pairs: Any, classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs in the order of their classes, from JSON; `classes` are all, the background first. Raises InputError."""
    if not isinstance(pairs, list) or not all(is_list_of_names(pair) and len(pair) == 2 for pair in pairs):
        raise InputError('must be pairs of two classes that a left-right flip exchanges, such as [["right", "left"]]')
    named = [name for pair in pairs for name in pair]
    for name in named:
        if name not in classes[1:]:
            raise InputError(f"{name!r} is no class; choose from {some(classes[1:], 20)}")
        if named.count(name) > 1:
            raise InputError(f"{name!r} is in two pairs; a class must be in one")
    in_order = (sorted(pair, key=classes.index) for pair in pairs)
    return tuple((first, second) for first, second in sorted(in_order, key=lambda pair: classes.index(pair[0])))


def parse_groups(groups: Any) -> dict[str, str]:
    """Subject -> group, from JSON. Raises InputError for anything else than texts."""
    of_text = isinstance(groups, dict) and all(isinstance(group, str) for group in groups.values())
    if not of_text or not all(group.strip() and group.isprintable() for group in groups.values()):
        example = '{"001": "patient 1", "002": "patient 1"}'
        raise InputError(f"groups must give subjects the name of their group, a printable text, such as {example}")
    return groups


def _read_colors(colors: Any) -> dict[str, int]:
    """Class -> 0xRRGGBB, the background first and black where the table does not say it."""
    if not isinstance(colors, dict) or not all(_is_color(color) for color in colors.values()):
        raise InputError('colors must give each class red, green and blue, 0 to 255, such as {"lesion": [255, 0, 0]}')
    table = {name: int(pack_colors(np.array(color))) for name, color in ({"background": [0, 0, 0]} | colors).items()}
    if len(set(table.values())) < len(table):
        raise InputError("colors gives two classes the same color (background is black unless listed); choose another")
    return table


def _is_color(color: Any) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(type(part) is int and 0 <= part < 256 for part in color)


def _to_classes(stored: np.ndarray, known: dict[int, int], path: Path, key: str) -> np.ndarray:
    """Stored values -> class indices; `key` is where dataset.json lists the `known` ones."""
    table = np.full(max(int(stored.max()), *known) + 1, UNKNOWN, np.uint16)
    table[list(known)] = list(known.values())
    classes = table[stored]
    if (classes == UNKNOWN).any():
        value, where = _first_unknown(classes, stored)
        raise InputError(
            f"{path}: unknown value {value} {where}; known are {list(known)}. "
            f"Correct the mask, or list its class, under {key} in dataset.json or with the names that are given"
        )
    return classes.astype(np.uint8)


def _colors_to_classes(mask: Mask, known: dict[int, int], path: Path) -> np.ndarray:
    colors = mask.codes if mask.kind == RGB else mask.palette
    in_order, indices = np.array(sorted(known.items())).T
    place = np.searchsorted(in_order, colors).clip(max=len(known) - 1)
    classes = np.where(in_order[place] == colors, indices[place], UNKNOWN)
    if mask.kind != RGB:
        classes = classes[mask.codes]
    if (classes == UNKNOWN).any():
        color, where = _first_unknown(classes, mask.colors_of(mask.codes))
        shown = "between those of 8 bits" if color == NO_COLOR else unpack_color(color)
        raise InputError(
            f"{path}: unknown mask color {shown} {where}; known are {list(map(unpack_color, known))}. "
            "Correct the mask, or list its colors under colors in dataset.json"
        )
    return classes.astype(np.uint8)


def _first_unknown(classes: np.ndarray, stored: np.ndarray) -> tuple[int, str]:
    """The first stored value that is of no class; and where it is, and how often."""
    value = stored[classes == UNKNOWN][0]
    axes = ("slice", "row", "column")[-stored.ndim :]
    position = ", ".join(f"{axis} {k}" for axis, k in zip(axes, np.argwhere(stored == value)[0], strict=True))
    return int(value), f"at {position} ({(stored == value).sum()} pixels)"
