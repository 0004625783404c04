"""The data set on disk: SPLIT/Img/Subj_<X>slice_<Y>.png with its mask of the same name in SPLIT/GT.

X is any identifier of letters, digits, underscores and dashes; Y any integer. More channels lie in Img_2, Img_3, ...
The root may hold a dataset.json; of it the loader reads "labels", class name -> value in the masks with the
background first, "values", class name -> value in volumes, "subjects", subject -> {"spacing": [x, y, z] in mm, ...},
and "preparation", how scans became slices.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.augment import Augmentation
from data.png import read_codes, read_pair
from data.preparation import Preparation
from data.slices import MAX_CLASSES, Labels, Slice, SliceDataset, natural
from data.volumes import GEOMETRY, MAX_SPAN, check_size, geometry_of_slices
from utils import InputError, printable, read_json

SPLITS = ("train", "val", "test")
SUBJECT = re.compile(r"[A-Za-z0-9_-]+")
NAME = re.compile(rf"Subj_({SUBJECT.pattern})slice_(-?[0-9]+)\.png")
CHANNEL = re.compile(r"Img_([0-9]+)")
CHAOS_LABELS = {"background": 0, "liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}


@dataclass(frozen=True)
class DataFolder:
    """A checked data set: every file has been read once, every rule of the layout holds."""

    splits: dict[str, list[Slice]]
    labels: Labels
    channels: int
    size: tuple[int, int]
    """Rows and columns that hold every slice."""

    geometry: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Subject -> what dataset.json says of it: spacing (x, y, z) in mm and more; missing where it says nothing."""

    preparation: dict[str, Any] | None = None
    """How scans became these slices (`data.preparation.Preparation`), where dataset.json says it."""

    values: tuple[int, ...] = ()
    """The label value of each class in volumes: that of the scans' labels, or the class index."""

    notes: tuple[str, ...] = ()
    """Things that are allowed but worth a line to the user."""

    def dataset(self, split: str, augmentation: Augmentation | None = None, seed: int = 0) -> SliceDataset:
        """The slices of `split` as a dataset."""
        return SliceDataset(self.splits[split], self.labels, augmentation, seed)


def open_data(root: Path, splits: Sequence[str] = SPLITS, subjects: dict[str, list[str]] | None = None) -> DataFolder:
    """List, pair, read and check all slices of a data set.

    With `subjects`, split -> names, the slices of all folders are split anew by these; others are left out.

    Raises InputError, naming the file and the remedy, for: a missing folder, an empty split, an image without its mask
    or the reverse, a slice named twice (slice_1 and slice_01), a subject in two splits, a file that is no readable PNG,
    sizes that differ between image and mask or within a subject, numbers of channels that differ, mask values that are
    unknown or cannot be told apart without dataset.json, validation masks that are all background, and a dataset.json
    that is not as this module wants it, or gives another size than the slices have.
    """
    described = read_description(root / "dataset.json")
    found, notes = {}, []
    for split in splits:
        found[split], foreign = _list_split(root / split)
        if foreign:
            notes.append(
                f"{root / split}: {len(foreign)} PNG files with other names are left out, such as "
                + printable(foreign[0])
            )
    _check_subjects(found, root)
    if subjects:
        found, left_out = _split_anew(found, subjects, root)
        if left_out:
            notes.append(f"{root}: the split leaves out {len(left_out)} subjects: {', '.join(left_out)}")
    slices = [item for split in found.values() for item in split]
    with ThreadPoolExecutor() as pool:
        scans = list(pool.map(_scan, slices))
    _check_shapes(slices, scans)
    _check_numbers(slices)
    labels = described.get("labels") or _infer_labels(set().union(*(scan.codes for scan in scans)), root)
    for item, scan in zip(slices, scans, strict=True):
        if not scan.codes <= set(labels.codes):
            labels.to_classes(read_codes(item.mask), item.mask)
    scan_of = dict(zip(slices, scans, strict=True))
    if "val" in found and all(scan_of[item].codes == {labels.codes[0]} for item in found["val"]):
        raise InputError(
            f"{root}: all masks of the validation subjects are background, so no epoch could be told from another; "
            "validate on a subject that has a class"
        )
    geometry = dict(described.get("subjects", {}))
    shapes = {item.subject: scan.shape[1:] for item, scan in zip(slices, scans, strict=True)}
    for subject, numbers in _numbers(slices).items():
        check_size(geometry.get(subject, {}), shapes[subject], root, subject)
        first, last = min(numbers), max(numbers)
        geometry[subject] = geometry_of_slices(geometry.get(subject, {}), first, last)
        missing = last - first + 1 - len(numbers)
        if missing:
            notes.append(f"subject {subject}: {missing} slice numbers are missing; they count as background in 3D")
    values = described.get("values", tuple(range(len(labels.names))))
    found = {split: [item._replace(shape=scan_of[item].shape) for item in items] for split, items in found.items()}
    channels, *size = (max(sides) for sides in zip(*(scan.shape for scan in scans), strict=True))
    preparation = described.get("preparation")
    return DataFolder(found, labels, channels, tuple(size), geometry, preparation, values, tuple(notes))


