"""The files of a data set by their names: SPLIT/Img/Subj_<X>slice_<Y>.png with its mask of the same name in SPLIT/GT.

X is any identifier of letters, digits, underscores and dashes; Y any integer. More channels lie in Img_2, Img_3, ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data.dataset import Slice
from utils import LONGEST_NAME, InputError, natural, note, printable

SPLITS = ("train", "val", "test")
LONGEST_SUBJECT = LONGEST_NAME - len(".nii.gz")  # as the name of a segmentation
NO_SIGN = re.compile(r"[^A-Za-z0-9_-]")  # of a subject
SUBJECT = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST_SUBJECT}}}")
NAME = re.compile(r"Subj_([A-Za-z0-9_-]+)slice_(-?[0-9]+)\.png")
CHANNEL = re.compile(r"Img_[0-9]+")


def as_subject(name: str) -> str:
    """The name of a file or folder as a subject, in which dashes stand for all signs that a subject cannot have."""
    return NO_SIGN.sub("-", name)


def list_splits(root: Path) -> tuple[dict[str, list[Slice]], list[str]]:
    """Split -> its paired slices; and notes. No subject is in two splits."""
    found, notes = {}, []
    for split in SPLITS:
        found[split], foreign = _list_split(root / split)
        if foreign:
            notes.append(f"{root / split}: {_left_out(foreign)}")
    _check_subjects(found, root)
    return found, notes


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

    A note names PNG files that are none. Raises InputError where there are no slices, or a channel lacks one.
    """
    folders = _channel_folders(folder) if (folder / "Img").is_dir() else [folder]
    listed = [_list_folder(path) for path in folders]
    for path, (_, foreign) in zip(folders, listed, strict=True):
        if foreign:
            note(path, _left_out(foreign))
    channels = [found for found, _ in listed]
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
    found = sorted(path.name for path in folder.iterdir() if CHANNEL.fullmatch(path.name))
    wanted = [f"Img_{k}" for k in range(2, len(found) + 2)]
    for name in wanted:
        if name not in found:
            raise InputError(
                f"{folder / name}: is missing, but there is {', '.join(found)}; "
                "the channels are Img, Img_2, Img_3, and so on"
            )
    return [folder / name for name in ("Img", *wanted)]


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
        if not SUBJECT.fullmatch(match[1]):
            raise InputError(f"{path}: the subject's name has more than {LONGEST_SUBJECT} letters; rename its files")
        key = (match[1], int(match[2]))
        if key in found:
            raise InputError(f"{path}: the same slice as {found[key].name}; keep one of the two")
        found[key] = path
    return found, foreign


def _left_out(foreign: Sequence[str]) -> str:
    return f"{len(foreign)} PNG files with other names are left out, such as {printable(foreign[0])}"


def check_subject(name: str) -> None:
    """Raises InputError for a subject's name that no file can carry."""
    if not SUBJECT.fullmatch(name):
        raise InputError(
            f"subject {name!r} must be of letters, digits, underscores and dashes, of at most {LONGEST_SUBJECT}; "
            "rename it"
        )


def _check_subjects(splits: dict[str, list[Slice]], root: Path) -> None:
    home: dict[str, str] = {}
    for split, slices in splits.items():
        for subject in {item.subject for item in slices}:
            if subject in home:
                raise InputError(
                    f"{root}: subject {subject} is in {home[subject]} and in {split}; keep all its slices in one split"
                )
            home[subject] = split
