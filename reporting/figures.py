"""Pictures of a data set, of a run, and for a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from data.colors import COLORS, class_colors
from data.dataset import SliceDataset
from data.folder import DataFolder
from data.geometry import Geometry
from data.volumes import Volume
from experiments.results import MEAN, Column
from metrics import Metric, mean_title
from utils import IGNORED, atomic_path, ceil_div

# Lines of a chart that lie on each other still show: other dashes, and other markers at their ends.
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MARKERS = "os^Dv"
LINE_COLORS = (*COLORS[:4], *COLORS[5:7], "#000000")  # yellow and white are not seen on white

NOT_ANNOTATED = "#C8C8C8"  # of the hatching

Curve = tuple[np.ndarray, np.ndarray]  # hours of training up to the end of each epoch, and its validation Dice in %

COLUMN, PAGE = 3.5, 7.16  # inches: a column and the text of a two-column journal
plt.rcParams["pdf.fonttype"] = 42  # TrueType: text stays text
plt.rcParams["text.parse_math"] = plt.rcParams["text.usetex"] = False  # names are shown as they are


def save_overview(
    path: Path, volumes: Sequence[Volume], dataset: SliceDataset, geometry: Mapping[str, Geometry]
) -> None:
    """Write a PNG of image, truth and prediction: the fullest slice of the first four subjects."""
    volumes = volumes[:4]
    figure, axes = plt.subplots(
        len(volumes), 3, figsize=(7.5, 2.6 * len(volumes) + 0.4), squeeze=False, layout="constrained"
    )
    for row, volume in zip(axes, volumes, strict=True):
        index, truth, prediction = _fullest_of(volume, dataset)
        image = dataset.picture(index)
        for axis, overlay in zip(row, (None, truth, prediction), strict=True):
            _draw(axis, image, overlay, len(dataset.labels.names), geometry[volume.subject].pixel_aspect)
        row[0].set_ylabel(f"subject {volume.subject}, slice {dataset.slices[index].number}", fontsize=8)
    for axis, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=9)
    _save(figure, path, dataset.labels.names, dataset.labels.ignore is not None)


def save_contact_sheet(path: Path, data: DataFolder) -> None:
    """Write a PNG of image and truth: the fullest slice of the first six subjects of each split."""
    columns = min(6, max(len(data.dataset(split).subjects()) for split in data.splits))
    rows = 2 * len(data.splits)
    figure, axes = plt.subplots(rows, columns, figsize=(1.8 * columns, 1.9 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for row, split in enumerate(data.splits):
        dataset = data.dataset(split)
        for column, (subject, indices) in enumerate(list(dataset.subjects().items())[:columns]):
            targets = [dataset[index][1].numpy() for index in indices]
            k = fullest(targets)
            image = dataset.picture(indices[k])
            for axis, overlay in zip(axes[2 * row : 2 * row + 2, column], (None, targets[k]), strict=True):
                axis.set_axis_on()
                _draw(axis, image, overlay, len(data.labels.names), data.geometry[subject].pixel_aspect)
            axes[2 * row, column].set_title(f"{split} {subject}", fontsize=8)
    _save(figure, path, data.labels.names, data.labels.ignore is not None)


def save_montage(
    path: Path, images: np.ndarray, segmentation: np.ndarray, names: tuple[str, ...], aspect: float = 1.0
) -> None:
    """Write a PNG of six slices evenly through what was found: images (1 or 3, D, H, W), class indices (D, H, W).

    `aspect` is the height of a pixel by its width.
    """
    found = np.flatnonzero(segmentation.any(axis=(1, 2)))
    if not found.size:
        found = np.arange(len(segmentation))
    shown = found[np.unique(np.linspace(0, len(found) - 1, 6).round().astype(int))]
    figure, axes = plt.subplots(2, len(shown), figsize=(1.8 * len(shown), 4), squeeze=False, layout="constrained")
    for column, k in enumerate(shown):
        for axis, overlay in zip(axes[:, column], (None, segmentation[k]), strict=True):
            _draw(axis, images[:, k], overlay, len(names), aspect)
        axes[0, column].set_title(f"slice {k + 1} of {len(segmentation)}", fontsize=8)
    _save(figure, path, names)


def save_boxes(
    path: Path, values: dict[str, dict[Column, dict[str, float]]], labels: list[str], metric: Metric
) -> None:
    """Write box plots (PNG, PDF) of rows: row -> column -> subject -> value.

    A panel for each of `labels` (classes and regions) and one for the mean over classes, all with one scale.
    """
    panels = {label: label for label in labels} | {MEAN: mean_title(labels)}
    columns = min(len(panels), 3)
    lines = ceil_div(len(panels), columns)
    height = 0.9 + 0.26 * len(values)
    figure, axes = plt.subplots(
        lines, columns, figsize=(PAGE * columns / 3, height * lines), squeeze=False, sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (label, title) in zip(axes.flat, panels.items(), strict=False):
        scores = [np.array(list(of_row[label, metric.key].values())) for of_row in values.values()]
        known = [of_row[np.isfinite(of_row)] for of_row in scores]
        axis.boxplot(known, orientation="horizontal", widths=0.6, showfliers=False, manage_ticks=False)
        for line, points in enumerate(known, 1):
            axis.plot(points, np.full(len(points), line), "o", color=COLORS[5], markersize=3, alpha=0.6)
        axis.set_title(f"{title}, {metric.title}", fontsize=8)
        axis.tick_params(labelsize=7, labelbottom=True)
        axis.grid(axis="x", linewidth=0.3)
    axes[0, 0].set_yticks(range(1, len(values) + 1), list(values))
    axes[0, 0].set_ylim(len(values) + 0.6, 0.4)
    _save(figure, path, dpi=300)


def save_curves(path: Path, rows: dict[str, list[Curve]]) -> None:
    """Write validation Dice over epochs and over time: row -> the curves of its runs.

    A row's line is the mean over its runs, each of which is a thin line beside it. Rows without curves are left out.
    """
    rows = {name: curves for name, curves in rows.items() if curves}
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8), sharey=True, layout="constrained")
    lines = []
    for number, curves in enumerate(rows.values()):
        color = LINE_COLORS[number % len(LINE_COLORS)]
        style = {"color": color, "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.4, "markersize": 4}
        style |= {"marker": MARKERS[number % len(MARKERS)], "markerfacecolor": "white"}
        if len(curves) > 1:
            for curve in curves:
                _draw_curve(axes, curve, color=color, linewidth=0.5, alpha=0.5)
        _draw_curve(axes, mean_curve(curves), markevery=[0, -1], **style)
        lines.append(Line2D([], [], **style))
    for axis, title in zip(axes, ("epochs", "hours of training"), strict=True):
        axis.set_xlabel(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(linewidth=0.3)
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("validation DSC, %", fontsize=8)
    _legend(figure, lines, list(rows), loc="outside right center", fontsize=7)
    _save(figure, path, dpi=300)


def _draw_curve(axes: Sequence[Axes], curve: Curve, **style: Any) -> None:
    """Dice over epochs on the first of two axes, over hours on the second; epochs without validation are left out."""
    hours, dice = curve
    known = np.isfinite(dice)
    for axis, x in zip(axes, (np.arange(1, len(dice) + 1), hours), strict=True):
        axis.plot(x[known], dice[known], **style)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Hours and Dice at the epochs that all runs have, the means over runs."""
    epochs = min(len(dice) for _, dice in curves)
    hours, dice = (np.mean([part[:epochs] for part in parts], axis=0) for parts in zip(*curves, strict=True))
    return hours, dice


