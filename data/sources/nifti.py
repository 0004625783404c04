"""Image and label volumes in files: pairs by name, HVSMR, BraTS, Medical Segmentation Decathlon and nnU-Net."""

from __future__ import annotations

import glob
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from data.channels import pattern_names
from data.description import IGNORE
from data.listing import as_subject
from data.sources import Case, read_each
from data.sources.dicom import read_series
from data.sources.dicom_seg import check_frame, extended, read_named, segment_names, segmentation_in
from data.volume_files import aligned, read_file, read_label
from utils import InputError, counted, natural, note, read_json, some

BRATS_CHANNELS = ("flair", "t1", "t1ce", "t2")  # the order of the Decathlon's Task01
BRATS_CLASSES = {0: "background", 1: "necrotic and non-enhancing", 2: "edema", 4: "enhancing"}
DECATHLON_BRATS = ("edema", "non-enhancing tumor", "enhancing tumour")  # Task01's names
HVSMR_CLASSES = {0: "background", 1: "myocardium", 2: "blood pool"}


@dataclass(frozen=True)
class VolumeFiles:
    """Subjects whose volumes have been found: `files` is subject -> (image files, one a channel or 4-D; label file)."""

    folder: Path
    files: dict[str, tuple[list[Path], Path]]
    known: dict[int, str] | None = None
    """Label value -> class name where the source says so; else the values are looked up in the labels."""
    names: tuple[str, ...] = ()
    """Class names for the values that are found, in their order, without the background."""
    channels: tuple[str, ...] = ()
    """Names of the channels, where they are known."""

    def subjects(self) -> list[str]:
        """All subjects, in natural order."""
        return sorted(self.files, key=natural)

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """Label value -> class name. Raises InputError where names and values in the labels differ in number."""
        return self.known or self._named(self._values_of(subjects, skip_bad))

    def _named(self, of_subject: Mapping[str, set[int]]) -> dict[int, str]:
        """Label value -> class name, of the values in all labels."""
        values = sorted(set().union(*of_subject.values()))
        if self.segments and self.names:
            raise InputError(f"{self.folder}: its labels are DICOM segmentations, whose segments have names; give none")
        if self.segments:
            return {value: name for name, value in self.segments.items() if value in (0, *values)}
        if not self.names:
            self._check_values(of_subject)
        if self.names and len(self.names) != len(values):
            raise InputError(f"{len(self.names)} class names for the label values {values}; give one for each")
        names = self.names or [f"class {value}" for value in values]
        return {0: "background"} | dict(zip(values, names, strict=True))

    def classes_of(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[str, set[int]]:
        """Subject -> the values of classes in its label but 0."""
        of_subject = self._values_of(subjects, skip_bad)
        ignored = {value for value, name in (self.known or self._named(of_subject)).items() if name == IGNORE}
        return {subject: values - ignored for subject, values in of_subject.items()}

    def _values_of(self, subjects: Sequence[str], skip_bad: bool) -> dict[str, set[int]]:
        """Subject -> the values in its label but 0."""

        def values_of(subject: str) -> set[int]:
            return set(np.unique(sitk.GetArrayFromImage(self._read_label(subject))).tolist()) - {0}

        return read_each(values_of, subjects, skip_bad)

    def _check_values(self, of_subject: Mapping[str, set[int]]) -> None:
        """Raises InputError where some labels reach 255, as of 8-bit pictures, and share no class with the others."""
        bright = {subject: values for subject, values in of_subject.items() if 255 in values}
        dark = {subject: values for subject, values in of_subject.items() if values and 255 not in values}
        if bright and dark and set().union(*bright.values()).isdisjoint(set().union(*dark.values())):
            first, second = next(iter(bright)), next(iter(dark))
            raise InputError(
                f"{self.files[first][1]}: holds the values {[0, *sorted(bright[first])]}, and {self.files[second][1]} "
                f"{[0, *sorted(dark[second])]}; write all labels alike, or give a name for each value"
            )

    def read(self, subject: str) -> Case:
        """Raises InputError for a missing or unreadable file, and for volumes that do not share one grid."""
        image_paths, label_path = self._paths(subject)
        label, segmentation = self._read_label(subject), segmentation_in(label_path)
        images: list[sitk.Image] = []
        for path in image_paths:
            if not path.exists():
                raise InputError(f"{path}: no such file; copy it, since each label needs its image in each channel")
            series = read_series(path) if path.is_dir() else None
            if series is not None and segmentation is not None:
                check_frame(segmentation, series.files[0])
            for image in [series.image] if series else read_file(path).channels:
                first = images[0] if images else image
                images.append(aligned(image, path, first, image_paths[0]))
        if self.channels and len(images) != len(self.channels):
            raise InputError(
                f"{image_paths[0]}: holds {len(images)} channels with the other files of its subject, where there must "
                f"be {len(self.channels)}: {', '.join(self.channels)}"
            )
        if segmentation is not None:
            label = extended(label, images[0])
        label = aligned(label, label_path, images[0], image_paths[0])
        relative = [str(path.relative_to(self.folder)) for path in (*image_paths, label_path)]
        return Case(images, label, relative, channels=self.channels)

    @cached_property
    def segments(self) -> dict[str, int]:
        """Of DICOM segmentations, name of a segment -> its label value, for all subjects; empty for other labels."""

        def names_of(subject: str) -> list[str]:
            path = segmentation_in(self.files[subject][1])
            return list(segment_names(path).values()) if path else []

        spelled = {"background": "background"}  # as first met; capitals do not count
        for names in read_each(names_of, self.subjects(), skip_bad=True).values():
            for name in names:
                spelled.setdefault(name.casefold(), name)
        values = {name: value for value, name in enumerate(spelled.values())}
        return values if len(values) > 1 else {}

    def _read_label(self, subject: str) -> sitk.Image:
        path = self._paths(subject)[1]
        segmentation = segmentation_in(path)
        if path.is_dir() and not segmentation:
            raise InputError(
                f"{path}: holds no DICOM segmentation as its only DICOM file; name the file itself, such as seg.dcm"
            )
        return read_named(segmentation, self.segments) if segmentation else read_label(path)

    def _paths(self, subject: str) -> tuple[list[Path], Path]:
        if subject not in self.files:
            raise InputError(f"{self.folder}: has no label of subject {subject}, only of {some(self.subjects())}")
        return self.files[subject]


def find_pairs(
    folder: Path, image_patterns: Sequence[str], label_pattern: str, names: tuple[str, ...] = ()
) -> VolumeFiles:
    """Pairs by patterns that hold {subject}, once or more; .nii.gz finds .nii, too, and the reverse.

    Raises InputError where nothing is found, or one file twice.
    """
    for pattern in image_patterns:
        _check_pattern(pattern, folder)
    files: dict[str, tuple[list[Path], Path]] = {}
    for subject, label in find_named(folder, label_pattern).items():
        images = [_either(folder / pattern.replace("{subject}", subject)) for pattern in image_patterns]
        files[subject] = (images, label)
    if files and image_patterns:
        _note_spare(folder, find_named(folder, image_patterns[0]).values(), files)
    channels = pattern_names(image_patterns)
    more = ", or a pattern for other names"
    return _found(folder, files, f"labels named {label_pattern}", more, names=names, channels=channels)


def find_named(folder: Path, pattern: str) -> dict[str, Path]:
    """Subject -> file or folder, by a pattern as those of `find_pairs`. Raises InputError for two of one subject."""
    _check_pattern(pattern, folder)
    found: dict[str, Path] = {}
    expressions = [_expression(ending) for ending in _endings(pattern)]
    for path in _glob(folder, "*".join(map(glob.escape, pattern.split("{subject}")))):
        name = path.relative_to(folder).as_posix()
        match = next(filter(None, (expression.fullmatch(name) for expression in expressions)), None)
        if match is None:  # it holds two subjects
            continue
        subject = match[1]
        if subject in found:
            raise InputError(f"{path}: a second file of {subject} beside {found[subject]}; remove one of the two")
        found[subject] = path
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    """A pattern as an expression, in which the subject is the same wherever it stands."""
    first, second, *others = map(re.escape, pattern.split("{subject}"))
    return re.compile(r"\1".join([f"{first}([^/]*){second}", *others]))


def _check_pattern(pattern: str, folder: Path) -> None:
    known = "{subject}" in pattern and "{subject}{subject}" not in pattern
    if not known or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"pattern {pattern}: must hold {{subject}}, signs between two of it, and lie below {folder}")


