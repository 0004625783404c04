"""Write scans as a data set in the loader's layout: 2D slices, dataset.json, all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.folder import SPLITS, SUBJECT, DataFolder
from data.png import read_codes
from utils import InputError, write_json

Split = dict[str, list[str]]


@dataclass(frozen=True)
class Case:
    """A subject as its source gives it, in slices from inferior to superior (LPS axes, so that anterior is up)."""

    subject: str
    images: np.ndarray
    """(channels, D, H, W), any real type."""
    label: np.ndarray
    """(D, H, W), integers."""
    geometry: dict[str, Any]
    """What dataset.json keeps of the subject; see `data.volumes.to_scan`."""


def write_data(
    out: Path,
    split: Split,
    read: Callable[[str], Case],
    values: Sequence[int],
    names: Sequence[str],
    normalize: str,
    description: dict[str, Any],
) -> None:
    """Write every subject of `split`, read by `read`, into the new folder `out`.

    Label values[k] becomes class k, called names[k]; values[0] is the background. In the masks, classes are grey values
    spread over 0 to 252, so that they can be seen; those of four organs are CHAOS's. Images are stretched to 8 bits
    from their smallest to their largest value, by "slice" as in the paper or by "volume"; a constant one becomes 0.
    The folder appears under its name when it is complete. Raises InputError where `out` is taken or a subject is bad.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out or remove it")
    if len(names) > 253:
        raise InputError(f"{len(names)} classes do not fit into the grey values of a mask; at most 253 do")
    codes = [k * (252 // (len(names) - 1)) for k in range(len(names))]
    home = {subject: name for name, subjects in split.items() for subject in subjects}
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)

        def write(subject: str) -> dict[str, Any]:
            case = read(subject)
            _write_slices(case, partial / home[subject], dict(zip(values, codes, strict=True)), normalize)
            return case.geometry

        with ThreadPoolExecutor(4) as pool:
            bar = tqdm(pool.map(write, home), "prepare", len(home), unit="subject", disable=None)
            subjects = dict(zip(home, bar, strict=True))
        labels = dict(zip(names, codes, strict=True))
        write_json(partial / "dataset.json", {**description, "labels": labels, "split": split, "subjects": subjects})
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_split(split: Any, path: Path) -> Split:
    """A split file's content, train, val and test with a list of subjects each, with the subjects as text.

    Raises InputError for another form, an empty list, a subject named twice, or a name that no file can carry.
    """
    example = '{"train": ["1", "2"], "val": ["3"], "test": ["4"]}'
    if not isinstance(split, dict) or set(split) != set(SPLITS):
        raise InputError(f"{path}: must be an object such as {example}")
    if not all(isinstance(split[name], list) and split[name] for name in SPLITS):
        raise InputError(f"{path}: train, val and test each need a list of subjects, such as {example}")
    checked = {name: [str(subject) for subject in split[name]] for name in SPLITS}
    subjects = [subject for name in SPLITS for subject in checked[name]]
    for subject in subjects:
        if subjects.count(subject) > 1:
            raise InputError(f"{path}: names subject {subject} twice; each belongs into one split, once")
        if not SUBJECT.fullmatch(subject):
            raise InputError(f"{path}: subject {subject!r} must be of letters, digits, underscores and dashes")
    return checked


def stretch(values: np.ndarray) -> np.ndarray:
    """Smallest to largest value -> 0 to 255, rounded to the nearest (halves to even); a constant array -> 0."""
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.zeros(values.shape, np.uint8)
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _write_slices(case: Case, folder: Path, codes: dict[int, int], normalize: str) -> None:
    if not np.isfinite(case.images).all():
        raise InputError(f"subject {case.subject}: an image holds NaN or infinite values; correct the scan")
    table = np.zeros(max(codes) + 1, np.uint8)
    table[list(codes)] = list(codes.values())
    folders = [folder / ("Img" if k == 1 else f"Img_{k}") for k in range(1, len(case.images) + 1)]
    for path in (*folders, folder / "GT"):
        path.mkdir(parents=True, exist_ok=True)
    images = [stretch(volume) if normalize == "volume" else map(stretch, volume) for volume in case.images]
    for number, (mask, *slices) in enumerate(zip(case.label, *images, strict=True), 1):
        name = f"Subj_{case.subject}slice_{number}.png"
        Image.fromarray(table[mask]).save(folder / "GT" / name)
        for path, pixels in zip(folders, slices, strict=True):
            Image.fromarray(pixels).save(path / name)


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
