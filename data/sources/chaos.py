"""The CHAOS challenge: abdominal MR and CT as DICOM series with PNG ground truth (doi 10.5281/zenodo.3431873)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data.png import read_grey
from data.sources import Case, read_each
from data.sources.dicom import Series, read_series
from data.volume_files import check_same_grid
from data.volumes import like
from utils import InputError, errors_begin, natural, some

MR_CLASSES = {0: "background", 1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
MR_RANGES = ((55, 70), (110, 135), (175, 200), (240, 255))  # grey values between these, exclusive, by the challenge
SEQUENCES = {
    "t1-in": ("T1DUAL", "DICOM_anon/InPhase"),
    "t1-out": ("T1DUAL", "DICOM_anon/OutPhase"),
    "t2": ("T2SPIR", "DICOM_anon"),
}


@dataclass(frozen=True)
class ChaosMR:
    """MR/<subject>/{T1DUAL,T2SPIR}; in-phase and out-phase share one Ground folder, named after the in-phase files."""

    folder: Path
    sequence: str = "t1-in"

    def subjects(self) -> list[str]:
        """The numbered folders that have the sequence."""
        return _subjects(self.folder, "/".join(SEQUENCES[self.sequence]))

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """The four organs."""
        return MR_CLASSES

    def classes_of(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[str, set[int]]:
        """Subject -> the organs in its ground truth."""
        kind = SEQUENCES[self.sequence][0]
        return read_each(
            lambda subject: _found_in(self.folder / subject / kind / "Ground", mr_classes), subjects, skip_bad
        )

    def read(self, subject: str) -> Case:
        """Raises InputError where series or ground truth are not whole, or do not fit each other."""
        kind, images = SEQUENCES[self.sequence]
        root = self.folder / subject / kind
        series = read_series(root / images)
        named = read_series(root / SEQUENCES["t1-in"][1]) if self.sequence == "t1-out" else series
        if len(named.files) != len(series.files):
            raise InputError(f"{root}: has {len(named.files)} in-phase and {len(series.files)} out-phase slices")
        check_same_grid(series.image, root / images, named.image, root / SEQUENCES["t1-in"][1])
        masks = _masks(root / "Ground")
        stems = [path.stem for path in named.files]
        for stem in stems:
            if stem not in masks:
                raise InputError(f"{root / 'Ground'}: has no {stem}.png for the slice {stem}.dcm")
        for stem in masks.keys() - set(stems):
            raise InputError(f"{masks[stem]}: has no DICOM slice of its name in {root / SEQUENCES['t1-in'][1]}")
        label = _stack(series, [masks[stem] for stem in stems], mr_classes)
        return Case([series.image], label, [str(root.relative_to(self.folder))], channels=(self.sequence,))


@dataclass(frozen=True)
class ChaosCT:
    """CT/<subject>/{DICOM_anon,Ground}; ground truth and slices follow each other in the order of their names."""

    folder: Path

    def subjects(self) -> list[str]:
        """The numbered folders with a DICOM_anon."""
        return _subjects(self.folder, "DICOM_anon")

    def classes(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[int, str]:
        """The liver."""
        return {0: "background", 1: "liver"}

    def classes_of(self, subjects: Sequence[str], skip_bad: bool = False) -> dict[str, set[int]]:
        """Subject -> whether its ground truth has a liver."""
        return read_each(lambda subject: _found_in(self.folder / subject / "Ground", ct_classes), subjects, skip_bad)

    def read(self, subject: str) -> Case:
        """Raises InputError where series or ground truth are not whole, or do not fit each other."""
        root = self.folder / subject
        series = read_series(root / "DICOM_anon")
        masks = sorted(_masks(root / "Ground").values(), key=lambda path: natural(path.name))
        if len(masks) != len(series.files):
            raise InputError(f"{root / 'Ground'}: has {len(masks)} masks for {len(series.files)} slices")
        by_name = dict(zip(sorted(series.files, key=lambda path: natural(path.name)), masks, strict=True))
        label = _stack(series, [by_name[path] for path in series.files], ct_classes)
        return Case([series.image], label, [subject], channels=("CT",))


def mr_classes(codes: np.ndarray) -> np.ndarray:
    """Grey values -> 1 to 4 by the challenge's ranges. Raises InputError for others but 0."""
    classes = np.zeros(codes.shape, np.uint8)
    for k, (low, high) in enumerate(MR_RANGES, 1):
        classes[(codes > low) & (codes < high)] = k
    others = np.unique(codes[(codes > 0) & (classes == 0)]).tolist()
    if others:
        raise InputError(
            f"holds the values {some(others)}, and the challenge's organs have about 63, 126, 189 and 252; "
            "copy its own file again"
        )
    return classes


def ct_classes(codes: np.ndarray) -> np.ndarray:
    """Grey values -> 1 for the liver, whatever value it has; 0 is background."""
    return (codes > 0).astype(np.uint8)


def _subjects(folder: Path, inside: str) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct the name")
    found = [path.name for path in folder.iterdir() if (path / inside).is_dir()]
    if not found:
        raise InputError(f"{folder}: holds no SUBJECT/{inside}; name the challenge's MR or CT folder")
    return sorted(found, key=natural)


def _masks(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct the name")
    return {path.stem: path for path in folder.glob("*.png") if not path.name.startswith(".")}


def _found_in(folder: Path, to_classes: Callable[[np.ndarray], np.ndarray]) -> set[int]:
    """The classes in the masks of a folder, without the background."""
    found: set[int] = set()
    for path in _masks(folder).values():
        codes = read_grey(path)
        with errors_begin(path):
            found.update(np.unique(to_classes(codes)).tolist())
    return found - {0}


def _stack(series: Series, masks: list[Path], to_classes: Callable[[np.ndarray], np.ndarray]) -> sitk.Image:
    """The masks, in the order of the series' slices, as a volume on its grid."""
    size = series.image.GetSize()
    classes = []
    for path in masks:
        codes = read_grey(path)
        if codes.shape != size[1::-1]:
            raise InputError(f"{path}: is {codes.shape[1]} x {codes.shape[0]} pixels, its slice {size[0]} x {size[1]}")
        with errors_begin(path):
            classes.append(to_classes(codes))
    return like(series.image, np.stack(classes))