def find_hvsmr(folder: Path) -> VolumeFiles:
    """HVSMR 2016: training_axial_crop_pat<k>.nii.gz with -label; the subject is k."""
    stem = "training_axial_crop_pat{subject}"
    pairs = find_pairs(folder, [f"{stem}.nii.gz"], f"{stem}-label.nii.gz")
    return replace(pairs, known=HVSMR_CLASSES)


def find_brats(folder: Path) -> VolumeFiles:
    """BraTS 2018: HGG/ and LGG/ with a folder for each subject, four sequences and a segmentation in it."""
    files = {}
    for label in _glob(folder, "*/*/*_seg.nii.gz"):
        subject = label.parent.name
        if subject in files:
            raise InputError(f"{label}: a second subject {subject} beside {files[subject][1]}; rename one of the two")
        images = [_either(label.with_name(f"{subject}_{channel}.nii.gz")) for channel in BRATS_CHANNELS]
        files[subject] = (images, label)
    return _found(folder, files, "HGG/SUBJECT/SUBJECT_seg.nii.gz", known=BRATS_CLASSES, channels=BRATS_CHANNELS)


def brats_regions(names: Iterable[str]) -> dict[str, list[str]]:
    """The challenge's three regions where these class names are those of BraTS or of the Decathlon's Task01."""
    tumour = [name for name in names if name not in ("background", IGNORE)]
    if set(tumour) not in (set(BRATS_CLASSES.values()) - {"background"}, set(DECATHLON_BRATS)):
        return {}
    return {  # the letters keep them apart from the Decathlon's class "enhancing tumour"
        "whole tumour (WT)": tumour,
        "tumour core (TC)": [name for name in tumour if name != "edema"],
        "enhancing tumour (ET)": [name for name in tumour if name.startswith("enhancing")],
    }


