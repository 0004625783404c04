"""Segmentation metrics of one class of one subject in 3D, what each of them is, and their summary over subjects.

`score_subject` scores a subject of a single slice in 2D: its surface is its outline.

Masks A (prediction) and B (target) are boolean arrays of one shape, of any number of axes; other types count as
"non-zero is inside". `spacing` is the size of a voxel along each array axis in mm; without it the unit is the voxel.
The surface dA is every voxel of A with a face neighbor outside A; beyond the edge of the array is outside. d(a, dB) is
the distance of the center of a to the nearest center of dB. So do MONAI, Metrics Reloaded and medpy; DeepMind's
surface-distance draws surfaces between voxels and weighs them by area, so its values differ.

Empty masks: both empty -> NaN for every metric; exactly one empty -> DSC, VS and NSD are 0, and a distance is NaN, or
in the worst case (`*_worst`) the diagonal of the image.
NaN are left out of all means, and what was left out is counted (`n`, `missed`, `spurious`).

Voxels that nobody annotated (IGNORED in the truth) are background in both masks, as in nnU-Net's evaluation, so the
edge of what is annotated is a surface of both where both reach it. A class that such a truth has nowhere may lie in
what is not annotated: every metric is NaN, as of a class that both lack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from utils import IGNORED

Mask = NDArray[np.bool_]

TOLERANCE_MM = 1.0
"""Of the NSD, where a class has no other."""
ROUNDING = 1e-6
"""Spacings in files are float32: distances that exceed a tolerance by this part of it are equal to it."""


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
        Metric("nsd", "NSD", "%", scale=100, lower_is_better=False),
        Metric("msd", "MSD", "voxels"),
        Metric("hd95", "HD95", "voxels"),
        Metric("hd95_pooled", "HD95 pooled", "voxels"),
        Metric("msd_worst", "MSD worst case", "voxels"),
        Metric("hd95_worst", "HD95 worst case", "voxels"),
        Metric("nsd_mm", "NSD", "%", scale=100, lower_is_better=False),
        Metric("msd_mm", "MSD", "mm"),
        Metric("hd95_mm", "HD95", "mm"),
        Metric("hd95_pooled_mm", "HD95 pooled", "mm"),
        Metric("msd_worst_mm", "MSD worst case", "mm"),
        Metric("hd95_worst_mm", "HD95 worst case", "mm"),
    )
}
SHOWN = ("dsc", "vs", "nsd", "msd", "hd95")
"""What tables show: the paper's metrics, NSD and HD95."""
SHOWN_WORST_CASE = ("msd_worst", "hd95_worst")


def metrics_in(unit: str, worst_case: bool) -> list[Metric]:
    """What tables show, with distances in "mm", "voxels" or "pixels"; with their worst case where wanted."""
    keys = SHOWN + SHOWN_WORST_CASE if worst_case else SHOWN
    if unit == "mm":
        return [METRICS.get(f"{key}_mm", METRICS[key]) for key in keys]
    return [replace(METRICS[key], unit=METRICS[key].unit.replace("voxels", unit)) for key in keys]


def dice(prediction: Mask, target: Mask) -> float:
    """Dice similarity coefficient, DSC = 2 |A and B| / (|A| + |B|), in [0, 1]; medpy's dc, MONAI's compute_dice."""
    prediction, target = _as_masks(prediction, target)
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return float(2 * np.count_nonzero(prediction & target) / total) if total else math.nan


def volume_similarity(prediction: Mask, target: Mask) -> float:
    """Volume similarity, VS = 1 - ||A| - |B|| / (|A| + |B|), in [0, 1], of Taha and Hanbury (2015).

    It ignores where the masks are.
    """
    prediction, target = _as_masks(prediction, target)
    a, b = np.count_nonzero(prediction), np.count_nonzero(target)
    return float(1 - abs(a - b) / (a + b)) if a + b else math.nan


def normalized_surface_dice(
    prediction: Mask, target: Mask, tolerance: float, spacing: Sequence[float] | None = None
) -> float:
    """NSD = (|a in dA: d(a, dB) <= tolerance| + |b in dB: d(b, dA) <= tolerance|) / (|dA| + |dB|), in [0, 1].

    Surfaces are counted in voxels, as in MONAI's compute_surface_dice (use_subvoxels=False) and in Metrics Reloaded.
    The tolerance is in mm or voxels. 0 where exactly one mask is empty.
    """
    return _part_within(_surface_distances(_surfaces(prediction, target), spacing), tolerance)