class _Scan(NamedTuple):
    shape: tuple[int, int, int]
    codes: set[int]


def _scan(item: Slice) -> _Scan:
    """Read one slice's files and check that they fit each other."""
    image, codes = read_pair(item.images, item.mask)
    if min(codes.shape) < 32:
        raise InputError(
            f"{item.mask}: is {codes.shape[0]} x {codes.shape[1]} pixels; pad the slices to at least 32 x 32"
        )
    return _Scan(image.shape, set(np.unique(codes).tolist()))


def _list_split(folder: Path) -> tuple[list[Slice], list[str]]:
    """The paired slices of one split, and the names of the PNG files that are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a data set has train, val and test, each with Img and GT")
    masks, foreign = _list_folder(folder / "GT")
    channels = [_list_folder(path)[0] for path in _channel_folders(folder)]
    if not masks and not channels[0]:
        raise InputError(
            f"{folder}: holds no slices; put Subj_<X>slice_<Y>.png into Img and, with the same names, into GT"
        )
    for images in channels:
        for key in images.keys() - masks.keys():
            raise InputError(f"{images[key]}: has no mask; add {folder / 'GT' / images[key].name} or remove the image")
    for key, mask in masks.items():
        for k, images in enumerate(channels, 1):
            if key not in images:
                name = folder / ("Img" if k == 1 else f"Img_{k}") / mask.name
                raise InputError(f"{mask}: has no image; add {name} or remove the mask")
    slices = [Slice(*key, tuple(images[key] for images in channels), mask) for key, mask in masks.items()]
    return slices, foreign


def list_images(folder: Path) -> dict[str, list[tuple[int, tuple[Path, ...]]]]:
    """Subject -> (number, image files, one a channel) in the order of numbers: of a split, or of a folder of slices.

    Raises InputError where there are none, or a channel lacks a slice.
    """
    folders = _channel_folders(folder) if (folder / "Img").is_dir() else [folder]
    channels = [_list_folder(path)[0] for path in folders]
    if not channels[0]:
        raise InputError(f"{folders[0]}: holds no slices named Subj_<X>slice_<Y>.png")
    subjects: dict[str, list[tuple[int, tuple[Path, ...]]]] = {}
    for key in sorted(channels[0], key=lambda key: (natural(key[0]), key[1])):
        for path, images in zip(folders, channels, strict=True):
            if key not in images:
                raise InputError(f"{path / channels[0][key].name}: is missing; each channel needs every slice")
        subjects.setdefault(key[0], []).append((key[1], tuple(images[key] for images in channels)))
    return subjects


def _channel_folders(folder: Path) -> list[Path]:
    """Img, Img_2, Img_3, ... Raises InputError where one between them is missing."""
    found = {match[1] for match in (CHANNEL.fullmatch(path.name) for path in folder.iterdir()) if match}
    wanted = [str(k) for k in range(2, len(found) + 2)]
    for k in wanted:
        if k not in found:
            raise InputError(
                f"{folder / f'Img_{k}'}: is missing, but there is {', '.join(f'Img_{n}' for n in sorted(found))}; "
                "the channels are Img, Img_2, Img_3, and so on"
            )
    return [folder / "Img", *(folder / f"Img_{k}" for k in wanted)]


def _list_folder(folder: Path) -> tuple[dict[tuple[str, int], Path], list[str]]:
    """(subject, number) -> file, and the names of the PNG files that follow no such pattern."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; images belong into Img, masks into GT")
    found: dict[tuple[str, int], Path] = {}
    foreign = []
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if match is None:
            if path.suffix.lower() == ".png" and not path.name.startswith("."):
                foreign.append(path.name)
            continue
        key = (match[1], int(match[2]))
        if key in found:
            raise InputError(f"{path}: the same slice as {found[key].name}; keep one of the two")
        found[key] = path
    return found, foreign


def _check_subjects(splits: dict[str, list[Slice]], root: Path) -> None:
    home: dict[str, str] = {}
    for split, slices in splits.items():
        for subject in {item.subject for item in slices}:
            if subject in home:
                raise InputError(
                    f"{root}: subject {subject} is in {home[subject]} and in {split}; keep all its slices in one split"
                )
            home[subject] = split


def _split_anew(
    found: dict[str, list[Slice]], subjects: dict[str, list[str]], root: Path
) -> tuple[dict[str, list[Slice]], list[str]]:
    """The slices of all splits by `subjects` instead, and the subjects that it does not name."""
    slices: dict[str, list[Slice]] = {}
    for item in (item for split in found.values() for item in split):
        slices.setdefault(item.subject, []).append(item)
    for split, names in subjects.items():
        for name in names:
            if name not in slices:
                there = ", ".join(sorted(slices, key=natural))
                raise InputError(f"{root}: has no subject {name}, which the split wants for {split}; it has {there}")
    anew = {split: [item for name in names for item in slices.pop(name)] for split, names in subjects.items()}
    return anew, sorted(slices, key=natural)


