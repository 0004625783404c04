"""Rows of finished runs as they are given on a command line: "NAME=folder,folder"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from utils import InputError, exists, printable


@dataclass(frozen=True)
class Row:
    """The finished runs that make a row of a table: its folds and seeds."""

    name: str
    folders: tuple[Path, ...]


def parse_rows(texts: Sequence[str]) -> list[Row]:
    """ "NAME=folder,folder" or "folder,folder" -> rows. What exists as a whole is one folder, whatever signs it holds.

    A row without a name gets the shortest end of the path of its first folder that no other row has.
    Raises InputError for equal names, and for a folder that is given twice.
    """
    named = [_parse_row(text) for text in texts]
    given: dict[Path, Path] = {}
    for folder in chain.from_iterable(folders for _, folders in named):
        if given.setdefault(folder.resolve(), folder) is not folder:
            raise InputError(f"{folder}: is given twice; give each run once, in one row")
    names = {name for name, _ in named if name}
    ends = [[] if name else _ends(folders[0]) for name, folders in named]
    rows = []
    for k, (name, folders) in enumerate(named):
        others = names.union(*ends[:k], *ends[k + 1 :])
        free = [end for end in ends[k] if end not in others]
        rows.append(Row(printable(name or (free or ends[k][-1:])[0]), folders))
    for k, row in enumerate(rows):
        if row.name in [other.name for other in rows[:k]]:
            raise InputError(f'{row.name}: two rows have this name; give each its own, such as "My network=runs/a"')
    return rows


def refuse_run(out: Path) -> None:
    """Raises InputError where a folder for a comparison is that of a run, whose page it would replace."""
    for name in ("config.json", "evaluation.json"):
        if (out / name).exists():
            raise InputError(f"--out {out}: is the folder of a run; choose another folder")


def _parse_row(text: str) -> tuple[str, tuple[Path, ...]]:
    """The name, an empty text where there is none, and the folders. The name ends where all after it are folders."""
    cuts = [k for k, sign in enumerate(text) if sign == "="]
    readings = [("", _folders(text)), *((text[:k].strip(), _folders(text[k + 1 :])) for k in cuts)]
    whole = [reading for reading in readings if reading[1] and all(map(exists, reading[1]))]
    name, folders = (whole or readings[1:] or readings)[0]
    if not folders or (cuts and not whole and not name):
        raise InputError(f'{text}: must be "NAME=folder,folder" or "folder,folder"')
    return name, folders


def _folders(text: str) -> tuple[Path, ...]:
    """The folders of a row; nothing where one of them is an empty text."""
    parts = [text] if exists(Path(text)) else [part.strip() for part in text.split(",")]
    return tuple(map(Path, parts)) if all(parts) else ()


def _ends(folder: Path) -> list[str]:
    """The ends of a path, the shortest first: c, b/c, a/b/c."""
    parts = folder.resolve().parts
    return ["/".join(parts[k:]) for k in reversed(range(len(parts)))]