def mean_surface_distance(prediction: Mask, target: Mask, spacing: Sequence[float] | None = None) -> float:
    """Mean surface distance, MSD = (sum over dA of d(a, dB) + sum over dB of d(b, dA)) / (|dA| + |dB|), mm or voxels.

    Symmetric and pooled. The average symmetric surface distance (ASSD) of Heimann et al. (2009), of CHAOS, of Metrics
    Reloaded and of medpy >= 0.5.2 is the same quantity, so it is another name for this function.
    """
    return _mean(_surface_distances(_surfaces(prediction, target), spacing).pooled)


average_symmetric_surface_distance = mean_surface_distance


def hausdorff_distance(
    prediction: Mask, target: Mask, spacing: Sequence[float] | None = None, percentile: float = 95
) -> float:
    """The larger of two percentiles: of d(a, dB) over dA and of d(b, dA) over dB, in mm or voxels; 100: the maximum.

    Percentiles lie linearly between two distances, as in MONAI's compute_hausdorff_distance and Metrics Reloaded's
    measured_hausdorff_distance_perc. DeepMind's compute_robust_hausdorff takes the larger of two, too.
    """
    return _directed_percentile(_surface_distances(_surfaces(prediction, target), spacing), percentile)


def pooled_hausdorff_distance(
    prediction: Mask, target: Mask, spacing: Sequence[float] | None = None, percentile: float = 95
) -> float:
    """The percentile of all d(a, dB) and d(b, dA) together, in mm or voxels; 95 is medpy's hd95, another number."""
    return _percentile(_surface_distances(_surfaces(prediction, target), spacing).pooled, percentile)


def score(
    prediction: Mask,
    target: Mask,
    spacing: Sequence[float] | None = None,
    tolerance: float = TOLERANCE_MM,
    shape: Sequence[int] | None = None,
) -> dict[str, float]:
    """All metrics of one class of one subject, by the keys of METRICS; those in mm where there is a spacing.

    The tolerance is in mm; in voxels it is one. `shape` is the image's, where the masks are a part of it. A volume of a
    single slice is scored as it is, in 3D, by this and the functions above: give the slice, (H, W), for 2D.
    """
    values = {"dsc": dice(prediction, target), "vs": volume_similarity(prediction, target)}
    surfaces = _surfaces(prediction, target)
    size = np.array(np.shape(target) if shape is None else shape)
    values |= _surface_scores(_surface_distances(surfaces, None), 1, float(np.linalg.norm(size)))
    if spacing is not None:
        distances = _surface_distances(surfaces, spacing)
        in_mm = _surface_scores(distances, tolerance, float(np.linalg.norm(size * spacing)))
        values |= {f"{key}_mm": value for key, value in in_mm.items()}
    return values


def _surface_scores(distances: SurfaceDistances, tolerance: float, diagonal: float) -> dict[str, float]:
    """The metrics of the surfaces in one unit."""
    values = {
        "nsd": _part_within(distances, tolerance),
        "msd": _mean(distances.pooled),
        "hd95": _directed_percentile(distances, 95),
        "hd95_pooled": _percentile(distances.pooled, 95),
    }
    for key in ("msd", "hd95"):
        values[f"{key}_worst"] = diagonal if distances.one_is_missing else values[key]
    return values


