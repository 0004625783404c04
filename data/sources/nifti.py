"""Image and label volumes in files: pairs by name, HVSMR, BraTS, Medical Segmentation Decathlon and nnU-Net."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from data.dataset import natural
from data.geometry import MAX_VOXELS
from data.sources import Case
from data.volumes import itk_path, itk_reason
from utils import InputError, read_json

BRATS_CHANNELS = ("flair", "t1", "t1ce", "t2")  # the order of the Decathlon's Task01
BRATS_CLASSES = {0: "background", 1: "necrotic and non-enhancing", 2: "edema", 4: "enhancing"}
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

    def subjects(self) -> list[str]:
        """All subjects, in natural order."""
        return sorted(self.files, key=natural)

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """Label value -> class name. Raises InputError where names and values in the labels differ in number."""
        if self.known is not None:
            return self.known

        def values_of(subject: str) -> list[int]:
            try:
                return np.unique(sitk.GetArrayFromImage(read_label(self._paths(subject)[1]))).tolist()
            except InputError:
                if not skip_bad:
                    raise
                return []  # the subject is left out when it is read

        with ThreadPoolExecutor(4) as pool:
            values = sorted({0}.union(*pool.map(values_of, subjects)))[1:]
        if self.names and len(self.names) != len(values):
            raise InputError(f"{len(self.names)} class names for the label values {values}; give one for each")
        names = self.names or [f"class {value}" for value in values]
        return {0: "background"} | dict(zip(values, names, strict=True))

    def read(self, subject: str) -> Case:
        """Raises InputError for a missing or unreadable file, and for volumes that do not share one grid."""
        image_paths, label_path = self._paths(subject)
        label = read_label(label_path)
        images = []
        for path in image_paths:
            for image in read_channels(path):
                check_same_grid(image, path, label, label_path)
                images.append(image)
        relative = [str(path.relative_to(self.folder)) for path in (*image_paths, label_path)]
        return Case(images, label, relative)

    def _paths(self, subject: str) -> tuple[list[Path], Path]:
        if subject not in self.files:
            raise InputError(f"{self.folder}: has no label of subject {subject}, only of {_some(self.subjects())}")
        return self.files[subject]


def find_pairs(
    folder: Path, image_patterns: Sequence[str], label_pattern: str, names: tuple[str, ...] = ()
) -> VolumeFiles:
    """Pairs by patterns that hold {subject}, once each. Raises InputError where nothing is found."""
    for pattern in (*image_patterns, label_pattern):
        if pattern.count("{subject}") != 1 or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise InputError(f"pattern {pattern}: must hold {{subject}} once, and lie below {folder}")
    files = {}
    before, after = label_pattern.split("{subject}")
    for label in folder.glob(f"{glob_escape(before)}*{glob_escape(after)}"):
        name = label.relative_to(folder).as_posix()
        subject = name[len(before) : len(name) - len(after)]
        images = [folder / pattern.replace("{subject}", subject) for pattern in image_patterns]
        files[subject] = (images, label)
    return _found(folder, files, f"labels named {label_pattern}", names=names)


def find_hvsmr(folder: Path) -> VolumeFiles:
    """HVSMR 2016: training_axial_crop_pat<k>.nii.gz with -label; the subject is k."""
    stem = "training_axial_crop_pat{subject}"
    pairs = find_pairs(folder, [f"{stem}.nii.gz"], f"{stem}-label.nii.gz")
    return replace(pairs, known=HVSMR_CLASSES)


def find_brats(folder: Path) -> VolumeFiles:
    """BraTS 2018: HGG/ and LGG/ with a folder for each subject, four sequences and a segmentation in it."""
    files = {}
    for label in folder.glob("*/*/*_seg.nii.gz"):
        subject = label.parent.name
        if subject in files:
            raise InputError(f"{label}: a second subject {subject} beside {files[subject][1]}; rename one of the two")
        files[subject] = ([label.with_name(f"{subject}_{channel}.nii.gz") for channel in BRATS_CHANNELS], label)
    return _found(folder, files, "HGG/SUBJECT/SUBJECT_seg.nii.gz", known=BRATS_CLASSES)


def find_msd(folder: Path) -> VolumeFiles:
    """Medical Segmentation Decathlon (imagesTr/CASE.nii.gz, 3-D or 4-D) or nnU-Net (imagesTr/CASE_0000.nii.gz, ...)."""
    files = {}
    for label in (folder / "labelsTr").glob("*.nii.gz"):
        case = label.name.removesuffix(".nii.gz")
        if case.startswith("."):
            continue
        single = folder / "imagesTr" / label.name
        several = sorted((folder / "imagesTr").glob(f"{glob_escape(case)}_[0-9][0-9][0-9][0-9].nii.gz"))
        subject = re.sub(r"[^A-Za-z0-9_-]", "-", case)
        if subject in files:
            raise InputError(f"{label}: would be subject {subject}, as is {files[subject][1]}; rename one of the two")
        files[subject] = (several or [single], label)
    return _found(folder, files, "labelsTr/CASE.nii.gz", known=_msd_classes(folder))


def glob_escape(text: str) -> str:
    """Text as a glob pattern that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", text)


