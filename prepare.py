"""Make a data set in the loader's layout out of scans, or check one that was made by hand.

python prepare.py nifti SOURCE --out DIR --split-file FILE
python prepare.py check DIR
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data.folder import open_data
from data.layout import check_split, describe, write_data
from data.sources.nifti import NiftiPairs
from report import save_contact_sheet
from utils import InputError, user_errors


@dataclass(frozen=True)
class Nifti:
    """Pairs of image and label volumes (NIfTI or what else ITK reads), found by name patterns."""

    source: tyro.conf.Positional[Path]
    """Folder that holds the volumes."""
    out: Path
    """Folder to make."""
    split_file: Path
    """JSON with the subjects of each split: {"train": ["1", "2"], "val": ["3"], "test": ["4"]}."""
    image: tuple[str, ...] = ("image_{subject}.nii.gz",)
    """Name of an image below SOURCE; several patterns are several channels."""
    label: str = "label_{subject}.nii.gz"
    """Name of a label volume below SOURCE."""
    names: tuple[str, ...] = ()
    """Names of the classes without the background, in the order of their label values."""
    normalize: Literal["slice", "volume"] = "slice"
    """Stretch each slice (the paper's way) or each volume to 8 bits."""
    size: int | None = None
    """Crop or pad slices about their center to this many rows and columns; by default they keep their size."""
    spacing: tuple[float, float] | None = None
    """Resample slices to this spacing (x, y) in mm; by default they keep theirs."""
    name: str = ""
    """Name of the data set, for its dataset.json."""
    licence: str = ""
    """Licence of the data, for its dataset.json."""

    def run(self) -> None:
        if self.size is not None and self.size < 32:
            raise InputError(f"--size {self.size}: must be at least 32")
        if self.spacing is not None and not all(0 < s < float("inf") for s in self.spacing):
            raise InputError(f"--spacing {self.spacing}: must be two lengths in mm")
        split = _read_split(self.split_file)
        pairs = NiftiPairs(self.source, self.image, self.label, self.size, self.spacing)
        values = pairs.label_values([subject for subjects in split.values() for subject in subjects])
        if len(values) < 2:
            raise InputError(f"{self.source}: the labels of all subjects are empty; check --label {self.label}")
        if self.names and len(self.names) != len(values) - 1:
            raise InputError(f"--names: {len(self.names)} names for the label values {values[1:]}; give one for each")
        names = ("background", *(self.names or [f"class {value}" for value in values[1:]]))
        description = {"name": self.name, "licence": self.licence, "command": shlex.join(["prepare.py", *sys.argv[1:]])}
        write_data(self.out, split, pairs.read, values, names, self.normalize, description)
        _show(self.out)


@dataclass(frozen=True)
class Check:
    """Check a data set and show what is in it."""

    data: tyro.conf.Positional[Path]
    """Folder with train, val and test."""

    def run(self) -> None:
        _show(self.data)


def _read_split(path: Path) -> dict[str, list[str]]:
    try:
        return check_split(json.loads(path.read_text()), path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def _show(root: Path) -> None:
    """Read the data set as training will, print its summary and draw its contact sheet."""
    data = open_data(root)
    for note in data.notes:
        print(f"note: {note}")
    print(describe(data))
    save_contact_sheet(root / "contact_sheet.png", data)
    print(f"{root} is ready; {root / 'contact_sheet.png'} shows slices of it. Train with: python main.py --data {root}")


def main(arguments: list[str] | None = None) -> None:
    command = tyro.cli(Nifti | Check, args=arguments, config=(tyro.conf.ConsolidateSubcommandArgs,))
    command.run()


if __name__ == "__main__":
    with user_errors():
        main()