def _check_shapes(slices: list[Slice], scans: list[_Scan]) -> None:
    """All slices have as many channels, and all slices of a subject one size."""
    sizes: dict[str, tuple[tuple[int, ...], Path]] = {}
    for item, scan in zip(slices, scans, strict=True):
        channels, rows, columns = scan.shape
        if channels != scans[0].shape[0]:
            raise InputError(
                f"{item.images[0]}: has {channels} channels, {slices[0].images[0]} has {scans[0].shape[0]}; "
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


def _numbers(slices: list[Slice]) -> dict[str, list[int]]:
    """Subject -> the numbers of its slices."""
    numbers: dict[str, list[int]] = {}
    for item in slices:
        numbers.setdefault(item.subject, []).append(item.number)
    return numbers


def _infer_labels(codes: set[int], root: Path) -> Labels:
    """The table for masks that come without one: CHAOS's grey values, 0 and 255, or class indices 0, 1, 2, ..."""
    if codes == {0}:
        raise InputError(f"{root}: every mask is empty (0); check how the masks were exported")
    if codes <= set(CHAOS_LABELS.values()):
        return Labels(tuple(CHAOS_LABELS), tuple(CHAOS_LABELS.values()))
    if codes == {0, 255}:
        return Labels(("background", "foreground"), (0, 255))
    count = len(codes)
    if codes == set(range(count)) and count <= 64:
        return Labels(("background", *(f"class {k}" for k in range(1, count))), tuple(range(count)))
    shown = sorted(codes)
    values = ", ".join(map(str, shown[:12])) + (", ..." if count > 12 else "")
    example = json.dumps({"labels": {"background": 0, "NAME": next(code for code in shown if code)}})
    raise InputError(
        f"{root}: the masks hold the values {values} ({count} in all), which are neither CHAOS's 0, 63, 126, 189, 252, "
        f"nor 0 and 255, nor class indices 0, 1, 2, ...; list them in {root / 'dataset.json'}, such as {example}"
    )


def read_description(path: Path) -> dict[str, Any]:
    """What dataset.json says of labels (as Labels), values (a tuple), subjects and preparation, checked."""
    if not path.exists() and not path.is_symlink():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f'{path}: must hold an object such as {{"labels": {{"background": 0, "liver": 63}}}}')
    described: dict[str, Any] = {}
    if "labels" in content:
        described["labels"] = _check_labels(content["labels"], path)
    described["subjects"] = check_geometry(content.get("subjects", {}), path)
    described["preparation"] = content.get("preparation")
    if described["preparation"] is not None:
        try:
            Preparation.from_dict(described["preparation"])
        except InputError as error:
            raise InputError(f"{path}: preparation: {error}; prepare the scans again") from None
    if "values" in content:
        values = content["values"]
        if "labels" not in described or not isinstance(values, dict) or tuple(values) != described["labels"].names:
            raise InputError(f"{path}: values must give each class of labels, in their order, its value in volumes")
        described["values"] = _check_labels(values, path, "values", "volumes").codes
    return described


def _check_labels(labels: Any, path: Path, key: str = "labels", where: str = "masks") -> Labels:
    example = '{"background": 0, "liver": 63}'
    if not isinstance(labels, dict) or not all(type(code) is int and 0 <= code < 2**16 for code in labels.values()):
        raise InputError(f"{path}: {key} must give each class its value in the {where}, 0 to 65535, such as {example}")
    names, codes = tuple(labels), tuple(labels.values())
    if not 2 <= len(names) <= MAX_CLASSES or names[0] != "background":
        raise InputError(
            f"{path}: {key} must be 2 to {MAX_CLASSES} classes, the first called background, such as {example}"
        )
    for name in names:
        if not name.strip() or not name.isprintable():
            raise InputError(f"{path}: {key}: the class name {name!r} is no printable text; choose another")
    if len(set(codes)) < len(codes):
        raise InputError(f"{path}: {key} gives two classes the same value; each needs its own")
    return Labels(names, codes)


def check_geometry(subjects: Any, path: Path) -> dict[str, dict[str, Any]]:
    """`subjects` if each entry is what `data.volumes.to_scan` can use. Raises InputError for anything else."""
    if not isinstance(subjects, dict) or not all(isinstance(entry, dict) for entry in subjects.values()):
        raise InputError(f'{path}: subjects must be an object such as {{"1": {{"spacing": [1.5, 1.5, 8.0]}}}}')
    for subject, entry in subjects.items():
        for key, (fits, wanted) in GEOMETRY.items():
            if key in entry and not fits(entry[key]):
                given = reprlib.repr(entry[key])
                raise InputError(f"{path}: {key} of subject {subject} must be {wanted}, not {given}; correct it")
    return subjects
