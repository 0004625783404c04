"""Figures of several runs, or rows of runs, for a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.volumes import Volume
from experiments.given_rows import Row
from experiments.results import MEAN
from metrics import METRICS
from reporting import figures
from reporting.comparison import read_rows
from reporting.figures import save_boxes, save_grid
from reporting.segmentation import segment_run
from reporting.viewer import Segmented
from utils import IGNORED, InputError, make_folder

SHOWN = 4  # subjects


def write_figures(rows: Sequence[Row], out: Path, device: str, against: str | None = None) -> list[Path]:
    """Write grid and boxes as PDF and PNG to `out`; return their paths. A column for each row, in the order given.

    The grid has SHOWN test subjects evenly from the worst to the best of the row that the others are compared with
    (`against`, or the first), each at the slice where all rows together have the most wrong pixels.
    """
    table = read_rows(rows, against)
    reference = table.results.index(table.reference)
    classes = table.reference.classes
    segmented = [_segment_row(row, device, classes) for row in rows]
    common = [subject for subject in segmented[reference] if all(subject in of_row for of_row in segmented)]
    if not common:
        raise InputError(f"{table.reference.name}: shares no test subject with all other rows")
    dice = table.reference.values[MEAN, "dsc"]
    common.sort(key=lambda subject: np.nan_to_num(dice[subject], nan=math.inf))
    chosen = [common[k] for k in np.unique(np.linspace(0, len(common) - 1, SHOWN).round().astype(int))]
    lines = []
    for subject in chosen:
        run, ours = segmented[reference][subject]
        volumes = [of_row[subject][1] for of_row in segmented]
        for row, volume in zip(rows, volumes, strict=True):
            if not np.array_equal(volume.target, ours.target):
                raise InputError(
                    f"{row.name}: its truth of subject {subject} is another one than that of {table.reference.name}; "
                    "leave the row out, or score it against the same truth"
                )
        lines.append(_line(run, ours, volumes))
    make_folder(out)
    values = {result.name: result.values for result in table.results}
    written = []
    for suffix in ("pdf", "png"):
        grid, boxes = out / f"grid.{suffix}", out / f"boxes.{suffix}"
        save_grid(grid, lines, ["truth", *values], ("background", *classes))
        save_boxes(boxes, values, table.results[0].labels, METRICS["dsc"])
        written += [grid, boxes]
    return written


def _segment_row(row: Row, device: str, classes: Sequence[str]) -> dict[str, tuple[Segmented, Volume]]:
    """Test subject -> the run and the segmentation, in indices of `classes`, of the row's first run that tested it.

    `classes` are without the background.
    """
    found: dict[str, tuple[Segmented, Volume]] = {}
    for folder in row.folders:
        segmented, _ = segment_run(folder, device)
        index = np.arange(256, dtype=np.uint8)
        for k, name in enumerate(segmented.dataset.labels.names[1:], 1):
            index[k] = 1 + classes.index(name)
        for volume in segmented.volumes:
            ours = volume._replace(prediction=index[volume.prediction], target=index[volume.target])
            found.setdefault(volume.subject, (segmented, ours))
    return found


def _line(segmented: Segmented, ours: Volume, volumes: Sequence[Volume]) -> figures.GridRow:
    """A subject at the slice where its segmentations together have the most wrong pixels."""
    dataset, aspect = segmented.dataset, segmented.geometry[ours.subject].pixel_aspect
    indices, positions = dataset.subjects()[ours.subject], dataset.positions(ours.subject)
    truth = ours.target[positions]
    errors = ((volume.prediction[positions] != truth) & (truth != IGNORED) for volume in volumes)
    wrong = sum(each.sum((1, 2)) for each in errors)
    k = int(np.argmax(wrong))
    image = dataset.picture(indices[k])
    overlays = [array[positions[k]] for array in (ours.target, *(volume.prediction for volume in volumes))]
    label = f"subject {ours.subject}, slice {dataset.slices[indices[k]].number}"
    return figures.GridRow(label, image, overlays, aspect)