def read_msd_description(folder: Path) -> dict[str, Any]:
    """The dataset.json of a Decathlon or nnU-Net folder; empty where there is none."""
    path = folder / "dataset.json"
    if not path.exists():
        return {}
    described = read_json(path)
    if not isinstance(described, dict) or not isinstance(described.get("labels"), dict):
        raise InputError(f"{path}: holds no labels as the Decathlon and nnU-Net write them")
    return described


def _msd_classes(folder: Path) -> dict[int, str] | None:
    """Its labels, {"0": "background", ...} or nnU-Net's {"background": 0, ...}; None without a dataset.json."""
    labels = read_msd_description(folder).get("labels", {})
    numbers = [str(key if re.fullmatch("[0-9]+", key) else value) for key, value in labels.items()]
    names = [value if re.fullmatch("[0-9]+", key) else key for key, value in labels.items()]
    if not all(re.fullmatch("[0-9]{1,5}", number) for number in numbers) or len(set(map(int, numbers))) < len(names):
        raise InputError(
            f"{folder / 'dataset.json'}: labels must be single numbers, each once, not {reprlib.repr(labels)}"
        )
    pairs = sorted(zip(map(int, numbers), map(str, names), strict=True))
    return {value: name if value else "background" for value, name in pairs} or None


def read_volume(path: Path) -> sitk.Image:
    """A volume of 3 or 4 dimensions. Raises InputError for a file that is missing, unreadable or something else."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; each label needs its image, and each channel one")
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(itk_path(path))
        reader.ReadImageInformation()
        if math.prod(reader.GetSize()) > MAX_VOXELS:
            raise InputError(f"{path}: says that it has {reader.GetSize()} voxels, of at most {MAX_VOXELS:,}; crop it")
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: not a readable volume ({itk_reason(error)})") from None
    kind = image.GetPixelIDTypeAsString()
    if image.GetDimension() not in (3, 4) or image.GetNumberOfComponentsPerPixel() != 1 or "complex" in kind:
        raise InputError(f"{path}: is no volume of numbers ({image.GetDimension()} dimensions)")
    return image


def read_channels(path: Path) -> list[sitk.Image]:
    """The volume of a file, or the 3-D channels of a 4-D one."""
    image = read_volume(path)
    return [image] if image.GetDimension() == 3 else [image[..., k] for k in range(image.GetSize()[3])]


def check_same_grid(image: sitk.Image, path: Path, label: sitk.Image, label_path: Path) -> None:
    """Raise InputError unless both lie on one grid; headers are float32, so a hundredth of a voxel is let pass."""
    if image.GetSize() != label.GetSize():
        raise InputError(f"{path}: has {image.GetSize()} voxels, {label_path} {label.GetSize()}; they must be the same")
    tolerance = 0.01 * min(image.GetSpacing())
    x, y, z = (n - 1 for n in image.GetSize())
    for corner in ((0, 0, 0), (x, 0, 0), (0, y, 0), (0, 0, z)):
        points = [volume.TransformIndexToPhysicalPoint(corner) for volume in (image, label)]
        if max(abs(a - b) for a, b in zip(*points, strict=True)) > tolerance:
            shown = " and ".join(f"({', '.join(f'{value:.2f}' for value in point)})" for point in points)
            raise InputError(
                f"{path}: lies elsewhere than {label_path}: voxel {corner} is at {shown} mm; correct a header"
            )


def read_label(path: Path) -> sitk.Image:
    """A 3-D volume of whole numbers, as 16 bits. Raises InputError for anything else."""
    label = read_volume(path)
    array = sitk.GetArrayViewFromImage(label)
    whole = np.array_equal(array, np.rint(array)) and array.min() >= 0 and array.max() < 2**16
    if label.GetDimension() != 3:
        raise InputError(f"{path}: has {label.GetDimension()} dimensions, not three; is it the label?")
    if not whole:
        raise InputError(f"{path}: holds values that are no class numbers 0, 1, 2, ...; is it the label?")
    return sitk.Cast(label, sitk.sitkUInt16)


def _found(folder: Path, files: dict[str, tuple[list[Path], Path]], what: str, **options: Any) -> VolumeFiles:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not files:
        raise InputError(f"{folder}: holds no {what}; name the folder above them")
    return VolumeFiles(folder, files, **options)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