def score_subject(
    prediction: NDArray[np.integer],
    target: NDArray[np.integer],
    class_names: Sequence[str],
    spacing: Sequence[float] | None = None,
    regions: Mapping[str, Sequence[str]] = MappingProxyType({}),
    tolerances: Mapping[str, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One row per foreground class, then one per region: class, missed (in the truth only), spurious, `score`'s.

    prediction and target hold class indices, in arrays of one shape, target also IGNORED; class_names[0] is the
    background, not scored. Regions are names of several classes each, scored as one class. Where there are any,
    "region" says of each row whether it is a region's. `tolerances` are the NSD's in mm by class or region;
    TOLERANCE_MM for the others.
    """
    prediction, target = _as_indices(prediction), _as_indices(target)
    _check_shapes(prediction, target)
    if is_slice(prediction.shape):  # which has no face above and below
        across = prediction.shape.index(1)
        prediction, target = prediction.squeeze(across), target.squeeze(across)
        spacing = None if spacing is None else [length for axis, length in enumerate(spacing) if axis != across]
    unknown = unknown_classes(target, len(class_names))
    both = np.stack(annotated(prediction, target))
    if both.size and not (both.min() >= 0 and both.max() < len(class_names)):
        raise ValueError(f"labels from {both.min()} to {both.max()} with {len(class_names)} class names")
    classes = list(class_names[1:])
    strangers = {*chain(*regions.values())} - {*classes} | tolerances.keys() - {*class_names, *regions}
    if strangers:
        raise ValueError(f"regions or tolerances of {', '.join(sorted(map(str, strangers)))}: no class is called so")
    scored = [(name, [k], False) for k, name in enumerate(classes, 1)]
    scored += [(name, [classes.index(part) + 1 for part in parts], True) for name, parts in regions.items()]
    # One pass finds the box of every class in either volume; None is a class in neither.
    boxes = ndimage.find_objects(both, max_label=len(classes))
    rows = []
    for name, indices, is_region in scored:
        inside = _union([boxes[k - 1] for k in indices])[1:]
        belongs = np.isin(np.arange(len(class_names)), indices)
        a, b = belongs[both[0][inside]], belongs[both[1][inside]]
        if unknown.issuperset(indices):
            a = b
        found, present = bool(a.any()), bool(b.any())
        row = {"class": name, "region": is_region} if regions else {"class": name}
        row |= {"missed": present and not found, "spurious": found and not present}
        rows.append(row | score(a, b, spacing, tolerances.get(name, TOLERANCE_MM), prediction.shape))
    return rows


def _as_indices(labels: NDArray) -> NDArray[np.integer]:
    """Class indices that may be stored in another kind of number, such as the float64 of nibabel's get_fdata."""
    labels = np.asarray(labels)
    if labels.dtype.kind in "iu" and labels.dtype != np.uint64:
        return labels
    if labels.dtype.kind not in "buf":
        raise ValueError(f"labels of {labels.dtype}: must be whole numbers")
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels):
        raise ValueError(f"labels of {labels.dtype} that are no class indices, whole numbers")
    return whole


def is_slice(shape: Sequence[int]) -> bool:
    """Whether a volume is a single slice, across any axis, and scored in 2D."""
    return len(shape) == 3 and list(shape).count(1) == 1


def annotated(prediction: NDArray[np.integer], target: NDArray[np.integer]) -> tuple[NDArray, NDArray]:
    """Both with background where nobody annotated the target."""
    ignored = target == IGNORED
    if not ignored.any():
        return prediction, target
    return np.where(ignored, 0, prediction), np.where(ignored, 0, target)


def unknown_classes(target: NDArray[np.integer], classes: int) -> set[int]:
    """The classes 1, 2, ... that a target has nowhere and that may lie in what nobody annotated of it."""
    if not (target == IGNORED).any():
        return set()
    return set(range(1, classes)) - set(np.unique(target).tolist())


def _union(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """The smallest box around boxes; an empty one where all are None."""
    known = [box for box in boxes if box]
    if not known:
        return np.s_[:0, :0]
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*known, strict=True))


NO_METRICS = ("subject", "class", "group", "region", "missed", "spurious")  # columns of a row that may be numbers, too


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and sample standard deviations (n - 1; NaN for n = 1) over subjects, of rows {subject, class, metrics}.

    Returns {"per_class": {class: {metric: {"mean", "std", "n"}, ..., "missed": int, "spurious": int}}, "per_region":
    the same of regions where there are any, "overall": {metric: {"mean", "std", "n"}}, "subjects": int}. Metrics are
    the other keys with numbers. "overall" is over the subjects' means over classes, without regions. NaN and absent
    values are left out; n counts what is in.
    """
    numbers = (key for row in rows for key, value in row.items() if isinstance(value, Real))
    metrics = [key for key in dict.fromkeys(numbers) if key not in NO_METRICS]

    def statistics(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        return {metric: mean_std(row.get(metric, math.nan) for row in rows) for metric in metrics}

    def by_class(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        parts = {}
        for name in dict.fromkeys(row["class"] for row in rows):
            of_class = [row for row in rows if row["class"] == name]
            counts = {key: sum(row.get(key, False) for row in of_class) for key in ("missed", "spurious")}
            parts[name] = statistics(of_class) | counts
        return parts

    of_regions = [row for row in rows if row.get("region")]
    of_classes = [row for row in rows if not row.get("region")]
    summary = {"per_class": by_class(of_classes)}
    if of_regions:
        summary["per_region"] = by_class(of_regions)
    of_subjects: dict[str, list[dict[str, Any]]] = {row["subject"]: [] for row in rows}
    for row in of_classes:
        of_subjects[row["subject"]].append(row)
    by_subject = [statistics(of_subject) for of_subject in of_subjects.values()]
    means = [{metric: values[metric]["mean"] for metric in metrics} for values in by_subject]
    return summary | {"overall": statistics(means), "subjects": len(of_subjects)}


def mean_std(values: Iterable[float]) -> dict[str, float]:
    """ "mean", sample standard deviation "std" and number "n" of the values that are not NaN."""
    known = np.array([value for value in values if not math.isnan(value)])
    std = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return {"mean": _mean(known), "std": std, "n": known.size}


def shown_metrics(summary: dict[str, Any]) -> list[Metric]:
    """The metrics that a table of `summarize`'s values shows.

    Distances are in mm where all subjects have a spacing, else in voxels, or in pixels where the summary has
    "per_image", as it does for subjects that are single slices. Their worst case is shown where a class or region was
    missed or spurious; elsewhere it is the same.
    """
    overall = summary["overall"]
    # A mean in mm over some of the subjects must not stand for all of them.
    in_mm = [key for key in ("nsd", "msd") if f"{key}_mm" in overall]
    all_in_mm = bool(in_mm) and all(overall[f"{key}_mm"]["n"] == overall[key]["n"] for key in in_mm)
    unit = "mm" if all_in_mm else "pixels" if summary.get("per_image") else "voxels"
    worst_case = any(part["missed"] or part["spurious"] for part in parts_of(summary).values())
    return [metric for metric in metrics_in(unit, worst_case) if metric.key in overall]


def mean_title(classes: Iterable[str]) -> str:
    """What tables call the mean over classes: "mean", and more where a class has that name."""
    title, taken = "mean", set(classes)
    while title in taken:
        title += " over classes"
    return title


def parts_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The statistics of classes and regions by name."""
    return summary["per_class"] | summary.get("per_region", {})


