"""The data set on disk: its slices (data/listing.py) and its dataset.json (data/description.py), read and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

import numpy as np

from config import AugmentationConfig
from data.dataset import Slice, SliceDataset, digest_of
from data.description import Description, Labels, is_list_of_names, read_description
from data.geometry import Geometry
from data.listing import SPLITS, list_splits
from data.masks import MaskValues, check_background, check_colors, extremes
from data.mirror import mirror_of
from data.notes import Look, class_notes, copy_notes, image_notes, lost_notes, name_notes, number_notes, plane_notes
from data.png import read_mask, read_pair
from data.preparation import Preparation, lie_of
from data.volumes import MAX_SPAN
from utils import IGNORED, InputError, counted, errors_begin, natural, some

CHAOS_LABELS = {"background": 0, "liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}


@dataclass(frozen=True)
class Identity:
    """What of a data set a trained network depends on; it is kept in checkpoints."""

    labels: Labels
    preparation: Preparation | None
    channels: tuple[str, ...]
    """Names of the channels, where they are known."""
    typical: Geometry
    """Median spacing (x, y, z) and size (columns, rows, 1) of the training subjects' slices, and how most lie."""
    training: str
    """Fingerprint of the training slices, of which the pixels are a part."""
    validation: str
    test: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint holds them."""
        return self.labels.to_dict() | {
            "preparation": self.preparation and self.preparation.to_dict(),
            "channels": list(self.channels),
            "typical": self.typical.to_dict(),
            "training": self.training,
            "validation": self.validation,
            "test": self.test,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Identity:
        """The inverse of `to_dict`. Raises InputError, KeyError or TypeError for anything else."""
        preparation = values["preparation"] and Preparation.from_dict(values["preparation"])
        if not is_list_of_names(values["channels"]):
            raise InputError("its names of channels are no names")
        typical = Geometry.from_dict(values["typical"])
        fingerprints = {split: values[split] for split in ("training", "validation", "test")}
        if typical.size is None or not all(isinstance(fingerprint, str) for fingerprint in fingerprints.values()):
            raise InputError("it does not say which slices it was trained on")
        return cls(
            labels=Labels.from_dict(values),
            preparation=preparation,
            channels=tuple(values["channels"]),
            typical=typical,
            **fingerprints,
        )

    def difference(self, other: Identity) -> str | None:
        """The first thing in which another data set differs, in words."""
        mirrors = [(each.labels.mirror, each.labels.mirror_axis) for each in (self, other)]
        parts = {
            "training slices": self.training != other.training,
            "validation or test slices": (self.validation, self.test) != (other.validation, other.test),
            "mirrored classes (mirror or mirror_axis)": mirrors[0] != mirrors[1],
            "classes": replace(self.labels, values=()) != replace(other.labels, values=()),
            "label values": self.labels.values != other.labels.values,
            "preparation": self.preparation != other.preparation,
            "names of channels": self.channels != other.channels,
        }
        return next((what for what, differs in parts.items() if differs), None)


@dataclass(frozen=True)
class DataFolder:
    """A checked data set: every file has been read once, every rule of the layout holds."""

    splits: dict[str, list[Slice]]
    labels: Labels
    channels: int
    size: tuple[int, int]
    """Rows and columns that hold every slice."""

    geometry: dict[str, Geometry] = field(default_factory=dict)
    """Subject -> where its slices lie."""

    preparation: Preparation | None = None
    """How scans became these slices, where dataset.json says it."""

    channel_names: tuple[str, ...] = ()
    """Of the channels, where dataset.json says them."""

    notes: tuple[str, ...] = ()
    """Things that are allowed but worth a line to the user."""

    groups: dict[str, str] = field(default_factory=dict)
    """Subject -> group, such as the patient, as dataset.json says; one that is not named is a group of its own."""

    def dataset(self, split: str, augmentation: AugmentationConfig | None = None, seed: int = 0) -> SliceDataset:
        """The slices of `split` (train, val or test) as a dataset.

        Raises InputError where flips exchange classes, but it is not known along which axis of the slices.
        """
        mirrors = {}
        remedy = "; give mirror_axis (horizontal: columns run from left to right; vertical: rows do), or its direction"
        if self.labels.mirror and augmentation is not None and augmentation.flip_probability:
            for subject in {item.subject: None for item in self.splits[split]}:
                with errors_begin(f"subject {subject}", remedy):
                    mirrors[subject] = mirror_of(self.labels, self.geometry[subject])
        return SliceDataset(self.splits[split], self.labels, augmentation, seed, mirrors)

    def classes_of(self) -> dict[str, set[int]]:
        """Subject -> indices of the classes that its masks hold, without the background."""
        found: dict[str, set[int]] = {}
        for item in chain.from_iterable(self.splits.values()):
            found.setdefault(item.subject, set()).update(item.classes)
        return found

    def identity(self) -> Identity:
        """What a network that is trained on it depends on."""
        fingerprints = [self.dataset(split).fingerprint() for split in SPLITS]
        return Identity(self.labels, self.preparation, self.channel_names, self._typical(), *fingerprints)

    def _typical(self) -> Geometry:
        """Median size and spacing of the training subjects, and their most frequent plane, where they are known."""
        geometry = [self.geometry[subject] for subject in self.dataset("train").subjects()]
        sizes = [(each.shape[2], each.shape[1], 1) for each in self.splits["train"]]
        spacings = [each.spacing for each in geometry if each.spacing]
        spacing = tuple(np.median(spacings, 0).tolist()) if spacings else None
        placed = [each for each in geometry if each.direction]
        planes = [lie_of(each)[0] for each in placed]
        direction = placed[planes.index(mode(planes))].direction if placed else None
        return Geometry(spacing, tuple(int(side) for side in np.median(sizes, 0)), direction=direction)


def open_data(root: str | Path, subjects: dict[str, list[str]] | None = None, whole_groups: bool = True) -> DataFolder:
    """List, pair, read and check all slices of a data set.

    With `subjects`, split -> names, the slices of all folders are split anew by these; others are left out. Without
    `whole_groups`, for a data set that is about to be split anew, a group may be in two splits.

    Raises InputError, naming the file and the remedy, for: a missing folder, an empty split, an image without its mask
    or the reverse, a slice named twice (slice_1 and slice_01), a subject or a group in two splits, a file that is no
    readable PNG, sizes that differ between image and mask or within a subject, numbers of channels that differ, mask
    values or colors that are unknown or cannot be told apart without dataset.json, training masks without an annotated
    pixel, validation masks that hold no class, and a dataset.json that is not as this module wants it, or gives another
    size than the slices have.
    """
    root = Path(root)
    described = read_description(root / "dataset.json")
    found, notes = list_splits(root)
    there = {item.subject for items in found.values() for item in items}
    notes += name_notes("subjects", described.geometry, there) + name_notes("groups", described.groups, there)
    if subjects:
        found, left_out = _split_anew(found, subjects, root)
        if left_out:
            notes.append(f"{root}: the split leaves out {counted(len(left_out), 'subject')}: {', '.join(left_out)}")
    if whole_groups:
        with errors_begin(root / "dataset.json"):
            check_groups({split: [item.subject for item in items] for split, items in found.items()}, described.groups)
    slices = [item for split in found.values() for item in split]
    in_colors = bool(described.labels and described.labels.colors)
    with ThreadPoolExecutor() as pool:
        scans = dict(zip(slices, pool.map(partial(_scan, in_colors=in_colors), slices), strict=True))
    _check_shapes(scans)
    _check_numbers(slices)
    masks = [scan.mask for scan in scans.values()]
    if not in_colors:
        check_colors(masks, root / "dataset.json")
    labels = described.labels or infer_labels(masks, root)
    classes = {item: scan.mask.classes(labels) for item, scan in scans.items()}
    _check_classes(classes, labels)
    if all(classes[item] == {IGNORED} for item in found["train"]):
        raise InputError(f"{root}: no pixel of the training subjects is annotated; correct their masks, or split anew")
    _check_validation([classes[item] for item in found["val"]], root)
    notes += class_notes(found, classes, labels.names)
    notes += lost_notes(described.lost, {item.subject for item in slices})
    looks = {item: scan.look for item, scan in scans.items()}
    notes += image_notes(looks) + copy_notes(found, looks)
    geometry, gaps = _geometry_of_subjects(scans, described, root)
    notes += plane_notes(geometry)
    checked = {split: [_checked(item, scans[item], classes[item]) for item in items] for split, items in found.items()}
    channels, rows, columns = (max(sides) for sides in zip(*(scan.shape for scan in scans.values()), strict=True))
    _check_channel_names(described.channels, channels, root)
    return DataFolder(
        splits=checked,
        labels=labels,
        channels=channels,
        size=(rows, columns),
        geometry=geometry,
        preparation=described.preparation,
        channel_names=described.channels,
        notes=tuple(notes + gaps),
        groups=described.groups,
    )


class _Scan(NamedTuple):
    shape: tuple[int, int, int]
    mask: MaskValues
    look: Look
    digest: str


def _scan(item: Slice, in_colors: bool) -> _Scan:
    """Read one slice's files and check that they fit each other; masks mean their values, or, `in_colors`, colors."""
    image, mask = read_pair(item.images, item.mask)
    codes = mask.codes
    if min(codes.shape) < 32:
        raise InputError(
            f"{item.mask}: is {codes.shape[0]} x {codes.shape[1]} pixels; pad the slices to at least 32 x 32"
        )
    look = Look.of(image, codes, item.images)
    digest = digest_of(image, mask.colors_of(codes) if in_colors else codes)
    return _Scan(image.shape, MaskValues.of(mask, item.mask), look, digest)


