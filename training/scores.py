"""Scores of segmented subjects: of the validation after every epoch, of the test in full."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from data.description import Labels
from data.folder import DataFolder
from data.geometry import Geometry
from data.nifti import write_nifti
from data.viewers import write_viewer_labels
from data.volumes import Volume, like, to_scan
from metrics import TOLERANCE_MM, annotated, dice, is_slice, score_subject, summarize, unknown_classes
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
        for name, value in class_dice(volume, names).items():
            rows.append({"subject": volume.subject, "class": name, "dsc": value})
    summary = summarize(rows)
    scores = {"val_dsc": summary["overall"]["dsc"]["mean"]}
    for name in names[1:]:
        scores[f"val_dsc {name}"] = summary["per_class"][name]["dsc"]["mean"]
    return scores


def class_dice(volume: Volume, names: Sequence[str]) -> dict[str, float]:
    """Class -> Dice, as `score_subject` has it; `names` begin with the background."""
    prediction, target = annotated(volume.prediction, volume.target)
    unknown = unknown_classes(volume.target, len(names))
    return {
        name: math.nan if k in unknown else dice(prediction == k, target == k) for k, name in enumerate(names[1:], 1)
    }


def write_test(folder: Path, volumes: Sequence[Volume], data: DataFolder, cost: dict[str, Any]) -> dict[str, Any]:
    """Write predictions/, test.csv and test.json (with what the run has cost) of the test subjects; return the summary.

    Predictions lie on the grids of the scans, where dataset.json knows them. "slices" tells subjects of one name apart.
    """
    (folder / "predictions").mkdir(exist_ok=True)
    labels = data.labels
    write_viewer_labels(folder / "predictions", labels)
    rows = []
    for volume in volumes:
        geometry = data.geometry[volume.subject]
        rows += score_volume(volume, geometry, labels, data.groups)
        segmentation = to_scan(volume.prediction, geometry)
        values = labels.to_values(sitk.GetArrayViewFromImage(segmentation))
        write_nifti(folder / "predictions" / f"{volume.subject}.nii.gz", like(segmentation, values))
    per_image = all(is_slice(volume.target.shape) for volume in volumes)
    more = {"per_image": per_image, "slices": data.dataset("test").fingerprints()}
    return write_scores(folder, rows, labels, more | cost)


def score_volume(volume: Volume, geometry: Geometry, labels: Labels, groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of test.csv of a subject; `groups` is subject -> group, where any are known."""
    subject, spacing = volume.subject, geometry.array_spacing
    name = {"subject": subject}
    if groups:
        name["group"] = groups.get(subject, subject)
    rows = score_subject(volume.prediction, volume.target, labels.names, spacing, labels.regions, labels.tolerances)
    return [name | row for row in rows]


def write_scores(folder: Path, rows: Sequence[dict[str, Any]], labels: Labels, more: dict[str, Any]) -> dict[str, Any]:
    """Write test.csv, and test.json with the means and what there is `more` to say; return what is in test.json."""
    summary = summarize(rows) | {"tolerances_mm": tolerances_of(labels)} | more
    write_csv(folder / "test.csv", rows)
    write_json(folder / "test.json", summary)
    return summary


def tolerances_of(labels: Labels) -> dict[str, float]:
    """Class or region -> tolerance of NSD in mm."""
    return {name: labels.tolerances.get(name, TOLERANCE_MM) for name in (*labels.names[1:], *labels.regions)}