def _check_shapes(prediction: NDArray[Any], target: NDArray[Any]) -> None:
    if np.shape(prediction) != np.shape(target):
        raise ValueError(f"shapes differ: prediction {np.shape(prediction)}, target {np.shape(target)}")


def _as_masks(prediction: NDArray[Any], target: NDArray[Any]) -> tuple[Mask, Mask]:
    _check_shapes(prediction, target)
    return np.asarray(prediction).astype(bool, copy=False), np.asarray(target).astype(bool, copy=False)


class Surface(NamedTuple):
    """Where the surface voxels of a mask are."""

    points: NDArray[np.intp]
    """(voxels, axes)"""
    shared: NDArray[np.bool_]
    """(voxels,): those that are surface voxels of the other mask, too."""


def _surfaces(prediction: Mask, target: Mask) -> tuple[Surface, Surface]:
    """The surfaces of both masks."""
    a, b = (mask & ~ndimage.binary_erosion(mask, border_value=0) for mask in _as_masks(prediction, target))
    return Surface(np.argwhere(a), b[a]), Surface(np.argwhere(b), a[b])


class SurfaceDistances(NamedTuple):
    """The distances of surface voxels to the other surface, in one unit; both empty where a mask is."""

    to_target: NDArray[np.float64]
    """(|dA|,)"""
    to_prediction: NDArray[np.float64]
    """(|dB|,)"""
    one_is_missing: bool
    """Exactly one mask is empty."""

    @property
    def pooled(self) -> NDArray[np.float64]:
        """(|dA| + |dB|,)"""
        return np.concatenate([self.to_target, self.to_prediction])


def _surface_distances(surfaces: tuple[Surface, Surface], spacing: Sequence[float] | None) -> SurfaceDistances:
    """The distances between two surfaces in the unit of `spacing`."""
    a, b = surfaces
    axes = a.points.shape[1]
    if spacing is None:
        spacing = np.ones(axes)
    elif not (np.shape(spacing) == (axes,) and all(0 < size < math.inf for size in spacing)):
        raise ValueError(f"spacing {spacing}: expected {axes} positive numbers, one per axis")
    if not (len(a.points) and len(b.points)):
        return SurfaceDistances(np.empty(0), np.empty(0), one_is_missing=len(a.points) != len(b.points))
    return SurfaceDistances(_distances(a, b, spacing), _distances(b, a, spacing), one_is_missing=False)


def _distances(surface: Surface, other: Surface, spacing: Sequence[float]) -> NDArray[np.float64]:
    """The distance of each voxel of `surface` to the nearest one of the other."""
    distances = np.zeros(len(surface.points))
    apart = ~surface.shared
    tree = KDTree(other.points * spacing, leafsize=32, balanced_tree=False)
    distances[apart], _ = tree.query(surface.points[apart] * spacing)
    return distances


def _part_within(distances: SurfaceDistances, tolerance: float) -> float:
    """The part of both surfaces that is within the tolerance of the other."""
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance {tolerance}: expected a number from 0")
    if distances.one_is_missing:
        return 0.0
    return _mean(distances.pooled <= tolerance * (1 + ROUNDING))


def _directed_percentile(distances: SurfaceDistances, percentile: float) -> float:
    return max(_percentile(distances.to_target, percentile), _percentile(distances.to_prediction, percentile))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _percentile(values: NDArray[np.float64], percentile: float) -> float:
    return float(np.percentile(values, percentile)) if values.size else math.nan
