"""What is allowed in a data set but worth a line before training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.dataset import Slice
from data.geometry import Geometry
from data.png import bit_depth
from data.preparation import lie_of
from utils import counted, natural, some

OBLIQUE = 15  # degrees between an axis of slices and the body's


class Look(NamedTuple):
    """What notes need to know of the images of a slice."""

    depths: tuple[int, ...]
    """Bits of each file."""
    largest: tuple[float, ...]
    """Value of each file, of 1."""
    is_grey: bool
    """Whether it has three channels that are equal."""
    is_mask: bool
    """Whether it is the mask itself."""
    pixels: str
    """A text that only the same pixels have; empty where all are equal."""

    @classmethod
    def of(cls, image: np.ndarray, codes: np.ndarray, paths: Sequence[Path]) -> Look:
        """Of an image (channels, H, W) and its mask (H, W)."""
        same = len(image) == 3 and len(paths) == 1 and bool((image == image[:1]).all())
        largest = image.max((1, 2)).tolist() if len(image) == len(paths) else [1.0] * len(paths)
        depths = tuple(map(bit_depth, paths))
        varies = bool((image != image[:, :1, :1]).any())
        is_mask = varies and len(image) == 1 and np.array_equal(np.rint(image[0] * (2 ** depths[0] - 1)), codes)
        pixels = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).hexdigest() if varies else ""
        return cls(depths, tuple(largest), same, is_mask, pixels)


def class_notes(
    splits: Mapping[str, Sequence[Slice]], classes: Mapping[Slice, set[int | None]], names: Sequence[str]
) -> list[str]:
    """Classes that no training slice holds, and where else they are."""
    notes, absent = [], []
    for k, name in enumerate(names[1:], 1):
        homes = {split: {item.subject for item in slices if k in classes[item]} for split, slices in splits.items()}
        if homes["train"]:
            continue
        elsewhere = [f"{split} subjects {_some(subjects)}" for split, subjects in homes.items() if subjects]
        if elsewhere:
            notes.append(f"{name} is in no training slice, only in {' and '.join(elsewhere)}; split anew")
        else:
            absent.append(name)
    if absent:
        notes.append(f"no mask holds {_some(absent)}; it cannot be learned")
    return notes


def name_notes(key: str, named: Iterable[str], subjects: set[str]) -> list[str]:
    """Subjects that dataset.json names under a key and that are nowhere, as where they are misspelled."""
    missing = set(named) - subjects
    return [f"the {key} of dataset.json name {_some(missing)}, which the data set does not have"] if missing else []


def number_notes(subject: str, numbers: Sequence[int]) -> list[str]:
    """Numbers that are missing between the first and the last of a subject's slices."""
    missing = max(numbers) - min(numbers) + 1 - len(numbers)
    text = f"subject {subject}: {missing} slice numbers are missing; they count as background in 3D"
    return [text] if missing else []


def lost_notes(lost: Mapping[str, Sequence[str]], subjects: set[str]) -> list[str]:
    """Classes of which preparation has left no pixel; `lost` is subject -> class names."""
    of_class: dict[str, set[str]] = {}
    for subject in lost.keys() & subjects:
        for name in lost[subject]:
            of_class.setdefault(name, set()).add(subject)
    return [
        f"{name} has vanished from subjects {_some(of_class[name])}: the spacing or size of the slices has left "
        "no pixel of it; prepare them with a smaller spacing or a larger size"
        for name in sorted(of_class)
    ]


def plane_notes(geometry: Mapping[str, Geometry]) -> list[str]:
    """Subjects whose slices are not axial, or lie askew in the body; `geometry` is subject -> where they lie."""
    notes = []
    lies = {subject: lie_of(each) for subject, each in geometry.items() if each.direction is not None}
    planes = {plane for plane, _ in lies.values()}
    for plane in sorted(planes):
        subjects = {subject for subject, (theirs, _) in lies.items() if theirs == plane}
        if len(planes) > 1:
            notes.append(f"slices of subjects {_some(subjects)} are {plane}, others are not; prepare all alike")
    oblique = {subject: degrees for subject, (_, degrees) in lies.items() if degrees > OBLIQUE}
    if oblique:
        most = max(oblique.values())
        notes.append(f"slices of subjects {_some(set(oblique))} lie oblique, by up to {most:.0f} degrees")
    return notes


def copy_notes(splits: Mapping[str, Sequence[Slice]], images: Mapping[Slice, Look]) -> list[str]:
    """Images that are in two splits, pixel by pixel; the scores of the later split say nothing of new scans."""
    first: dict[str, tuple[str, Slice]] = {}
    copies: dict[tuple[str, str], list[tuple[Slice, Slice]]] = {}
    for split, slices in splits.items():
        for item in slices:
            own, other = first.setdefault(images[item].pixels, (split, item))
            if images[item].pixels and own != split:
                copies.setdefault((own, split), []).append((other, item))
    return [
        f"{own} has {counted(len(pairs), 'image')} of {split}, too, pixel by pixel, such as {pairs[0][1].images[0]} as "
        f"{pairs[0][0].images[0]}; keep copies in one split, or scores in {split} are too high"
        for (own, split), pairs in copies.items()
    ]


def image_notes(images: Mapping[Slice, Look]) -> list[str]:
    """Blank images; masks in their place; grey RGB; depths that differ between files of a channel, deep ones dark."""
    notes = []
    seen = {item.subject for item, image in images.items() if image.pixels}
    blank = {item.subject for item in images} - seen
    if blank:
        notes.append(
            f"all images of subjects {_some(blank)} have one value in all pixels; check how they were exported"
        )
    masks = [item for item, image in images.items() if image.is_mask]
    if masks:
        place = f"{counted(len(masks), 'image')}, such as {masks[0].images[0]}"
        notes.append(f"masks lie in the place of {place}; export the images themselves")
    if all(image.is_grey for image in images.values()):
        notes.append("the images are RGB with three equal channels; saved as grey, they train a network of one channel")
    for k in range(min(len(image.depths) for image in images.values())):
        deep = [item for item, image in images.items() if image.depths[k] == 16]
        others = [item for item, image in images.items() if image.depths[k] < 16]
        largest = max((images[item].largest[k] for item in deep), default=1.0)
        if others and largest < 0.25:
            notes.append(
                f"{deep[0].images[k]} has 16 bits, of which its kind reaches {round(largest * 65535)} of 65535, and "
                f"{others[0].images[k]} has {images[others[0]].depths[k]} bits, so some images are far darker; save "
                "all with one depth and range"
            )
    return notes


def _some(names: Sequence[str] | set[str]) -> str:
    return some(sorted(names, key=natural))