def _checked(item: Slice, scan: _Scan, classes: set[int | None]) -> Slice:
    """A slice with what is known of it."""
    return item._replace(shape=scan.shape, digest=scan.digest, classes=tuple(sorted(classes - {0, IGNORED})))


def check_groups(split: Mapping[str, Iterable[str]], groups: Mapping[str, str]) -> None:
    """Raises InputError where subjects of one group are in two of the splits; `split` is their name -> subjects.

    `groups` is subject -> group; a subject that is not named is a group of its own, called as itself.
    """
    home: dict[str, tuple[str, str]] = {}
    for name, subjects in split.items():
        for subject in subjects:
            group = groups.get(subject, subject)
            first, its_split = home.setdefault(group, (subject, name))
            if its_split != name:
                raise InputError(
                    f"group {group!r} has subject {first} in {its_split} and subject {subject} in {name}; "
                    "keep all subjects of a group in one split"
                )


def _split_anew(
    found: dict[str, list[Slice]], subjects: dict[str, list[str]], root: Path
) -> tuple[dict[str, list[Slice]], list[str]]:
    """The slices of all splits by `subjects` instead, and the subjects that it does not name."""
    slices: dict[str, list[Slice]] = {}
    for item in chain.from_iterable(found.values()):
        slices.setdefault(item.subject, []).append(item)
    for split, names in subjects.items():
        for name in names:
            if name not in slices:
                there = some(sorted(slices, key=natural))
                raise InputError(f"{root}: has no subject {name}, which the split wants for {split}; it has {there}")
    anew = {split: [item for name in names for item in slices.pop(name)] for split, names in subjects.items()}
    return anew, sorted(slices, key=natural)


