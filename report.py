"""The page of a run, or of several: one HTML file that needs no network; and figures for a paper.

python report.py runs/001-paper                        writes its report.html again
python report.py runs/001-paper runs/002-paper         a page that compares runs, compared/report.html
python report.py RUN [RUN...] --figure DIR             qualitative grid and box plots as PDF and PNG
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import os
import platform
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import ndimage
from torch import nn

from checkpoint import load_checkpoint
from config import Config, read_run
from data.folder import open_data
from data.png import read_image
from data.slices import SliceDataset
from data.splits import read_split
from data.volumes import Volume
from engine import segment_subjects
from figures import COLORS, Row, fullest, save_boxes, save_grid
from metrics import shown_metrics
from models import build_model
from models.inspection import Inspection, inspect
from tables import LOWER_IS_BETTER, MEAN, METRICS, Table, read_result
from utils import (
    InputError,
    loader_workers,
    make_folder,
    read_csv,
    read_json,
    select_device,
    use_bfloat16,
    user_errors,
    write_text,
)

PAGE = Path(__file__).resolve().parent / "page"
LIMIT = 15_000_000  # bytes of a page; the worst subjects come first, and those beyond it are left out of the viewer
WHILE_TRAINING = 5  # validation subjects in the viewer, so that writing the page costs next to nothing
INSPECTED = 5  # test subjects with maps of the refinement
JPEG = {"format": "JPEG", "quality": 92}  # of CHAOS's slices: 0.6 grey values off in the mean, 10 of PNG's 24 KB


class Shown(NamedTuple):
    """Segmented subjects with their images: what the slice viewer holds."""

    split: str
    """"val" or "test"."""
    dataset: SliceDataset
    volumes: Sequence[Volume]
    geometry: dict[str, dict[str, Any]]
    """Subject -> its entry in dataset.json, for the sides of its pixels."""


@dataclass(frozen=True)
class Options:
    """Write the page of a run again, a page that compares several, or figures for a paper."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders. The first of several is what the others are compared with."""
    figure: Path | None = None
    """Write figures for a paper to this folder, and no page."""
    out: Path = Path("compared")
    """Folder for the page of several runs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(options: Options) -> None:
    if not options.runs:
        raise InputError("no runs; name run folders of main.py")
    if options.figure:
        written = write_figures(options.runs, options.figure, select_device(options.device))
    elif len(options.runs) > 1:
        written = [write_comparison(options.runs, options.out)]
    else:
        folder = options.runs[0]
        run_config(folder)
        try:
            shown, model = segment(folder, select_device(options.device))
        except InputError as error:
            print(f"note: no slices in the page: {error}")
            shown = model = None
        written = [write_report(folder, shown, model)]
    print(f"Written: {', '.join(map(str, written))}")


def run_config(folder: Path) -> Config:
    """The configuration of a run. Raises InputError where there is none."""
    config = read_run(folder / "config.json")
    if config is None:
        raise InputError(f"{folder}: not a run folder of main.py; it has no config.json")
    return config


def segment(folder: Path, device: torch.device) -> tuple[Shown, nn.Module]:
    """Segment the test subjects of a run again with its best.pt; the validation subjects of one without a test.

    Raises InputError where run, checkpoint or data set are gone, or do not fit each other.
    """
    config = run_config(folder)
    checkpoint = load_checkpoint(folder / "best.pt", device)
    trained = replace(Config.from_dict(checkpoint["config"]), pretrained=False)
    data = open_data(config.data, subjects=config.split_file and read_split(config.split_file))
    here = dict(zip(*data.labels, strict=True)), data.channels, data.preparation
    if (checkpoint["labels"], trained.channels, checkpoint["preparation"]) != here:
        raise InputError(f"{config.data}: has other classes, channels or preparation than {folder} was trained on")
    model = build_model(trained).to(device, memory_format=torch.channels_last)
    model.load_state_dict(checkpoint["model"])
    split = "test" if (folder / "test.json").exists() else "val"
    dataset, bfloat16 = data.dataset(split), use_bfloat16(config.amp, device)
    workers = loader_workers("auto", device)
    volumes = segment_subjects(
        model, dataset, config.eval_batch_size, workers, device, bfloat16, split, trained.largest_component
    )
    return Shown(split, dataset, list(volumes), data.geometry), model


def environment(device: torch.device) -> dict[str, str]:
    """What a run depends on besides its configuration."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__, "CUDA": str(torch.version.cuda)}
    cores = {"CPU cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    return {"device": f"{device.type} ({name})", **cores, **versions, "system": platform.system()}


# ---------------------------------------------------------------- the page of a run


def write_report(folder: Path, shown: Shown | None = None, model: nn.Module | None = None) -> Path:
    """Write report.html of a run, finished or not, from the tables in its folder; return its path.

    `shown` fills the slice viewer, `model` the maps of the refinement.
    """
    page = read_tables(folder) | {"viewer": None, "inside": []}
    if shown:
        page["classes"] = list(shown.dataset.labels.names[1:])
        counts = {volume.subject: confusion(volume, len(page["classes"]) + 1) for volume in shown.volumes}
        worst = sorted(shown.volumes, key=lambda volume: np.nan_to_num(mean_dice(counts[volume.subject].sum(0)), nan=2))
        if model:
            found = (look_inside(model, shown.dataset, volume, counts[volume.subject]) for volume in worst[:INSPECTED])
            page["inside"] = [place for subject in found for place in subject]
        room = LIMIT - len(fill("report.html", page)) - 10_000
        subjects = view(shown, worst[:WHILE_TRAINING] if shown.split == "val" else worst, counts, room)
        page["viewer"] = {"split": shown.split, "subjects": subjects, "left_out": len(worst) - len(subjects)}
    write_text(folder / "report.html", fill("report.html", page))
    return folder / "report.html"


def fill(name: str, data: dict[str, Any]) -> str:
    """The page `name` with its style and scripts and with `data`, in one text."""

    def read(name: str) -> str:
        return (PAGE / name).read_text(encoding="utf-8")

    page = re.sub(r'<link rel="stylesheet" href="(.+?)">', lambda m: f"<style>\n{read(m[1])}</style>", read(name))
    page = re.sub(r'<script src="(.+?)">', lambda m: f"<script>\n{read(m[1])}", page)
    # No name in the data may end the script element: "<" is written as JSON's escape.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return page.replace('id="data">', f'id="data">{text}', 1)


def read_tables(folder: Path) -> dict[str, Any]:
    """What the files of a run say; None or nothing for those that are not there (yet)."""
    summary, environment = (
        read_json(path) if path.exists() else None for path in (folder / "test.json", folder / "environment.json")
    )
    log = _read_table(folder / "log.csv")
    scores = _read_table(folder / "test.csv") if summary else []
    config = read_run(folder / "config.json")
    names = [key.removeprefix("val_dsc ") for row in log[:1] for key in row if key.startswith("val_dsc ")]
    titles = shown_metrics(summary["overall"]) if summary else {}
    return {
        "name": folder.resolve().name,
        "config": config and config.to_dict(),
        "network": config and config.network,
        "environment": environment,
        "log": log,
        "test": summary,
        "scores": scores,
        "classes": list(dict.fromkeys(row["class"] for row in scores)) or names,
        "metrics": [_metric(key, title) for key, title in titles.items()],
    }


def _metric(key: str, title: str) -> dict[str, Any]:
    name, unit = title.split()
    return {
        "key": key, "name": name, "unit": unit, "scale": 100 if unit == "%" else 1, "lower": name in LOWER_IS_BETTER
    }  # fmt: skip


def _read_table(path: Path) -> list[dict[str, Any]]:
    """Rows with numbers and booleans where a cell is one; NaN and empty cells are None."""
    return [
        {key: cell if key in ("subject", "class") else _value(cell) for key, cell in row.items()}
        for row in (read_csv(path) if path.exists() else [])
    ]


def _value(cell: str) -> Any:
    if cell in ("True", "False", ""):
        return cell == "True" if cell else None
    try:
        return _finite(float(cell))
    except ValueError:
        return cell


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------- slices


def confusion(volume: Volume, classes: int) -> np.ndarray:
    """(D, classes, classes): of each slice, the number of pixels by class in the truth and class in the prediction."""
    pairs = volume.target.astype(np.int32) * classes + volume.prediction
    counts = [np.bincount(plane.ravel(), minlength=classes**2) for plane in pairs]
    return np.stack(counts).reshape(-1, classes, classes)


def mean_dice(counts: np.ndarray) -> np.ndarray:
    """Mean Dice over the classes that truth or prediction has, (...), of counts (..., classes, classes).

    NaN where there is only background.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1)[..., 1:]
    sizes = (counts.sum(-1) + counts.sum(-2))[..., 1:]
    present = sizes > 0
    dice = np.where(present, 2 * hits / np.maximum(sizes, 1), 0).sum(-1)
    return np.where(present.any(-1), dice / np.maximum(present.sum(-1), 1), np.nan)


def worst_slice(counts: np.ndarray) -> int:
    """The slice with the lowest `mean_dice`, of several the one with the most wrong pixels."""
    dice = np.nan_to_num(mean_dice(counts), nan=2)
    wrong = counts.sum((1, 2)) - np.trace(counts, axis1=1, axis2=2)
    return int(np.lexsort((-wrong, dice))[0])


def view(shown: Shown, volumes: list[Volume], counts: dict[str, np.ndarray], room: int) -> list[dict[str, Any]]:
    """What the viewer holds of as many of `volumes` as `room` bytes take.

    Where not even the first one fits, it is cut to the slices about its worst.
    """
    subjects: list[dict[str, Any]] = []
    for volume in volumes:
        indices = shown.dataset.subjects()[volume.subject]
        subject = _subject(shown, volume, indices, counts[volume.subject])
        while not subjects and len(indices) > 1 and _size(subject) > room:
            near = sorted(indices, key=lambda index: abs(index - indices[0] - subject["worst"]))
            indices = sorted(near[: len(indices) // 2])
            subject = _subject(shown, volume, indices, counts[volume.subject])
        if _size(subject) > room:
            break
        room -= _size(subject)
        subjects.append(subject)
    return subjects


def _size(subject: dict[str, Any]) -> int:
    return len(json.dumps(subject))


def _subject(shown: Shown, volume: Volume, indices: list[int], counts: np.ndarray) -> dict[str, Any]:
    """Of the slices `indices`: images as JPEG, class indices as zlib streams of bytes (slices, H, W), all in base64."""
    places = shown.dataset.places(indices)
    dice = mean_dice(counts[places])
    width, height = shown.geometry.get(volume.subject, {}).get("spacing", (1, 1))[:2]
    return {
        "subject": volume.subject,
        "numbers": [shown.dataset.slices[index].number for index in indices],
        "size": list(volume.target.shape[1:]),
        "aspect": volume.target.shape[2] * width / (volume.target.shape[1] * height),
        "dice": [_finite(float(value)) for value in dice],
        "worst": worst_slice(counts[places]),
        "images": [encode_image(shown.dataset.slices[index].images[0]) for index in indices],
        "truth": encode_mask(volume.target[places]),
        "prediction": encode_mask(volume.prediction[places]),
    }


@functools.lru_cache(maxsize=4096)  # the page is written after every epoch, and images do not change
def encode_image(path: Path) -> str:
    """The first channel of an image file as a grey JPEG in base64."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * read_image(path)[0]).astype(np.uint8)).save(file, **JPEG)
    return base64.b64encode(file.getvalue()).decode()


def encode_classes(classes: np.ndarray) -> str:
    """Class indices uint8 (H, W) -> base64 of a PNG in the colors of the classes, transparent where background."""
    colors = [to_rgb(COLORS[k % len(COLORS)]) for k in range(255)]
    return _encode_indexed(classes, [(0.0, 0.0, 0.0), *colors], transparency=0)


def _encode_indexed(indices: np.ndarray, colors: Sequence[Sequence[float]], **options: int) -> str:
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([round(255 * value) for color in colors for value in color])
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def encode_mask(classes: np.ndarray) -> str:
    """uint8 of any shape -> base64 of a zlib stream, which browsers unpack by themselves, to the bit.

    Level 1: three times as fast as the default, for a page that is written after each epoch.
    """
    return base64.b64encode(zlib.compress(classes.tobytes(), 1)).decode()


# ---------------------------------------------------------------- what the refinement looks at


def look_inside(model: nn.Module, dataset: SliceDataset, volume: Volume, counts: np.ndarray) -> list[dict[str, Any]]:
    """Maps of the refinement at a subject's worst and fullest slice; nothing for a network that does not refine.

    The position attention is that of the pixel deepest inside a class of the truth (without one: of the middle).
    """
    indices = dataset.subjects()[volume.subject]
    places = dataset.places(indices)
    slices = {fullest(volume.target[places]): "fullest", worst_slice(counts[places]): "worst"}
    parameter, found = next(model.parameters()), []
    for k, kind in sorted(slices.items(), key=lambda item: item[1], reverse=True):
        image, target = dataset[indices[k]][0], volume.target[places[k]]
        point = deepest(target)
        inspection = inspect(model, image[None].to(parameter.device), point)
        if inspection:
            rows = _maps(inspection, point)
            place = {"subject": volume.subject, "number": dataset.slices[indices[k]].number, "kind": kind}
            pictures = {"image": encode_image(dataset.slices[indices[k]].images[0]), "truth": encode_classes(target)}
            found.append(place | pictures | {"rows": rows})
    return found


def _maps(inspection: Inspection, point: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of pictures over the scales, each with its title; of attention also the point, in parts of the image."""
    rows = [
        {"title": title, "classes": [encode_classes(scale.numpy()) for scale in scales]}
        for title, scales in (("Raw prediction", inspection.raw), ("Refined prediction", inspection.refined))
    ]
    for number, step in enumerate(inspection.steps, 1):
        for title, maps in zip(("Position attention", "Semantic reconstruction", "Guide"), step, strict=True):
            row = {"title": f"{title}, step {number}", "heat": [encode_heat(x.numpy()) for x in maps]}
            if maps is step.attention:
                height, width = inspection.refined[0].shape
                row["point"] = [(point[1] + 0.5) / width, (point[0] + 0.5) / height]
            rows.append(row)
    return [row for row in rows if row.get("classes") or row.get("heat")]


def deepest(target: np.ndarray) -> tuple[int, int]:
    """The pixel (row, column) of class indices (H, W) that is furthest from any other class; the middle of nothing."""
    depth = [ndimage.distance_transform_edt(target == k) for k in np.unique(target[target > 0])]
    if not depth:
        return target.shape[0] // 2, target.shape[1] // 2
    row, column = np.unravel_index(int(np.max(depth, 0).argmax()), target.shape)
    return int(row), int(column)


def encode_heat(values: np.ndarray) -> str:
    """(H, W) -> base64 of a PNG in matplotlib's viridis, from the least to the largest value."""
    stretched = (values - values.min()) * (255 / (np.ptp(values) or 1))
    return _encode_indexed(stretched.round().astype(np.uint8), plt.get_cmap("viridis").colors)


# ---------------------------------------------------------------- several runs


def read_results(folders: Sequence[Path]) -> Table:
    """The runs as a table of results, the first of them last, which is what the others are compared with."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same run is given twice")
    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    results = [read_result(name, [folder]) for name, folder in zip(names, folders, strict=True)]
    for result, folder in zip(results, folders, strict=True):
        if result.classes != results[0].classes:
            raise InputError(f"{folder}: its classes are not those of {folders[0]}; compare runs on one data set")
    return Table("Comparison", [*results[1:], results[0]])


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write report.html, which compares finished runs, to the folder `out`; return its path."""
    table = read_results(folders)
    order = [*folders[1:], folders[0]]
    tables = [read_tables(folder) for folder in order]
    configs = [page["config"] or {} for page in tables]
    fields = dict.fromkeys(name for config in configs for name in config if name not in ("out", "resume"))
    differences = {name: [config.get(name) for config in configs] for name in fields}
    page = {
        "runs": [
            {
                "name": result.name,
                "log": page["log"],
                "parameters": result.parameters,
                "epochs": result.epochs,
                "seconds": result.seconds,
                "values": {label: {m: _known(result.values[label, m]) for m in METRICS} for label in labels(table)},
            }
            for result, page in zip(table.results, tables, strict=True)
        ],
        "labels": labels(table),
        "metrics": [
            {"name": name, "unit": "%" if scale == 100 else "voxels", "lower": name in LOWER_IS_BETTER}
            for name, (_, scale) in METRICS.items()
        ],
        "rows": [{key: _plain(value) for key, value in row.items()} for row in table.rows()],
        "classes": [
            {"row": result.name, "class": label, "metric": name} | _statistics(table, result, (label, name))
            for result in table.results for label in table.results[0].classes for name in METRICS
        ],
        "reference": table.reference.name,
        "differences": {name: v for name, v in differences.items() if any(value != v[0] for value in v)},
    }  # fmt: skip
    make_folder(out)
    write_text(out / "report.html", fill("comparison.html", page))
    return out / "report.html"


def labels(table: Table) -> list[str]:
    """The classes and their mean."""
    return [*table.results[0].classes, MEAN]


def _known(values: dict[str, float]) -> dict[str, float | None]:
    return {subject: _finite(value) for subject, value in values.items()}


def _plain(value: Any) -> Any:
    return _finite(value) if isinstance(value, float) else value


def _statistics(table: Table, result: Any, column: tuple[str, str]) -> dict[str, Any]:
    mean, std, n = table.statistics(result, column)
    return {"mean": _finite(mean), "std": _finite(std), "n": n}


# ---------------------------------------------------------------- figures for a paper


def write_figures(folders: Sequence[Path], out: Path, device: torch.device, most: int = 4) -> list[Path]:
    """Write grid and boxes as PDF and PNG to `out`; return their paths. The first run is "ours", in the last column.

    The grid has `most` test subjects evenly from the worst to the best of ours, each at the slice where all runs
    together have the most wrong pixels.
    """
    table = read_results(folders)
    segmented = [segment(folder, device)[0] for folder in [*folders[1:], folders[0]]]
    dataset = segmented[-1].dataset
    volumes = [{volume.subject: volume for volume in shown.volumes} for shown in segmented]
    common = [subject for subject in dataset.subjects() if all(subject in of_run for of_run in volumes)]
    if not common:
        raise InputError(f"{folders[0]}: shares no test subject with the other runs")
    ours = table.results[-1].values[MEAN, "DSC"]
    common.sort(key=lambda subject: np.nan_to_num(ours[subject], nan=math.inf))
    chosen = [common[k] for k in np.unique(np.linspace(0, len(common) - 1, most).round().astype(int))]
    rows = []
    for subject in chosen:
        truth, indices = volumes[-1][subject].target, dataset.subjects()[subject]
        predictions = [of_run[subject].prediction for of_run in volumes]
        if any(prediction.shape != truth.shape for prediction in predictions):
            raise InputError(f"{folders[0]}: its subject {subject} has another size in another run")
        places = dataset.places(indices)
        wrong = sum((prediction[places] != truth[places]).sum((1, 2)) for prediction in predictions)
        k = int(np.argmax(wrong))
        image = dataset[indices[k]][0][0].numpy()
        overlays = [volume[places[k]] for volume in (truth, *predictions)]
        rows.append(Row(f"subject {subject}, slice {dataset.slices[indices[k]].number}", image, overlays))
    make_folder(out)
    values = {result.name: result.values for result in table.results}
    written = []
    for suffix in ("pdf", "png"):
        written += [out / f"grid.{suffix}", out / f"boxes.{suffix}"]
        save_grid(written[-2], rows, ["truth", *values], dataset.labels.names)
        save_boxes(written[-1], values, table.results[0].classes, "DSC")
    return written


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Options, description=Options.__doc__))
