"""Figures of several runs for a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.dataset import SliceDataset
from data.png import read_image
from data.volumes import Volume
from experiments.results import MEAN
from metrics import METRICS
from reporting.comparison import read_results
from reporting.figures import Row, save_boxes, save_grid
from reporting.segmentation import segment_run
from utils import InputError, make_folder


def write_figures(folders: Sequence[Path], out: Path, device: str, most: int = 4) -> list[Path]:
    """Write grid and boxes as PDF and PNG to `out`; return their paths. The first run is "ours", in the last column.

    The grid has `most` test subjects evenly from the worst to the best of ours, each at the slice where all runs
    together have the most wrong pixels.
    """
    table = read_results(folders)
    segmented = [segment_run(folder, device)[0] for folder in (*folders[1:], folders[0])]
    dataset = segmented[-1].dataset
    volumes = [{volume.subject: volume for volume in of_run.volumes} for of_run in segmented]
    common = [subject for subject in dataset.subjects() if all(subject in of_run for of_run in volumes)]
    if not common:
        raise InputError(f"{folders[0]}: shares no test subject with the other runs")
    ours = table.results[-1].values[MEAN, "DSC"]
    common.sort(key=lambda subject: np.nan_to_num(ours[subject], nan=math.inf))
    chosen = [common[k] for k in np.unique(np.linspace(0, len(common) - 1, most).round().astype(int))]
    rows = []
    for subject in chosen:
        of_runs = [of_run[subject] for of_run in volumes]
        if any(volume.prediction.shape != of_runs[-1].target.shape for volume in of_runs):
            raise InputError(f"{folders[0]}: its subject {subject} has another size in another run")
        rows.append(_row(dataset, of_runs))
    make_folder(out)
    values = {result.name: result.values for result in table.results}
    written = []
    for suffix in ("pdf", "png"):
        grid, boxes = out / f"grid.{suffix}", out / f"boxes.{suffix}"
        save_grid(grid, rows, ["truth", *values], dataset.labels.names)
        save_boxes(boxes, values, table.results[0].classes, METRICS["dsc"])
        written += [grid, boxes]
    return written


def _row(dataset: SliceDataset, of_runs: Sequence[Volume]) -> Row:
    """A subject at the slice where its segmentations together have the most wrong pixels; the last run is ours."""
    ours = of_runs[-1]
    indices, positions = dataset.subjects()[ours.subject], dataset.positions(ours.subject)
    wrong = sum((volume.prediction[positions] != ours.target[positions]).sum((1, 2)) for volume in of_runs)
    k = int(np.argmax(wrong))
    image = read_image(dataset.slices[indices[k]].images[0])
    overlays = [array[positions[k]] for array in (ours.target, *(volume.prediction for volume in of_runs))]
    return Row(f"subject {ours.subject}, slice {dataset.slices[indices[k]].number}", image, overlays)