def _check_shapes(scans: dict[Slice, _Scan]) -> None:
    """All slices have as many channels, and all slices of a subject one size."""
    first, of_first = next(iter(scans.items()))
    sizes: dict[str, tuple[tuple[int, ...], Path]] = {}
    for item, scan in scans.items():
        channels, rows, columns = scan.shape
        if channels != of_first.shape[0]:
            raise InputError(
                f"{item.images[0]}: has {channels} channels, {first.images[0]} has {of_first.shape[0]}; "
                "save all images alike"
            )
        size, path = sizes.setdefault(item.subject, ((rows, columns), item.mask))
        if (rows, columns) != size:
            raise InputError(
                f"{item.mask}: is {rows} x {columns} pixels (rows x columns), {path.name} of the same "
                f"subject {size[0]} x {size[1]}; slices of one subject need one size"
            )


def _check_numbers(slices: list[Slice]) -> None:
    """The numbers of a subject's slices lie close enough for a volume."""
    first: dict[str, Slice] = {}
    for item in sorted(slices, key=lambda item: item.number):
        start = first.setdefault(item.subject, item)
        if item.number - start.number >= MAX_SPAN:
            raise InputError(
                f"{item.mask}: is {item.number - start.number} numbers after {start.mask.name} of the same subject, of "
                f"at most {MAX_SPAN - 1}; number the slices one by one"
            )


