"""Scores of segmented subjects: of the validation after every epoch, of the test in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.folder import DataFolder
from data.volumes import Volume, to_scan, write_nifti
from metrics import dice, score_subject, summarize
from utils import write_csv, write_json


def validation_scores(volumes: Sequence[Volume], names: Sequence[str]) -> dict[str, float]:
    """val_dsc: the mean 3D Dice over subjects of their means over classes; "val_dsc NAME": the mean of each class."""
    rows = []
    for volume in volumes:
        for k, name in enumerate(names[1:], 1):
            value = dice(volume.prediction == k, volume.target == k)
            rows.append({"subject": volume.subject, "class": name, "dsc": value})
    summary = summarize(rows)
    scores = {"val_dsc": summary["overall"]["dsc"]["mean"]}
    for name in names[1:]:
        scores[f"val_dsc {name}"] = summary["per_class"][name]["dsc"]["mean"]
    return scores


def write_test(folder: Path, volumes: Sequence[Volume], data: DataFolder, cost: dict[str, Any]) -> dict[str, Any]:
    """Write predictions/, test.csv and test.json (with what the run has cost) of the test subjects; return the summary.

    Predictions lie on the grids of the scans, where dataset.json knows them.
    """
    (folder / "predictions").mkdir(exist_ok=True)
    rows = []
    for volume in volumes:
        geometry = data.geometry[volume.subject]
        scores = score_subject(volume.prediction, volume.target, data.labels.names, geometry.array_spacing)
        rows += [{"subject": volume.subject} | row for row in scores]
        segmentation = to_scan(data.labels.to_values(volume.prediction), geometry)
        write_nifti(folder / "predictions" / f"{volume.subject}.nii.gz", segmentation)
    summary = summarize(rows)
    write_csv(folder / "test.csv", rows)
    write_json(folder / "test.json", summary | cost)
    return summary
