"""Write scans as a data set in the loader's layout: 2D slices, dataset.json, all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.description import IGNORE, Labels
from data.folder import DataFolder, open_data
from data.geometry import Geometry
from data.listing import check_subject
from data.png import read_mask
from data.preparation import Preparation
from data.sources import Source
from data.splits import Split
from utils import (
    IGNORED,
    InputError,
    aligned_columns,
    errors_begin,
    errors_name,
    lock_folder,
    make_folder,
    unlock_folder,
    write_json,
)


@dataclass(frozen=True)
class Plan:
    """Which scans become which slices."""

    source: Source
    split: Split
    """The subjects of train, val and test."""
    preparation: Preparation
    classes: Mapping[int, str]
    """Label value -> name, the background first; IGNORE is none of the classes."""
    description: Mapping[str, Any]
    """What dataset.json says besides: name, licence, command, regions, tolerances, groups, colors."""
    skip_bad: bool = False
    """Whether to leave out subjects that cannot be read."""

    @property
    def codes(self) -> dict[int, int]:
        """Label value -> value in masks: spread over 0 to 252 to be seen; those of four organs are CHAOS's.

        That of IGNORE is 255. Masks of pictures keep their values.
        """
        if self.preparation.of_pictures:
            return {value: value for value in self.classes}
        classes = [value for value, name in self.classes.items() if name != IGNORE]
        step = 252 // (len(classes) - 1)
        return dict.fromkeys(self.classes, 255) | {value: k * step for k, value in enumerate(classes)}

    @property
    def stored(self) -> np.ndarray:
        """What masks hold for each label value: (values) of codes or, where classes have colors, (values, 3)."""
        colors = self.description.get("colors")
        of_value = {value: colors[name] for value, name in self.classes.items()} if colors else self.codes
        held = np.array(list(of_value.values()))
        table = np.zeros((max(of_value) + 1, *held.shape[1:]), np.min_scalar_type(held.max()))
        table[list(of_value)] = held
        return table

    def content(self, subjects: dict[str, Any], channels: Sequence[str]) -> dict[str, Any]:
        """The dataset.json of those `subjects` (name -> entry) that have been written, with names of their channels."""
        split = {}
        for name, of_split in self.split.items():
            split[name] = [subject for subject in of_split if subject in subjects]
        described = {
            "labels": {name: self.codes[value] for value, name in self.classes.items()},
            "values": {name: value for value, name in self.classes.items()},
            "preparation": self.preparation.to_dict(),
            "channels": list(channels),
            "split": split,
            "subjects": subjects,
        }
        return {**self.description, **described}


def write_data(out: Path, plan: Plan, check: Callable[[Path], Any] = open_data) -> list[str]:
    """Write every subject of the plan into the new folder `out`; return what was wrong with those left out.

    The folder appears under its name when it is complete and `check`, which may add to it, has raised nothing. Raises
    InputError where `out` is taken or being made by another process, a subject is bad, subjects differ in their number
    of channels, or a split has no subject left.
    """
    _check_free(out)
    _check_names(plan)
    partial = out.with_name(f".{out.name}.partial")
    _claim(partial)
    try:
        written, problems = _write_subjects(partial, plan)
        channels = next((outcome.names for outcome in reversed(written.values())), ())
        content = plan.content({subject: outcome.entry for subject, outcome in written.items()}, channels)
        for name, left in content["split"].items():
            if not left:
                raise InputError(f"no subject of {name} can be read; the last problem: {problems[-1]}")
        write_json(partial / "dataset.json", content)
        try:
            check(partial)
        except InputError as error:
            raise InputError(str(error).replace(str(partial), str(out))) from None
        _check_free(out)
        partial.replace(out)
        (out / ".lock").unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        unlock_folder(partial)
    return problems


def _claim(partial: Path) -> None:
    """Make a folder to write to and lock it, or empty that of a preparation that was killed, which its lock shows.

    Raises InputError where another process is at work in it, or it is a link, a file, or a folder of something else.
    """
    make_folder(partial.parent)
    try:
        partial.mkdir()
    except FileExistsError:
        if partial.is_symlink() or not (partial / ".lock").is_file():
            raise InputError(f"{partial}: is not of a preparation; rename or remove it") from None
    lock_folder(partial)
    for leftover in partial.glob("[!.]*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _check_free(out: Path) -> None:
    if out.name in ("", ".."):
        raise InputError(f"{out}: is no name of a new folder; choose one, such as DIR")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"{out}: exists already; choose another folder or remove it")


def _check_names(plan: Plan) -> None:
    """What classes and subjects are called, and how many classes there are, must fit into the layout."""
    classes = plan.classes
    names = list(classes.values())
    count = len(names) - names.count(IGNORE)
    if not 2 <= count <= 253:
        raise InputError(f"{count} classes: a mask has grey values for 2 to 253, the background among them")
    for value, name in classes.items():
        if names.count(name) > 1 or not name.strip() or not name.isprintable() or not 0 <= value < 2**16:
            raise InputError(
                f"label value {value} is called {name!r}; choose values from 0 to 65535, and names of text that differ"
            )
    Labels.from_dict(plan.content({}, ()))
    for subject in chain.from_iterable(plan.split.values()):
        check_subject(subject)


def _write_subjects(root: Path, plan: Plan) -> tuple[dict[str, _Written], list[str]]:
    """Each subject that was written, and what was wrong with the others."""
    home = {subject: name for name, subjects in plan.split.items() for subject in subjects}
    written: dict[str, _Written] = {}
    problems = []

    def write(subject: str) -> _Written | str:
        try:
            return _write_subject(root / home[subject], subject, plan)
        except InputError as error:
            return f"subject {subject}: {error}"

    with ThreadPoolExecutor(4) as pool:
        bar = tqdm(pool.map(write, home), "prepare", len(home), unit="subject", disable=None)
        for subject, outcome in zip(home, bar, strict=True):
            if isinstance(outcome, _Written):
                written[subject] = outcome
            elif plan.skip_bad:
                problems.append(outcome)
            else:
                pool.shutdown(cancel_futures=True)
                raise InputError(outcome)
    examples = {outcome.channels: subject for subject, outcome in reversed(written.items())}
    if len(examples) > 1:
        has = " and ".join(f"subject {subject} has {count}" for count, subject in examples.items())
        raise InputError(f"{has} channels; save all images alike, or name only such subjects in the split file")
    return written, problems


class _Written(NamedTuple):
    """A subject whose slices have been written."""

    entry: dict[str, Any]
    """Of dataset.json."""
    channels: int
    names: Sequence[str]
    """Of the channels, where they are known."""


def _write_subject(folder: Path, subject: str, plan: Plan) -> _Written:
    """Write one subject's slices after all that can be wrong with it has been looked for."""
    case = plan.source.read(subject)
    images, label, geometry = case.prepare(plan.preparation)
    codes = plan.codes
    unknown = sorted(set(np.unique(label).tolist()) - codes.keys())
    if unknown:
        raise InputError(f"{case.files[-1]}: holds the label values {unknown}; known are {list(codes)}")
    with errors_begin(case.files[0]):
        Geometry.from_dict(geometry.to_dict())
    rows, columns = label.shape[1:]
    if min(rows, columns) < 32:
        raise InputError(
            f"{case.files[0]}: has slices of {columns} x {rows} pixels; pad them to at least 32 x 32, or "
            "choose a smaller spacing"
        )
    stored = plan.stored
    folders = [folder / ("Img" if k == 1 else f"Img_{k}") for k in range(1, len(images) + 1)]
    for path in (*folders, folder / "GT"):
        path.mkdir(parents=True, exist_ok=True)
    numbers = case.numbers or range(1, len(label) + 1)
    for number, mask, *slices in zip(numbers, label, *images, strict=True):
        name = f"Subj_{subject}slice_{number}.png"
        for path, pixels in zip((folder / "GT", *folders), (stored[mask], *slices), strict=True):
            with errors_name(path / name):
                Image.fromarray(pixels).save(path / name)
    channels = sum(3 if pixels.ndim == 4 else 1 for pixels in images)
    entry = geometry.to_dict() | {"files": case.files}
    left = set(np.unique(label).tolist())
    vanished = [name for value, name in plan.classes.items() if value not in left and case.has(value)]
    lost = [name for name in vanished if name != IGNORE]
    if lost:
        entry["lost"] = lost
    return _Written(entry, channels, case.channels)