def _check_classes(classes: dict[Slice, set[int | None]], labels: Labels) -> None:
    """All values or colors in masks are those of classes."""
    for item, found in classes.items():
        if None in found:
            labels.to_classes(read_mask(item.mask), item.mask)  # says which value, and where


def _check_channel_names(names: Sequence[str], channels: int, root: Path) -> None:
    if names and len(names) != channels:
        raise InputError(
            f"{root / 'dataset.json'}: names {len(names)} channels ({', '.join(names)}), and the images have "
            f"{channels}; correct channels there"
        )


def _check_validation(classes: Sequence[set[int | None]], root: Path) -> None:
    """The validation slices hold a class, or no epoch could be told from another."""
    if all(found <= {0, IGNORED} for found in classes):
        kind = "not annotated or background" if any(IGNORED in found for found in classes) else "background"
        raise InputError(
            f"{root}: all masks of the validation subjects are {kind}, so no epoch could be told from another; "
            "validate on a subject that has a class"
        )


def _geometry_of_subjects(
    scans: dict[Slice, _Scan], described: Description, root: Path
) -> tuple[dict[str, Geometry], list[str]]:
    """Subject -> where those of its slices lie that are there; and notes on numbers that are missing."""
    numbers: dict[str, list[int]] = {}
    for item in scans:
        numbers.setdefault(item.subject, []).append(item.number)
    shapes = {item.subject: scan.shape[1:] for item, scan in scans.items()}
    geometry, notes = {}, []
    for subject, of_subject in numbers.items():
        with errors_begin(root):
            geometry[subject] = described.geometry_of(subject, of_subject, shapes[subject])
        notes += number_notes(subject, of_subject)
    return geometry, notes


def infer_labels(masks: Sequence[MaskValues], root: Path) -> Labels:
    """The table for masks that come without one: CHAOS's grey values, 0 and 255, or class indices 0, 1, 2, ..."""
    check_background(masks, root / "dataset.json")
    codes = set().union(*(mask.colors for mask in masks))
    if codes == {0}:
        raise InputError(f"{root}: every mask is empty (0); check how the masks were exported")
    if codes <= set(CHAOS_LABELS.values()):
        return Labels.indexed(tuple(CHAOS_LABELS), tuple(CHAOS_LABELS.values()))
    if codes == {0, 255}:
        return Labels.indexed(("background", "foreground"), (0, 255))
    count = len(codes)
    if codes == set(range(count)) and count <= 64:
        return Labels.indexed(("background", *(f"class {k}" for k in range(1, count))), tuple(range(count)))
    shown = sorted(codes)
    classes = {f"NAME {k}": code for k, code in enumerate((code for code in shown[:4] if code), 1)}
    example = json.dumps({"labels": {"background": 0} | classes})
    raise InputError(
        f"{root}: the masks hold the values {some(shown, 12)} ({count} in all{extremes(masks)}), which are neither "
        "CHAOS's 0, 63, 126, 189, 252, nor 0 and 255, nor class indices 0, 1, 2, ...; save all masks with one value "
        f"for each class, or list the values in {root / 'dataset.json'}, such as {example}"
    )