class GridRow(NamedTuple):
    """A row of a qualitative grid."""

    label: str
    image: np.ndarray
    """(1 or 3, H, W)."""
    overlays: list[np.ndarray]
    """Class indices (H, W) to show over it."""
    aspect: float
    """The height of a pixel by its width."""


def save_grid(path: Path, rows: Sequence[GridRow], titles: Sequence[str], names: Sequence[str]) -> None:
    """Write a figure (PDF, PNG) of rows of image and overlays under `titles`, as wide as a page or a column of it.

    Each row is cut to the square around all that is marked in it.
    """
    columns = 1 + len(titles)
    width = COLUMN if columns <= 3 else PAGE
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(width, len(rows) * width / columns + 0.4), squeeze=False, layout="constrained"
    )
    for line, row in zip(axes, rows, strict=True):
        window = _window(np.any([marked(overlay) for overlay in row.overlays], axis=0), row.aspect)
        for axis, overlay in zip(line, (None, *row.overlays), strict=True):
            _draw(axis, row.image[:, *window], None if overlay is None else overlay[window], len(names), row.aspect)
        line[0].set_ylabel(row.label, fontsize=7)
    for axis, title in zip(axes[0], ("image", *titles), strict=True):
        axis.set_title(title, fontsize=7)
    hatching = any(IGNORED in overlay for row in rows for overlay in row.overlays)
    _save(figure, path, names, hatching, dpi=300)


