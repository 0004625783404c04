"""Write scans as a data set in the loader's layout: 2D slices, dataset.json, all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.folder import SUBJECT, DataFolder, open_data
from data.geometry import Geometry
from data.png import read_codes
from data.preparation import Preparation
from data.sources import Source
from data.splits import Split
from utils import InputError, lock_folder, make_folder, unlock_folder, write_json


@dataclass(frozen=True)
class Plan:
    """Which scans become which slices."""

    source: Source
    split: Split
    """The subjects of train, val and test."""
    preparation: Preparation
    classes: Mapping[int, str]
    """Label value -> name, the background first."""
    description: Mapping[str, Any]
    """What dataset.json says besides: name, licence, command."""
    skip_bad: bool = False
    """Whether to leave out subjects that cannot be read."""

    @property
    def codes(self) -> dict[int, int]:
        """Label value -> value in masks: spread over 0 to 252 to be seen; those of four organs are CHAOS's."""
        step = 252 // (len(self.classes) - 1)
        return {value: k * step for k, value in enumerate(self.classes)}

    def content(self, subjects: dict[str, Any]) -> dict[str, Any]:
        """The dataset.json of those `subjects` (name -> entry) that have been written."""
        split = {}
        for name, of_split in self.split.items():
            split[name] = [subject for subject in of_split if subject in subjects]
        described = {
            "labels": {name: self.codes[value] for value, name in self.classes.items()},
            "values": {name: value for value, name in self.classes.items()},
            "preparation": self.preparation.to_dict(),
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
    make_folder(partial)
    lock_folder(partial)
    try:
        for leftover in partial.glob("[!.]*"):  # of a preparation that was killed; the lock stays
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        subjects, problems = _write_subjects(partial, plan)
        content = plan.content(subjects)
        for name, left in content["split"].items():
            if not left:
                raise InputError(f"no subject of {name} can be read; the last problem: {problems[-1]}")
        write_json(partial / "dataset.json", content)
        check(partial)
        _check_free(out)
        partial.replace(out)
        (out / ".lock").unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        unlock_folder(partial)
    return problems


def _check_free(out: Path) -> None:
    if out.name in ("", ".."):
        raise InputError(f"{out}: is no name of a new folder; choose one, such as DIR")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"{out}: exists already; choose another folder or remove it")


def _check_names(plan: Plan) -> None:
    """What classes and subjects are called, and how many classes there are, must fit into the layout."""
    classes = plan.classes
    if not 2 <= len(classes) <= 253:
        raise InputError(f"{len(classes)} classes: a mask has grey values for 2 to 253, the background among them")
    names = list(classes.values())
    for value, name in classes.items():
        if names.count(name) > 1 or not name.strip() or not name.isprintable() or not 0 <= value < 2**16:
            raise InputError(
                f"label value {value} is called {name!r}; choose values from 0 to 65535, and names of text that differ"
            )
    for subject in chain.from_iterable(plan.split.values()):
        if not SUBJECT.fullmatch(subject):
            raise InputError(
                f"subject {subject!r} must be of letters, digits, underscores and dashes; rename its files"
            )


def _write_subjects(root: Path, plan: Plan) -> tuple[dict[str, Any], list[str]]:
    """What dataset.json says of each subject that was written, and what was wrong with the others."""
    home = {subject: name for name, subjects in plan.split.items() for subject in subjects}
    written: dict[str, Any] = {}
    channels: dict[str, int] = {}
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
                written[subject] = outcome.entry
                channels[subject] = outcome.channels
            elif plan.skip_bad:
                problems.append(outcome)
            else:
                pool.shutdown(cancel_futures=True)
                raise InputError(outcome)
    if len(set(channels.values())) > 1:
        examples = {count: subject for subject, count in reversed(channels.items())}
        has = " and ".join(f"subject {subject} has {count}" for count, subject in examples.items())
        raise InputError(f"{has} channels; name only subjects with the same ones in the split file")
    return written, problems


class _Written(NamedTuple):
    """A subject whose slices have been written."""

    entry: dict[str, Any]
    """Of dataset.json."""
    channels: int


def _write_subject(folder: Path, subject: str, plan: Plan) -> _Written:
    """Write one subject's slices, numbered from 1, after all that can be wrong with it has been looked for."""
    case = plan.source.read(subject)
    images, label, geometry = plan.preparation.apply(case.images, case.label)
    codes = plan.codes
    unknown = sorted(set(np.unique(label).tolist()) - codes.keys())
    if unknown:
        raise InputError(f"{case.files[-1]}: holds the label values {unknown}; known are {list(codes)}")
    try:
        Geometry.from_dict(geometry.to_dict())
    except InputError as error:
        raise InputError(f"{case.files[0]}: {error}") from None
    rows, columns = label.shape[1:]
    if min(rows, columns) < 32:
        raise InputError(
            f"{case.files[0]}: has slices of {columns} x {rows} pixels; pad them to at least 32 x 32, or "
            "choose a smaller spacing"
        )
    table = np.zeros(max(codes) + 1, np.uint8)
    table[list(codes)] = list(codes.values())
    folders = [folder / ("Img" if k == 1 else f"Img_{k}") for k in range(1, len(images) + 1)]
    for path in (*folders, folder / "GT"):
        path.mkdir(parents=True, exist_ok=True)
    for number, (mask, *slices) in enumerate(zip(label, *images, strict=True), 1):
        name = f"Subj_{subject}slice_{number}.png"
        Image.fromarray(table[mask]).save(folder / "GT" / name)
        for path, pixels in zip(folders, slices, strict=True):
            Image.fromarray(pixels).save(path / name)
    return _Written(geometry.to_dict() | {"files": case.files}, len(images))


def describe(data: DataFolder) -> str:
    """A line for each subject: split, slices, size (columns x rows), spacing in mm, voxels of each class."""
    names = data.labels.names[1:]
    lines = [["split", "subject", "slices", "size", "spacing mm", *names]]
    for split in data.splits:
        dataset = data.dataset(split)
        for subject, indices in dataset.subjects().items():
            masks = np.stack([read_codes(dataset.slices[index].mask) for index in indices])
            counts = np.bincount(masks.ravel(), minlength=max(data.labels.codes) + 1)[list(data.labels.codes[1:])]
            spacing = data.geometry[subject].spacing
            grid = [f"{masks.shape[2]}x{masks.shape[1]}", "x".join(f"{s:.4g}" for s in spacing) if spacing else "-"]
            lines.append([split, subject, str(len(indices)), *grid, *(f"{count:,}" for count in counts)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