def describe(data: DataFolder) -> str:
    """A line for each subject: split, slices, size (columns x rows), spacing in mm, voxels of each class, and IGNORED.

    Where there are groups, a last line says how many.
    """
    columns = dict(enumerate(data.labels.names[1:], 1))
    if data.labels.ignore:
        columns[IGNORED] = IGNORE
    lines = [["split", "subject", "slices", "size", "spacing mm", *columns.values()]]
    for split in data.splits:
        dataset = data.dataset(split)
        for subject, indices in dataset.subjects().items():
            paths = [dataset.slices[index].mask for index in indices]
            masks = np.stack([data.labels.to_classes(read_mask(path), path) for path in paths])
            counts = np.bincount(masks.ravel(), minlength=IGNORED + 1)[list(columns)]
            spacing = data.geometry[subject].spacing
            grid = [f"{masks.shape[2]}x{masks.shape[1]}", "x".join(f"{s:.4g}" for s in spacing) if spacing else "-"]
            lines.append([split, subject, str(len(indices)), *grid, *(f"{count:,}" for count in counts)])
    text = "\n".join(aligned_columns(lines))
    if data.groups:
        subjects = [line[1] for line in lines[1:]]
        text += f"\n{len(subjects)} subjects are of {len({data.groups.get(name, name) for name in subjects})} groups"
    return text