def _window(marked: np.ndarray, aspect: float) -> tuple[slice, slice]:
    """Rows and columns of a square about what is marked in (H, W), with a margin, and half the image at least."""
    pixels = np.argwhere(marked if marked.any() else ~marked)
    low, high, size = pixels.min(0), pixels.max(0) + 1, np.array(marked.shape)
    sides = np.array([aspect, 1.0])  # of a pixel
    side = max(1.3 * ((high - low) * sides).max(), (size * sides).max() / 2)
    length = np.minimum(size, np.rint(side / sides).astype(int))
    first = np.clip((low + high - length) // 2, 0, size - length)
    return slice(first[0], first[0] + length[0]), slice(first[1], first[1] + length[1])


def blend(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """An image (1 or 3, H, W) in [0, 1] and class indices (H, W) over it -> uint8 (H, W, 3)."""
    classes, table = hatched(classes), np.array([*_colors(IGNORED), to_rgb(NOT_ANNOTATED)])
    colors = np.broadcast_to(image, (3, *classes.shape)).transpose(1, 2, 0)
    return np.rint(255 * np.where(classes[..., None] > 0, (colors + table[classes]) / 2, colors)).astype(np.uint8)


def overlays(volumes: Sequence[Volume], dataset: SliceDataset) -> Iterator[tuple[str, np.ndarray]]:
    """Of the first three subjects: name, and their fullest slice as uint8 (H, 2 W, 3), truth beside prediction."""
    for volume in volumes[:3]:
        index, truth, prediction = _fullest_of(volume, dataset)
        image = dataset.picture(index)
        yield volume.subject, np.hstack([blend(image, truth), blend(image, prediction)])


def _fullest_of(volume: Volume, dataset: SliceDataset) -> tuple[int, np.ndarray, np.ndarray]:
    """The index of a subject's fullest slice, and its truth and prediction, class indices (H, W)."""
    indices, positions = dataset.subjects()[volume.subject], dataset.positions(volume.subject)
    k = fullest(volume.target[positions])
    return indices[k], volume.target[positions[k]], volume.prediction[positions[k]]


def fullest(targets: Sequence[np.ndarray]) -> int:
    """Which of the slices has the most classes, and among those the most foreground."""
    foreground = [target[marked(target)] for target in targets]
    return max(range(len(targets)), key=lambda k: (len(np.unique(foreground[k])), foreground[k].size))


def marked(classes: np.ndarray) -> np.ndarray:
    """Where class indices are those of a class but the background."""
    return (classes != 0) & (classes != IGNORED)


def hatched(classes: np.ndarray) -> np.ndarray:
    """Class indices (H, W) of which what is IGNORED becomes oblique lines on background, to see the image there."""
    width = max(1, len(classes) // 96)
    rows, columns = np.indices(classes.shape)
    return np.where((classes == IGNORED) & ((rows + columns) // width % 4 > 0), 0, classes)


def _colors(classes: int) -> list[tuple[float, float, float]]:
    """As `class_colors`, 0 to 1."""
    return [(red / 255, green / 255, blue / 255) for red, green, blue in class_colors(classes)]


def _draw(axis: Axes, image: np.ndarray, overlay: np.ndarray | None, classes: int, aspect: float) -> None:
    """An image (1 or 3, H, W), in grey or RGB, and class indices (H, W) over it; `aspect` as in `GridRow`."""
    axis.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray", aspect=aspect)
    if overlay is not None:
        shown = np.ma.masked_equal(hatched(overlay), 0)
        colors = ListedColormap(_colors(classes)[1:]).with_extremes(over=NOT_ANNOTATED)
        axis.imshow(shown, cmap=colors, vmin=0.5, vmax=classes - 0.5, alpha=0.5, aspect=aspect, interpolation="nearest")
    axis.set_xticks([], [])
    axis.set_yticks([], [])


def _save(figure: Figure, path: Path, names: Sequence[str] = (), hatching: bool = False, dpi: int = 150) -> None:
    """Write and close a figure, with a legend for classes of these `names`, the background first, and for hatching."""
    if names:
        patches = [Patch(color=color) for color in _colors(len(names))[1:]]
        if hatching:
            patches.append(Patch(facecolor="none", edgecolor="grey", hatch="////"))
            names = [*names, "not annotated"]
        options = {"loc": "outside lower center", "fontsize": 8, "frameon": False}
        for columns in range(min(len(patches), 6), 0, -1):
            legend = _legend(figure, patches, names[1:], ncols=columns, **options)
            if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
                break
            legend.remove()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    plt.close(figure)


def _legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str], **options: Any) -> Legend:
    """A legend with all names: matplotlib leaves out those that begin with "_" where it gets them as labels."""
    legend = figure.legend(handles, [""] * len(handles), **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    return legend
