"""Make a data set in the loader's layout out of scans, or check one that was made by hand.

python prepare.py chaos-mr MR --out DIR --split 13,2,5
python prepare.py nifti SCANS --out DIR --split_file split.json
python prepare.py png PICTURES --out DIR --mask 'masks/{subject}_seg.png' --folds 5
python prepare.py check DIR
"""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

import cli
from data.description import IGNORE, parse_mirror, read_mirror
from data.folder import check_groups, open_data
from data.preparation import Preparation
from data.sources import Source
from data.sources.chaos import ChaosCT, ChaosMR
from data.sources.nifti import brats_regions, find_brats, find_hvsmr, find_msd, find_pairs, read_msd_description
from data.sources.pictures import find_pictures
from data.splits import PAPER_SEED, PROTOCOLS, Split, fold_splits, random_splits, read_groups, read_split, split_counts
from data.writer import Plan, describe, write_data
from reporting.figures import save_contact_sheet
from utils import InputError, OptionError, counted, errors_begin, harmless, printable, some, user_errors, write_json

CHAOS_LICENCE = "CC BY-NC-SA 4.0; Kavur et al., CHAOS, doi 10.5281/zenodo.3431873"


@dataclass(frozen=True, kw_only=True)
class Options(ABC):
    """What all sources have in common."""

    source: tyro.conf.Positional[Path]
    """Folder of the scans."""
    out: Path
    """Folder to make."""
    split_file: Path | None = None
    """Subjects of each split: {"train": ["1", "2"], "val": ["3"], "test": ["4"]}."""
    split: str = ""
    """Or: numbers of train, val and test subjects, such as 13,2,5, drawn with --seed."""
    fold: int = 1
    """With --folds: which fold is the test set; the next one validates. With --protocol: which of its splits."""
    folds: int | None = None
    """Or: number of folds that the subjects are dealt into with --seed."""
    protocol: Literal["paper"] | None = None
    """Or: the paper's split, see experiments/splits/."""
    seed: int = 0
    """Seed of --split and --folds."""
    groups: str = ""
    """Which subjects are of one patient, to keep them in one split: a .json file, {"001": "patient 1", "002":
    "patient 1"}, or a regular expression with the patient in parentheses, such as '(patient[0-9]+)_.*'."""
    mirror: str = ""
    """Classes that a left-right flip exchanges, such as "right kidney=left kidney, right lung=left lung"."""
    size: int | None = None
    """Crop or pad slices about their center to this many rows and columns; by default they keep their size."""
    skip_bad: bool = False
    """Leave out subjects that cannot be read, and list them at the end."""

    key: ClassVar[str]
    name: ClassVar[str]
    licence: ClassVar[str] = ""

    @abstractmethod
    def find(self) -> Source:
        """The source of the scans."""

    def run(self) -> None:
        """Prepare, then show what came out."""
        ways = [self.split_file is not None, bool(self.split), self.folds is not None, self.protocol is not None]
        if ways.count(True) != 1:
            raise InputError("give one of --split_file FILE, --split TRAIN,VAL,TEST, --folds N or --protocol paper")
        preparation = self.preparation()
        source = self.find()
        groups = read_groups(self.groups, source.subjects()) if self.groups else {}
        split, all_splits = self._choose_split(source, groups)
        subjects = [subject for of_split in split.values() for subject in of_split]
        command = shlex.join(["prepare.py", *sys.argv[1:]])
        description = {"name": self.name, "licence": self.licence, "command": command}
        classes = source.classes(subjects, self.skip_bad)
        description |= self.scoring(source, classes)
        if self.mirror:
            with errors_begin(f"--mirror {self.mirror}"):
                names = [name for name in classes.values() if name != IGNORE]
                description["mirror"] = list(map(list, read_mirror(parse_mirror(self.mirror), names)))
        if groups:
            description["groups"] = {subject: groups[subject] for subject in subjects if subject in groups}
        plan = Plan(source, split, preparation, classes, description, self.skip_bad)

        def complete(folder: Path) -> None:
            if all_splits:
                write_json(folder / "splits.json", all_splits)
            show(folder)

        problems = write_data(self.out, plan, complete)
        say_ready(self.out)
        for problem in problems:
            print(f"left out: {problem}")

    @abstractmethod
    def preparation(self) -> Preparation:
        """How scans become slices."""

    def scoring(self, source: Source, classes: Mapping[int, str]) -> dict[str, Any]:
        """What dataset.json says of how classes are scored: regions."""
        regions = brats_regions(classes.values())
        return {"regions": regions} if regions else {}

    def _choose_split(self, source: Source, groups: dict[str, str]) -> tuple[Split, list[Split]]:
        """The split that was asked for, and all splits of the protocol or the folds."""
        if self.split_file is not None:
            split = read_split(self.split_file)
            with errors_begin(self.split_file):
                check_groups(split, groups)
            named = {subject for subjects in split.values() for subject in subjects}
            left_out = [subject for subject in source.subjects() if subject not in named]
            if left_out:
                number = counted(len(left_out), "subject")
                print(printable(f"note: {self.split_file}: leaves out {number}: {some(left_out)}"))
            return split, []
        splits = self._all_splits(source, groups)
        if not 1 <= self.fold <= len(splits):
            raise InputError(f"--fold {self.fold}: there are {len(splits)} splits, numbered from 1")
        return splits[self.fold - 1], splits

    def _all_splits(self, source: Source, groups: dict[str, str]) -> list[Split]:
        """All splits of the folds, of --split or of the protocol."""
        subjects = source.subjects()
        if self.folds is not None:
            return fold_splits(subjects, self.folds, self.seed, groups, source.classes_of(subjects, self.skip_bad))
        if self.split:
            return random_splits(subjects, split_counts(self.split), 1, self.seed, groups)
        if self.key not in PROTOCOLS:
            raise OptionError(f"protocol paper: the paper has none for {self.key}, only for {', '.join(PROTOCOLS)}")
        counts, repeats = PROTOCOLS[self.key]
        splits = random_splits(subjects, counts, repeats, PAPER_SEED)
        for split in splits:
            with errors_begin("--protocol paper"):
                check_groups(split, groups)
        return splits


