"""Write scans as a data set in the loader's layout: 2D slices, dataset.json, all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from checkpoint import lock_folder, unlock_folder
from data.folder import SUBJECT, DataFolder, check_geometry, open_data
from data.png import read_codes
from data.preparation import Preparation
from data.sources import Source
from data.splits import Split
from utils import InputError, make_folder, write_json


def write_data(
    out: Path,
    source: Source,
    split: Split,
    preparation: Preparation,
    classes: Mapping[int, str],
    description: Mapping[str, Any],
    skip_bad: bool = False,
    check: Callable[[Path], Any] = open_data,
) -> list[str]:
    """Write every subject of `split` into the new folder `out`, in parallel; return what was wrong with those left out.

    In the masks, the classes (label value -> name, background first) are grey values spread over 0 to 252, so that they
    can be seen; those of four organs are CHAOS's. The folder appears under its name when it is complete and `check`,
    which may add to it, has raised nothing. With `skip_bad`, subjects that cannot be read are left out. Raises
    InputError where `out` is taken or being made by another process, a subject is bad, subjects differ in their number
    of channels, or a split has no subject left.
    """
    _check_free(out)
    _check_names(split, classes)
    step = 252 // (len(classes) - 1)
    codes = {value: k * step for k, value in enumerate(classes)}
    partial = out.with_name(f".{out.name}.partial")
    make_folder(partial)
    lock_folder(partial)
    try:
        for leftover in partial.glob("[!.]*"):  # of a preparation that was killed; the lock stays
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        geometry, problems = _write_subjects(partial, source, split, preparation, codes, skip_bad)
        kept = {name: [subject for subject in subjects if subject in geometry] for name, subjects in split.items()}
        for name, subjects in kept.items():
            if not subjects:
                raise InputError(f"no subject of {name} can be read; the last problem: {problems[-1]}")
        content = {
            "labels": {name: codes[value] for value, name in classes.items()},
            "values": {name: value for value, name in classes.items()},
            "preparation": preparation.to_dict(),
            "split": kept,
            "subjects": geometry,
        }
        write_json(partial / "dataset.json", {**description, **content})
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
        raise InputError(f"--out {out}: is no name of a new folder; choose one, such as DIR")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"{out}: exists already; choose another --out or remove it")


def _check_names(split: Split, classes: Mapping[int, str]) -> None:
    """What classes and subjects are called, and how many classes there are, must fit into the layout."""
    if not 2 <= len(classes) <= 253:
        raise InputError(f"{len(classes)} classes: a mask has grey values for 2 to 253, the background among them")
    names = list(classes.values())
    for value, name in classes.items():
        if names.count(name) > 1 or not name.strip() or not name.isprintable() or not 0 <= value < 2**16:
            raise InputError(
                f"label value {value} is called {name!r}; choose values from 0 to 65535, and names of text that differ"
            )
    for subject in chain.from_iterable(split.values()):
        if not SUBJECT.fullmatch(subject):
            raise InputError(
                f"subject {subject!r} must be of letters, digits, underscores and dashes; rename its files"
            )


def _write_subjects(
    root: Path,
    source: Source,
    split: Split,
    preparation: Preparation,
    codes: Mapping[int, int],
    skip_bad: bool,
) -> tuple[dict[str, Any], list[str]]:
    """What dataset.json says of each subject that was written, and what was wrong with the others."""
    home = {subject: name for name, subjects in split.items() for subject in subjects}
    written: dict[str, Any] = {}
    channels: dict[int, str] = {}
    problems = []

    def write(subject: str) -> dict[str, Any]:
        try:
            return _write_subject(root / home[subject], subject, source, preparation, codes)
        except InputError as error:
            return {"problem": f"subject {subject}: {error}"}

    with ThreadPoolExecutor(4) as pool:
        bar = tqdm(pool.map(write, home), "prepare", len(home), unit="subject", disable=None)
        for subject, entry in zip(home, bar, strict=True):
            if "problem" not in entry:
                channels.setdefault(entry.pop("channels"), subject)
                written[subject] = entry
                continue
            if not skip_bad:
                pool.shutdown(cancel_futures=True)
                raise InputError(entry["problem"])
            problems.append(entry["problem"])
    if len(channels) > 1:
        has = " and ".join(f"subject {name} has {count}" for count, name in channels.items())
        raise InputError(f"{has} channels; name only subjects with the same ones in --split-file")
    return written, problems


def _write_subject(
    folder: Path, subject: str, source: Source, preparation: Preparation, codes: Mapping[int, int]
) -> dict[str, Any]:
    """Write one subject's slices, numbered from 1, after all that can be wrong with it has been looked for."""
    case = source.read(subject)
    images, label, geometry = preparation.apply(case.images, case.label)
    unknown = sorted(set(np.unique(label).tolist()) - codes.keys())
    if unknown:
        raise InputError(f"{case.files[-1]}: holds the label values {unknown}; known are {list(codes)}")
    check_geometry({subject: geometry}, Path(case.files[0]))
    rows, columns = label.shape[1:]
    if min(rows, columns) < 32:
        raise InputError(
            f"{case.files[0]}: has slices of {columns} x {rows} pixels; pad them to at least 32 x 32 with --size, or "
            "choose a smaller --spacing"
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
    return {**geometry, "files": case.files, "channels": len(images)}


def describe(data: DataFolder) -> str:
    """A line for each subject: split, slices, size (columns x rows), spacing in mm, voxels of each class."""
    names = data.labels.names[1:]
    lines = [["split", "subject", "slices", "size", "spacing mm", *names]]
    for split in data.splits:
        dataset = data.dataset(split)
        for subject, indices in dataset.subjects().items():
            masks = np.stack([read_codes(dataset.slices[index].mask) for index in indices])
            counts = np.bincount(masks.ravel(), minlength=max(data.labels.codes) + 1)[list(data.labels.codes[1:])]
            spacing = data.geometry.get(subject, {}).get("spacing")
            grid = [f"{masks.shape[2]}x{masks.shape[1]}", "x".join(f"{s:.4g}" for s in spacing) if spacing else "-"]
            lines.append([split, subject, str(len(indices)), *grid, *(f"{count:,}" for count in counts)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