def find_msd(folder: Path) -> VolumeFiles:
    """Medical Segmentation Decathlon (imagesTr/CASE.nii.gz, 3-D or 4-D) or nnU-Net (imagesTr/CASE_0000.nii.gz, ...).

    Each case of nnU-Net gets all channels that dataset.json names, or that another case has; `VolumeFiles.read` refuses
    those that are missing.
    """
    channels = _msd_channels(folder)
    if folder.is_dir() and not (folder / "dataset.json").exists():
        print(f"note: {folder}: has no dataset.json; classes without given names are called class 1, class 2, ...")
    numbers: dict[Path, list[int]] = {}
    for label in _glob(folder, "labelsTr/*.nii.gz"):
        numbered = _glob(folder, f"imagesTr/{glob.escape(_stem(label))}_[0-9][0-9][0-9][0-9].nii.gz")
        numbers[label] = [int(_stem(path)[-4:]) for path in numbered]
    last = max((number for of_case in numbers.values() for number in of_case), default=-1)
    if channels and last >= len(channels):
        raise InputError(
            f"{folder / 'dataset.json'}: names {len(channels)} channels ({', '.join(channels)}), and imagesTr has "
            f"files of channel {last:04d}; correct channel_names or remove the files"
        )
    files: dict[str, tuple[list[Path], Path]] = {}
    for label in numbers:
        subject = as_subject(_stem(label))
        if subject in files:
            raise InputError(f"{label}: would be subject {subject}, as is {files[subject][1]}; rename one of the two")
        images = [_either(folder / "imagesTr" / f"{_stem(label)}.nii.gz")]
        if last >= 0 and (numbers[label] or not images[0].exists()):
            count = len(channels) or last + 1
            images = [_either(folder / "imagesTr" / f"{_stem(label)}_{k:04d}.nii.gz") for k in range(count)]
        files[subject] = (images, label)
    _note_spare(folder, _glob(folder, "imagesTr/*.nii.gz"), files)
    what, more = "labelsTr/CASE.nii.gz, nor CASE.nii", "; files of other kinds are for the source nifti"
    return _found(folder, files, what, more, known=_msd_classes(folder), channels=channels)