@dataclass(frozen=True, kw_only=True)
class ScanOptions(Options):
    """What sources of scans have in common."""

    axis: Literal["acquired", "axial", "coronal", "sagittal"] = "acquired"
    """Plane of the slices. acquired: across the axis of the largest spacing, axial where there is none."""
    spacing: str = ""
    """Resample slices to this spacing x,y in mm; by default they keep theirs."""
    normalize: Literal["slice", "volume", "percentiles"] | None = None
    """Stretch each slice (the paper's way, the default) or each volume from its smallest to its largest value, or,
    percentiles, each volume from its 0.5th to its 99.5th."""
    window: str = ""
    """Or: stretch from CENTER,WIDTH in the scan's units. Default for chaos-ct: 40,400."""
    bits: Literal[8, 16] = 8
    """Depth of the images."""

    default_window: ClassVar[str] = ""

    def preparation(self) -> Preparation:
        if self.normalize and self.window:
            raise InputError("--normalize and --window: choose one of the two")
        window = _numbers("--window", self.window or self.default_window, 2)
        spacing = _numbers("--spacing", self.spacing, 2)
        return Preparation(
            axis=self.axis,
            size=self.size,
            spacing=spacing,
            normalize=self.normalize or "slice",
            window=None if self.normalize else window,
            bits=self.bits,
        )


@dataclass(frozen=True, kw_only=True)
class NamedOptions(Options):
    """What sources have in common that do not say what their data set and its classes are called."""

    names: str = ""
    """Names of the classes without the background, separated by commas, in the order of their values."""
    name: str = ""
    """Name of the data set, for its dataset.json."""
    licence: str = ""
    """Licence of the data, for its dataset.json."""


@dataclass(frozen=True, kw_only=True)
class ChaosMr(ScanOptions):
    """CHAOS abdominal MR: the challenge's MR folder, MR/<subject>/{T1DUAL,T2SPIR} (DICOM, PNG ground truth)."""

    sequence: Literal["t1-in", "t1-out", "t2"] = "t1-in"
    """T1-DUAL in phase (the paper's), T1-DUAL out of phase, or T2-SPIR."""
    key, name, licence = "chaos-mr", "CHAOS MR", CHAOS_LICENCE

    def find(self) -> Source:
        return ChaosMR(self.source, self.sequence)


@dataclass(frozen=True, kw_only=True)
class ChaosCt(ScanOptions):
    """CHAOS CT, liver: the challenge's CT folder, CT/<subject>/{DICOM_anon,Ground}."""

    key, name, licence, default_window = "chaos-ct", "CHAOS CT", CHAOS_LICENCE, "40,400"

    def find(self) -> Source:
        return ChaosCT(self.source)


@dataclass(frozen=True, kw_only=True)
class Hvsmr(ScanOptions):
    """HVSMR 2016: training_axial_crop_pat<k>.nii.gz with -label (myocardium, blood pool)."""

    key, name, licence = "hvsmr", "HVSMR 2016", "the terms of the HVSMR 2016 challenge"

    def find(self) -> Source:
        return find_hvsmr(self.source)


