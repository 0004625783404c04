"""Pictures in files (PNG, JPEG, BMP) and masks (PNG, BMP), by name patterns: photographs, or slices by number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from data.channels import pattern_names
from data.description import IGNORE, Labels, read_description
from data.folder import infer_labels
from data.listing import as_subject
from data.masks import MaskValues, check_background, check_colors, extremes
from data.png import PICTURES, is_turned, read_mask, read_pixels
from data.sources import PictureCase, read_each
from utils import IGNORED, InputError, natural, some

DESCRIPTION = "dataset.json"  # of the folder of pictures: its labels or colors, as in a data set
Key = tuple[str, int]  # subject and slice, 1 where the pattern has none


@dataclass(frozen=True)
class PictureFiles:
    """Subjects whose pictures have been found."""

    folder: Path
    files: dict[str, dict[int, list[Path | None]]]
    """Subject -> number of a slice -> its images, one of each pattern, and its mask; None for what is missing."""
    names: tuple[str, ...] = ()
    """Class names for the values that are found, in their order, without the background."""
    labels: Labels | None = None
    """The table of classes that the folder's dataset.json has."""
    channels: tuple[str, ...] = ()
    """Names of the patterns of images."""

    def subjects(self) -> list[str]:
        """All subjects that have an image or a mask, in natural order."""
        return sorted(self.files, key=natural)

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """Mask value -> class name. Raises InputError where names and values in the masks differ in number.

        Without names and table, the values must be those that `data.folder.infer_labels` knows.
        """
        labels = self.labels
        if labels is None:
            masks = list(chain.from_iterable(self._values_in_masks(subjects, skip_bad).values()))
            if self.names:
                return self._named(masks)
            check_colors(masks, self.folder / DESCRIPTION)
            labels = infer_labels(masks, self.folder)
        return {code: name for name, code in labels.to_dict()["labels"].items()}

    def classes_of(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[str, set[int]]:
        """Subject -> the values in its masks but 0; with a table, the classes but the background."""
        of_subject = self._values_in_masks(subjects, skip_bad)
        no_class = {0}
        if self.labels:
            no_class.add(IGNORED)
        elif self.names:
            named = self._named(list(chain.from_iterable(of_subject.values())))
            no_class.update(value for value, name in named.items() if name == IGNORE)
        found = {}
        for subject, masks in of_subject.items():
            of_masks = [set(mask.colors) if self.labels is None else mask.classes(self.labels) for mask in masks]
            found[subject] = set().union(*of_masks) - no_class
        return found

    def _values_in_masks(self, subjects: Sequence[str], skip_bad: bool) -> dict[str, list[MaskValues]]:
        def values_of(subject: str) -> list[MaskValues]:
            return [MaskValues.of(read_mask(mask), mask) for *_, mask in self._whole(subject).values()]

        of_subjects = read_each(values_of, subjects, skip_bad)
        if not of_subjects:
            raise InputError(f"{self.folder}: no subject of the split can be read")
        return of_subjects

    def _named(self, masks: Sequence[MaskValues]) -> dict[int, str]:
        """The names in the order of the values."""
        check_colors(masks, self.folder / DESCRIPTION)
        check_background(masks, self.folder / DESCRIPTION)
        values = sorted({0}.union(*(mask.colors for mask in masks)))[1:]
        if len(self.names) != len(values):
            raise InputError(
                f"{self.folder}: {len(self.names)} class names for the values {some(values, 20)} beside "
                f"0{extremes(masks)}; give one for each, or correct the masks"
            )
        return {0: "background"} | dict(zip(values, self.names, strict=True))

    def read(self, subject: str) -> PictureCase:
        """Raises InputError for a missing or unreadable file, and for sizes or kinds that differ."""
        files = self._whole(subject)
        numbers = sorted(files)
        slices = [self._read_slice(files[number]) for number in numbers]
        for number, of_slice in zip(numbers, slices, strict=True):
            for path, first, pixels in zip(files[number], slices[0], of_slice, strict=True):
                if (pixels.shape, pixels.dtype) != (first.shape, first.dtype):
                    raise InputError(
                        f"{path}: is {_kind(pixels)}, and in slice {numbers[0]} of its subject {_kind(first)}; "
                        "export all alike"
                    )
        *images, label = [np.stack(of_pattern) for of_pattern in zip(*slices, strict=True)]
        relative = [str(path.relative_to(self.folder)) for number in numbers for path in files[number]]
        one_each = all(pixels.ndim == 3 for pixels in images)
        background = self.labels.codes[0] if self.labels else 0
        return PictureCase(images, label, relative, numbers, self.channels if one_each else (), background)

    def _read_slice(self, files: Sequence[Path]) -> list[np.ndarray]:
        """The pixels of the images of a slice, and its mask in the values of classes, all of one size."""
        *images, path = files
        mask = read_mask(path)
        label = mask.codes
        if self.labels:
            codes = np.array(list(self.labels.to_dict()["labels"].values()))
            label = codes.take(self.labels.to_classes(mask, path), mode="clip")  # IGNORED takes the last one
        pixels = [read_pixels(image) for image in images]
        for image, channel in zip(images, pixels, strict=True):
            if channel.shape[:2] != label.shape:
                turned = " (upright, as its EXIF data says)" if is_turned(image) else ""
                raise InputError(
                    f"{image}: is {channel.shape[1]} x {channel.shape[0]} pixels{turned}, "
                    f"its mask {path} {label.shape[1]} x {label.shape[0]}; export both alike"
                )
        return [*pixels, label]

    def turned(self) -> list[Path]:
        """The images that their EXIF data turns."""
        images = (path for slices in self.files.values() for files in slices.values() for path in files[:-1])
        return [path for path in images if path is not None and is_turned(path)]

    def _whole(self, subject: str) -> dict[int, list[Path]]:
        """Number of a slice -> its images and its mask. Raises InputError where one of them is missing."""
        if subject not in self.files:
            raise InputError(f"{self.folder}: has no pictures of subject {subject}")
        for files in self.files[subject].values():
            there = next(path for path in files if path is not None)
            if files[-1] is None:
                raise InputError(f"{there}: has no mask; add it (an empty one holds 0), or leave the image out")
            if None in files:
                raise InputError(f"{files[-1]}: has no image, or not all channels of it; add it, or leave the mask out")
        return self.files[subject]


def find_pictures(
    folder: Path, image_patterns: Sequence[str], mask_pattern: str, names: tuple[str, ...] = ()
) -> PictureFiles:
    """Pictures by patterns that hold {subject}, once or more, and may hold {slice} once, a whole number.

    Subjects' names become letters, digits, underscores and dashes. A dataset.json beside them may list the classes.
    Raises InputError for another pattern, where nothing is found, and for two files of one subject and slice.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct the name")
    masks = _find(folder, mask_pattern)
    if not masks:
        raise InputError(
            f"{folder}: holds no masks named {mask_pattern}; name the folder above them, or a pattern for other names"
        )
    taken = set(masks.values())  # where images and masks lie in one folder, a pattern of images may fit masks
    found = [*(_find(folder, pattern, taken) for pattern in image_patterns), masks]
    for pattern, images in zip(image_patterns, found, strict=False):
        if not images:
            raise InputError(
                f"{folder}: holds no images named {pattern}; correct the pattern, or name the folder above them"
            )
    files: dict[str, dict[int, list[Path | None]]] = {}
    for subject, number in sorted(set().union(*found)):
        files.setdefault(subject, {})[number] = [of_pattern.get((subject, number)) for of_pattern in found]
    described = read_description(folder / DESCRIPTION)
    labels = described.labels
    if described.groups:
        raise InputError(
            f"{folder / DESCRIPTION}: its groups do not count; put them into a file of their own and name it"
        )
    if labels and names:
        raise InputError(f"{folder / DESCRIPTION}: lists the classes; give no names beside it, or move it")
    return PictureFiles(folder, files, names, labels, pattern_names(image_patterns))


def _find(folder: Path, pattern: str, without: set[Path] = frozenset()) -> dict[Key, Path]:
    """The files that a pattern fits."""
    if Path(pattern).suffix.lower() not in PICTURES:
        raise InputError(f"pattern {pattern}: must end in {', '.join(PICTURES)}")
    parts = re.split(r"\{(subject|slice)\}", pattern)
    fields = parts[1::2]
    known = "subject" in fields and fields.count("slice") < 2
    if not known or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"pattern {pattern}: must hold {{subject}}, {{slice}} at most once, and lie below {folder}")
    if not all(parts[2:-1:2]):
        raise InputError(f"pattern {pattern}: {{subject}} and {{slice}} must have a sign between them")
    suffix = Path(pattern).suffix
    parts[-1] = parts[-1].removesuffix(suffix)
    parts[0::2] = map(re.escape, parts[0::2])
    parts[1::2] = [r"(?P<slice>\d+)" if field == "slice" else "(?P=subject)" for field in fields]
    parts[1 + 2 * fields.index("subject")] = "(?P<subject>[^/]+)"  # the same wherever else it stands
    expression = re.compile("".join(parts) + f"(?i:{re.escape(suffix)})")  # cameras write .JPG
    depth = pattern.count("/") + 1
    found: dict[Key, Path] = {}
    for path in sorted(folder.glob("/".join(["*"] * depth))):
        name = path.relative_to(folder)
        match = expression.fullmatch(name.as_posix())
        hidden = any(part.startswith(".") for part in name.parts)
        if match is None or path in without or hidden or not path.is_file():
            continue
        key = (as_subject(match["subject"]), int(match.groupdict().get("slice") or 1))
        if key in found:
            raise InputError(
                f"{path}: would be subject {key[0]}, slice {key[1]}, as is {found[key]}; rename one of the two"
            )
        found[key] = path
    return found


def _kind(pixels: np.ndarray) -> str:
    """Size, color and depth in words."""
    return (
        f"{pixels.shape[1]} x {pixels.shape[0]} pixels of {8 * pixels.itemsize}-bit {('grey', 'RGB')[pixels.ndim - 2]}"
    )