def _glob(folder: Path, pattern: str) -> list[Path]:
    """Files by a pattern, .nii beside .nii.gz, in the order of names; none that are hidden, as macOS's ._NAME are."""
    found = [path for ending in _endings(pattern) for path in folder.glob(ending)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _endings(name: str) -> list[str]:
    """A name, and where it ends in .nii.gz or .nii, the one with the other ending."""
    if name.endswith(".nii.gz"):
        return [name, name.removesuffix(".gz")]
    return [name, f"{name}.gz"] if name.endswith(".nii") else [name]


def _either(path: Path) -> Path:
    """The one of `_endings` that exists, else `path`. Raises InputError where both do."""
    found = [path.with_name(name) for name in _endings(path.name) if path.with_name(name).exists()]
    if len(found) > 1:
        raise InputError(f"{found[0]}: lies beside {found[1].name}; remove one of the two")
    return found[0] if found else path


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def read_msd_description(folder: Path) -> dict[str, Any]:
    """The dataset.json of a Decathlon or nnU-Net folder; empty where there is none."""
    path = folder / "dataset.json"
    if not path.exists():
        return {}
    described = read_json(path)
    if not isinstance(described, dict) or not isinstance(described.get("labels"), dict):
        raise InputError(f"{path}: holds no labels as the Decathlon and nnU-Net write them")
    return described


def _msd_channels(folder: Path) -> tuple[str, ...]:
    """The names in its channel_names or modality, {"0": "T1", ...}, numbered where two are the same."""
    described = read_msd_description(folder)
    named = described.get("channel_names", described.get("modality", {}))
    numbers = [str(k) for k in range(len(named))] if isinstance(named, dict) else []
    if not isinstance(named, dict) or named.keys() != set(numbers):
        raise InputError(
            f"{folder / 'dataset.json'}: channel_names or modality must name the channels by their numbers, such as "
            f'{{"0": "T1", "1": "FLAIR"}}, not {reprlib.repr(named)}'
        )
    names = [str(named[number]) for number in numbers]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for name, number in zip(names, numbers, strict=True)]
    return tuple(names)


def _msd_classes(folder: Path) -> dict[int, str] | None:
    """Its labels, {"0": "background", ...} or nnU-Net's {"background": 0, ...}; None without a dataset.json."""
    labels = read_msd_description(folder).get("labels", {})
    numbers = [str(key if begins_with_number(key, value) else value) for key, value in labels.items()]
    names = [value if begins_with_number(key, value) else key for key, value in labels.items()]
    if not all(re.fullmatch("[0-9]{1,5}", number) for number in numbers) or len(set(map(int, numbers))) < len(names):
        raise InputError(
            f"{folder / 'dataset.json'}: labels must be single numbers, each once, and no regions (lists of numbers), "
            f"not {reprlib.repr(labels)}; give each number its own class there"
        )
    pairs = sorted(zip(map(int, numbers), map(str, names), strict=True))
    if (0, IGNORE) in pairs:
        raise InputError(f"{folder / 'dataset.json'}: {IGNORE} is 0, which must be the background; write other values")
    return {value: name if value else "background" for value, name in pairs} or None


def begins_with_number(key: str, value: Any) -> bool:
    """Whether an entry of labels is the Decathlon's, "1": "liver", not nnU-Net's: "liver": 1, or "11": 1 of a tooth."""
    return isinstance(value, str) and re.fullmatch("[0-9]{1,5}", key) is not None


def _note_spare(folder: Path, images: Iterable[Path], files: Mapping[str, tuple[list[Path], Path]]) -> None:
    """Print a note on images that belong to no subject."""
    known = {path for images, label in files.values() for path in (*images, label)}
    spare = [path.relative_to(folder).as_posix() for path in images if path not in known]
    if spare:
        note(folder, f"{counted(len(spare), 'image')} without a label, left out: {some(spare)}")


def _found(
    folder: Path, files: dict[str, tuple[list[Path], Path]], what: str, more: str = "", **options: Any
) -> VolumeFiles:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct the name")
    if not files:
        raise InputError(f"{folder}: holds no {what}; name the folder above them{more}")
    return VolumeFiles(folder, files, **options)
