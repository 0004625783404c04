"""The folder that results are written to: which files in it are whose, and its tables of all scans."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from data.label_files import PREDICTED
from utils import LONGEST_NAME, InputError, make_folder, one_at_a_time, read_csv, remove_leftovers, write_csv

OPTIONAL = ("probabilities", "dicom", "dicom_series")  # kinds of results, each written where a flag wants it
TABLES = {"volumes.csv": "scan", "scores.csv": "subject"}  # name -> the column that names a row's scan


class OutputFolder:
    """A folder of results, into which other processes may write at the same time.

    `optional` are those kinds of OPTIONAL that this call writes. Raises InputError for a table in the folder that is
    none of predict.py's.
    """

    def __init__(self, folder: Path, optional: set[str]) -> None:
        self.folder, self.kinds = folder, {"segmentation", "overlay"} | optional
        make_folder(folder)
        remove_leftovers(folder)
        self.done: set[str] = set()
        self.owner: dict[str, str] = {}
        """File -> scan of the results that lie here."""
        names = {row["scan"] for row in self._rows("volumes.csv")}
        for kind in (*OPTIONAL, "overlay", "segmentation"):  # a scan may be called x_probabilities
            for name in names:
                file = file_of(kind, name, is_picture=not (folder / f"{name}.nii.gz").exists())
                if (folder / file).exists():
                    self.owner[file] = name

    def claim(self, name: str, is_picture: bool, source: Path | None = None) -> None:
        """Take the names of a scan's results. Raises InputError where one is another scan's, or too long.

        Another scan is one of another `source`, if that of the earlier results is still there.
        """
        if name in self.done:
            raise InputError(f"a second scan called {name}; segment it into another --out")
        self.done.add(name)
        files = [row["file"] for row in self._rows("volumes.csv") if row["scan"] == name and row.get("file")]
        if source and files and _is_another(files[0], source):
            raise InputError(
                f"{self.folder}: has the results of {files[0]}, which are called {name}, too; segment {source} into "
                "another --out, or rename it"
            )
        other = file_of("segmentation", name, not is_picture)
        if other in self.owner:
            raise InputError(f"{self.folder / other}: is of a scan or picture of the same name; choose another --out")
        for kind in self.kinds:
            file = file_of(kind, name, is_picture)
            owner = self.owner.setdefault(file, name)
            if owner != name:
                raise InputError(
                    f"{self.folder / file}: would be a result of {name}, and is one of {owner}; choose another --out"
                )
            if len(os.fsencode(file)) > LONGEST_NAME:
                raise InputError(f"{self.folder / file}: has a name that is too long to be written; rename the scan")
        for kind in set(OPTIONAL) - self.kinds:
            file = file_of(kind, name, is_picture)
            if self.owner.get(file) == name:
                print(f"note: {self.folder / file} is of an earlier call")

    def replace_rows(self, table: str, name: str, rows: list[dict[str, Any]]) -> None:
        """Put the rows of a scan into a table in place of those that it has; the rows of other scans stay."""
        path = self.folder / table
        with one_at_a_time(self.folder):
            before = self._rows(table)
            others = [row for row in before if row[TABLES[table]] != name]
            if others or rows:
                write_csv(path, [*others, *rows])
            elif before:
                path.unlink()

    def _rows(self, table: str) -> list[dict[str, str]]:
        """The rows of a table; none where it is missing."""
        path = self.folder / table
        if not path.exists():
            return []
        with contextlib.suppress(InputError):
            rows = read_csv(path)
            if rows and TABLES[table] in rows[0]:
                return rows
        raise InputError(f"{path}: is no table of predict.py, and would be replaced; move it, or choose another --out")


def _is_another(file: str, source: Path) -> bool:
    """Whether a file is still there, and is not `source`."""
    try:
        return not source.samefile(file)
    except OSError:
        return False


def file_of(kind: str, name: str, is_picture: bool = False) -> str:
    """What a result of a scan or picture called `name` is called: its segmentation, overlay, or one of OPTIONAL."""
    return name + PREDICTED.get(kind, ".png" if is_picture else ".nii.gz")
