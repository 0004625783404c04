"""Segmentation metrics of one class of one subject in 3D, what each of them is, and their summary over subjects.

A subject of a single slice is scored in 2D: its surface is its outline.

Masks A (prediction) and B (target) are boolean arrays of one shape, of any number of axes; other types count as
"non-zero is inside". `spacing` is the size of a voxel along each array axis in mm; without it the unit is the voxel.
The surface dA is every voxel of A with a face neighbor outside A; beyond the edge of the array is outside.

Empty masks: both empty -> NaN for every metric; exactly one empty -> DSC 0, VS 0 and NaN for every distance.
NaN are left out of all means, and what was left out is counted (`n`, `missed`, `spurious`).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Metric:
    """What a metric is called and how it is shown."""

    key: str
    """In test.csv and test.json."""
    name: str
    unit: str
    scale: float = 1
    """What a value is multiplied by to be in that unit."""
    lower_is_better: bool = True

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} {self.unit}"


METRICS = {
    metric.key: metric
    for metric in (
        Metric("dsc", "DSC", "%", scale=100, lower_is_better=False),
        Metric("vs", "VS", "%", scale=100, lower_is_better=False),
        Metric("msd", "MSD", "voxels"),
        Metric("assd", "ASSD", "voxels"),
        Metric("hd95", "HD95", "voxels"),
        Metric("msd_mm", "MSD", "mm"),
        Metric("assd_mm", "ASSD", "mm"),
        Metric("hd95_mm", "HD95", "mm"),
    )
}
# What tables show: all that the paper has, and the maximal distance. ASSD is MSD under another name.
IN_VOXELS = [METRICS[key] for key in ("dsc", "vs", "msd", "hd95")]
IN_PIXELS = [replace(metric, unit=metric.unit.replace("voxels", "pixels")) for metric in IN_VOXELS]
BY_NAME = {metric.name: metric for metric in IN_VOXELS}
IN_MM = [METRICS[key] for key in ("dsc", "vs", "msd_mm", "hd95_mm")]


def dice(prediction: Mask, target: Mask) -> float:
    """Dice similarity coefficient, DSC = 2 |A and B| / (|A| + |B|), in [0, 1]."""
    prediction, target = _as_masks(prediction, target)
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return float(2 * np.count_nonzero(prediction & target) / total) if total else math.nan


def volume_similarity(prediction: Mask, target: Mask) -> float:
    """Volume similarity, VS = 1 - ||A| - |B|| / (|A| + |B|), in [0, 1]; it ignores where the masks are."""
    prediction, target = _as_masks(prediction, target)
    a, b = np.count_nonzero(prediction), np.count_nonzero(target)
    return float(1 - abs(a - b) / (a + b)) if a + b else math.nan


def mean_surface_distance(prediction: Mask, target: Mask, spacing: Sequence[float] | None = None) -> float:
    """Mean surface distance, MSD = (sum over dA of d(a, dB) + sum over dB of d(b, dA)) / (|dA| + |dB|), mm or voxels.

    Symmetric and pooled. The average symmetric surface distance (ASSD) of Heimann et al. (2009), of CHAOS and of
    medpy >= 0.5.2 is the same quantity, so it is another name for this function.
    """
    return _mean(_surface_distances(_surfaces(prediction, target), spacing))


average_symmetric_surface_distance = mean_surface_distance


def hausdorff_distance(
    prediction: Mask, target: Mask, spacing: Sequence[float] | None = None, percentile: float = 95
) -> float:
    """The percentile of the distances from dA to dB and from dB to dA, pooled, in mm or voxels; 100: the maximum.

    Pooling is medpy's HD95. MONAI's is the larger of the two directed percentiles, which is another number.
    """
    return _percentile(_surface_distances(_surfaces(prediction, target), spacing), percentile)


def score(prediction: Mask, target: Mask, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """All metrics of one class of one subject: dsc, vs; msd, assd, hd95 in voxels; with `spacing` also *_mm in mm."""
    values = {"dsc": dice(prediction, target), "vs": volume_similarity(prediction, target)}
    surfaces = _surfaces(prediction, target)
    units = {"": None} if spacing is None else {"": None, "_mm": spacing}
    for suffix, unit in units.items():
        distances = _surface_distances(surfaces, unit)
        values[f"msd{suffix}"] = values[f"assd{suffix}"] = _mean(distances)
        values[f"hd95{suffix}"] = _percentile(distances, 95)
    return values


def score_subject(
    prediction: NDArray[np.integer],
    target: NDArray[np.integer],
    class_names: Sequence[str],
    spacing: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """One row per foreground class: class, missed (in the truth only), spurious (in the prediction only), `score`'s.

    prediction and target hold class indices, in arrays of one shape; class_names[0] is the background, not scored.
    """
    _check_shapes(prediction, target)
    if prediction.ndim == 3 and len(prediction) == 1:  # a slice has no face above and below
        prediction, target = prediction[0], target[0]
        spacing = spacing and spacing[1:]
    both = np.stack([prediction, target])
    if both.size and not (both.min() >= 0 and both.max() < len(class_names)):
        raise ValueError(f"labels from {both.min()} to {both.max()} with {len(class_names)} class names")
    # One pass finds the box of every class in either volume; None is a class in neither.
    boxes = ndimage.find_objects(both, max_label=len(class_names) - 1)
    rows = []
    for k, (name, box) in enumerate(zip(class_names[1:], boxes, strict=False), 1):
        inside = box[1:] if box else np.s_[:0]
        a, b = prediction[inside] == k, target[inside] == k
        found, present = bool(a.any()), bool(b.any())
        rows.append({
            "class": name, "missed": present and not found, "spurious": found and not present, **score(a, b, spacing)
        })  # fmt: skip
    return rows


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and sample standard deviations (n - 1; NaN for n = 1) over subjects, of rows {subject, class, metrics}.

    Returns {"per_class": {class: {metric: {"mean", "std", "n"}, ..., "missed": int, "spurious": int}},
    "overall": {metric: {"mean", "std", "n"}}, "subjects": int}. Metrics are the keys with float values. "overall" is
    over the subjects' means over classes. NaN and absent values are left out; n counts what is in.
    """
    metrics = _unique(key for row in rows for key, value in row.items() if isinstance(value, float))

    def statistics(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        return {metric: _mean_std(row.get(metric, math.nan) for row in rows) for metric in metrics}

    per_class = {}
    for name in _unique(row["class"] for row in rows):
        of_class = [row for row in rows if row["class"] == name]
        counts = {key: sum(row.get(key, False) for row in of_class) for key in ("missed", "spurious")}
        per_class[name] = statistics(of_class) | counts
    subjects = _unique(row["subject"] for row in rows)
    by_subject = [statistics([row for row in rows if row["subject"] == subject]) for subject in subjects]
    means = [{metric: values[metric]["mean"] for metric in metrics} for values in by_subject]
    return {"per_class": per_class, "overall": statistics(means), "subjects": len(subjects)}


def shown_metrics(summary: dict[str, Any]) -> list[Metric]:
    """The metrics that a table of `summarize`'s values shows.

    Distances are in mm where all subjects have a spacing, else in voxels, or in pixels where the summary has
    "per_image", as it does for subjects that are single images without a spacing.
    """
    overall = summary["overall"]
    # A mean in mm over some of the subjects must not stand for all of them.
    all_in_mm = "msd_mm" in overall and overall["msd_mm"]["n"] == overall["msd"]["n"]
    without_mm = IN_PIXELS if summary.get("per_image") else IN_VOXELS
    return [metric for metric in (IN_MM if all_in_mm else without_mm) if metric.key in overall]


def mean_title(classes: Iterable[str]) -> str:
    """What tables call the mean over classes: "mean", and more where a class has that name."""
    title, taken = "mean", set(classes)
    while title in taken:
        title += " over classes"
    return title


def format_table(summary: dict[str, Any], width: int = 80) -> str:
    """`summary` as text: a line per class and one of the overall means, in the metrics' units.

    n is the number of subjects in the DSC.
    """
    overall = summary["overall"]
    shown = shown_metrics(summary)
    rows = [["class", "n", *(metric.title for metric in shown)]]
    for name, statistics in (*summary["per_class"].items(), (mean_title(summary["per_class"]), overall)):
        count = str(statistics["dsc"]["n"]) if "dsc" in statistics else ""
        rows.append([name, count, *(_format_cell(statistics[metric.key], metric.scale) for metric in shown)])
    lines = _align(rows, width)
    notes = [text for text in (_count_note(summary, kind) for kind in ("missed", "spurious")) if text]
    if notes:
        lines += textwrap.wrap(f"{'; '.join(notes)} (left out of the distance means)", width)
    return "\n".join(lines)


def _align(rows: list[list[str]], width: int) -> list[str]:
    """Rows of cells as lines of at most `width` columns, with a rule below the first; long names are shortened."""
    sizes = [max(map(len, column)) for column in zip(*(cells for _, *cells in rows), strict=True)]
    room = width - sum(sizes) - len(sizes)
    names = [_shorten(name, room) for name, *_ in rows]
    longest = max(map(len, names))
    lines = []
    for name, (_, *cells) in zip(names, rows, strict=True):
        padded = [cell.rjust(size) for cell, size in zip(cells, sizes, strict=True)]
        lines.append(" ".join([name.ljust(longest), *padded]).rstrip())
    lines.insert(1, "-" * (longest + sum(sizes) + len(sizes)))
    return lines


def _count_note(summary: dict[str, Any], kind: str) -> str:
    """How often each class was missed or spurious; an empty text where none was."""
    counts = [f"{name} {values[kind]}" for name, values in summary["per_class"].items() if values[kind]]
    return f"{kind}: {', '.join(counts)}" if counts else ""


def _check_shapes(prediction: NDArray[Any], target: NDArray[Any]) -> None:
    if np.shape(prediction) != np.shape(target):
        raise ValueError(f"shapes differ: prediction {np.shape(prediction)}, target {np.shape(target)}")


def _as_masks(prediction: NDArray[Any], target: NDArray[Any]) -> tuple[Mask, Mask]:
    _check_shapes(prediction, target)
    return np.asarray(prediction).astype(bool, copy=False), np.asarray(target).astype(bool, copy=False)


def _surfaces(prediction: Mask, target: Mask) -> tuple[Mask, Mask]:
    """The surface voxels of both masks, on the bounding box of their union."""
    masks = _as_masks(prediction, target)
    # Exact: outside the box there is neither a mask to erode nor a surface voxel to be near to.
    (box,) = ndimage.find_objects((masks[0] | masks[1]).astype(np.uint8), max_label=1)
    cropped = (mask[box] if box else mask for mask in masks)
    a, b = (mask & ~ndimage.binary_erosion(mask, border_value=0) for mask in cropped)
    return a, b


def _surface_distances(surfaces: tuple[Mask, Mask], spacing: Sequence[float] | None) -> NDArray[np.float64]:
    """The distance of each surface voxel to the nearest one of the other surface, both directions; empty if a mask is.

    Distances are between voxel centers, (|dA| + |dB|,), in the unit of `spacing`.
    """
    a, b = surfaces
    if spacing is not None and not (np.shape(spacing) == (a.ndim,) and all(0 < size < math.inf for size in spacing)):
        raise ValueError(f"spacing {spacing}: expected {a.ndim} positive numbers, one per axis")
    if not (a.any() and b.any()):
        return np.empty(0)
    to_b, to_a = (ndimage.distance_transform_edt(~surface, spacing) for surface in (b, a))
    return np.concatenate([to_b[a], to_a[b]])


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _percentile(values: NDArray[np.float64], percentile: float) -> float:
    return float(np.percentile(values, percentile)) if values.size else math.nan


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _mean_std(values: Iterable[float]) -> dict[str, float]:
    known = np.array([value for value in values if not math.isnan(value)])
    std = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return {"mean": _mean(known), "std": std, "n": known.size}


def _format_cell(statistics: dict[str, float], scale: float) -> str:
    mean, std = scale * statistics["mean"], scale * statistics["std"]
    left = "     -" if math.isnan(mean) else f"{mean:6.2f}"
    return left + (" " * 8 if math.isnan(std) else f" ± {std:5.2f}")


def _shorten(name: str, length: int) -> str:
    """`name` with its middle left out: names of structures differ at either end (left kidney, lung upper lobe)."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"