@dataclass(frozen=True, kw_only=True)
class Brats(ScanOptions):
    """BraTS 2018: HGG and LGG folders; FLAIR, T1, T1ce and T2 become four channels."""

    key, name, licence = "brats", "BraTS 2018", "the terms of the BraTS 2018 challenge"

    def find(self) -> Source:
        return find_brats(self.source)


@dataclass(frozen=True, kw_only=True)
class Msd(ScanOptions):
    """Medical Segmentation Decathlon or nnU-Net raw data: dataset.json, imagesTr, labelsTr; 3-D or 4-D images."""

    key = "msd"

    @property
    def name(self) -> str:
        return str(read_msd_description(self.source).get("name", ""))

    @property
    def licence(self) -> str:
        described = read_msd_description(self.source)
        return str(described.get("licence", described.get("license", "")))

    def find(self) -> Source:
        return find_msd(self.source)


@dataclass(frozen=True, kw_only=True)
class Nifti(NamedOptions, ScanOptions):
    """Pairs of image and label volumes (NIfTI, .mha, .nrrd; DICOM series and segmentations), found by name patterns."""

    image: str = "image_{subject}.nii.gz"
    """Name of an image below SOURCE, a file or a folder with a DICOM series; several, separated by commas, are several
    channels."""
    label: str = "label_{subject}.nii.gz"
    """Name of a label volume below SOURCE. A DICOM segmentation names its classes itself."""
    key = "nifti"

    def find(self) -> Source:
        return find_pairs(self.source, _texts(self.image), self.label, _texts(self.names))


@dataclass(frozen=True, kw_only=True)
class Png(NamedOptions):
    """Pictures (PNG, JPEG, BMP) and masks (PNG, BMP), found by name patterns; images keep their values and colors."""

    image: str = "images/{subject}.png"
    """Name of an image below SOURCE; several, separated by commas, are channels. With {slice}, a whole number, subjects
    have several slices."""
    mask: str = "masks/{subject}.png"
    """Name of a mask below SOURCE."""
    mirror_axis: Literal["horizontal", "vertical"] | None = None
    """Axis of the pictures that runs from left to right: horizontal, where columns do."""
    key = "png"

    def find(self) -> Source:
        source = find_pictures(self.source, _texts(self.image), self.mask, _texts(self.names))
        turned = source.turned()
        if turned:
            print(
                f"note: {len(turned)} images are turned upright, as their EXIF data says, such as {turned[0]}; "
                "their masks must be upright, too"
            )
        return source

    def preparation(self) -> Preparation:
        return Preparation(size=self.size, normalize="none")

    def scoring(self, source: Source, classes: Mapping[int, str]) -> dict[str, Any]:
        tables = source.labels.to_dict() if source.labels else {}
        keys = ("colors", "regions", "tolerances", "mirror", "mirror_axis")
        kept = {key: tables[key] for key in keys if key in tables}
        return kept | ({"mirror_axis": self.mirror_axis} if self.mirror_axis else {})


@dataclass(frozen=True)
class Check:
    """Check a data set and show what is in it."""

    data: tyro.conf.Positional[Path]
    """Folder with train, val and test."""

    def run(self) -> None:
        show(self.data)
        say_ready(self.data)


def show(root: Path) -> None:
    """Read the data set as training will, print its summary and draw its contact sheet."""
    data = open_data(root)
    for note in data.notes:
        print(f"note: {note}")
    print(describe(data))
    with harmless(root / "contact_sheet.png"):  # shared data is often read-only, and as good for training
        save_contact_sheet(root / "contact_sheet.png", data)


def say_ready(root: Path) -> None:
    """Print what comes next."""
    sheet = root / "contact_sheet.png"
    shown = f"; {sheet} shows slices of it" if sheet.exists() else ""
    print(f"{root} is ready{shown}. Train with: python main.py --data {root}")


def _numbers(flag: str, text: str, count: int) -> tuple[float, ...] | None:
    """Numbers separated by commas; None for an empty text."""
    if not text:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise InputError(f"{flag} {text}: must be {count} numbers separated by commas")
    return numbers


def _texts(text: str) -> tuple[str, ...]:
    """Texts separated by commas; none for an empty text."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


SOURCES = (ChaosMr, ChaosCt, Hvsmr, Brats, Msd, Nifti, Png)
COMMANDS = {command.key: command for command in SOURCES} | {"check": Check}


def main(arguments: list[str] | None = None) -> None:
    cli.parse_command(COMMANDS, __doc__, arguments).run()


if __name__ == "__main__":
    with user_errors():
        main()
