"""Scores of segmented subjects: of the validation after every epoch, of the test in full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.folder import DataFolder
from data.nifti import write_nifti
from data.volumes import Volume, to_scan
from metrics import dice, score_subject, summarize
from training.distributed import rank
from utils import write_csv, write_json


def validation_scores(volumes: Sequence[Volume], names: Sequence[str]) -> dict[str, float]:
    """val_dsc: the mean 3D Dice over subjects of their means over classes; "val_dsc NAME": the mean of each class.

    NaN, and a warning, where the network gave logits that are not finite: such an epoch is no better than any other.
    """
    broken = [volume.subject for volume in volumes if not volume.finite]
    if broken:
        if rank() == 0:
            print(f"warning: validation subject {broken[0]}: the network gives values that are not finite; no score")
        return dict.fromkeys(["val_dsc", *(f"val_dsc {name}" for name in names[1:])], math.nan)
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
    flat = [len(volume.target) == 1 and data.geometry[volume.subject].spacing is None for volume in volumes]
    summary = summarize(rows) | {"per_image": all(flat)}
    write_csv(folder / "test.csv", rows)
    write_json(folder / "test.json", summary | cost)
    return summary
