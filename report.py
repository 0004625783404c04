"""Pictures of a data set and of a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from data.folder import DataFolder
from data.slices import SliceDataset
from engine import Volume
from utils import atomic_path

# Okabe and Ito's colors, told apart by color-blind eyes; after eight classes they begin again.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#FFFFFF")


def save_overview(path: Path, volumes: list[Volume], dataset: SliceDataset, most: int = 4) -> None:
    """Write a PNG of image, truth and prediction: the fullest slice of the first `most` subjects."""
    volumes = volumes[:most]
    figure, axes = plt.subplots(
        len(volumes), 3, figsize=(7.5, 2.6 * len(volumes) + 0.4), squeeze=False, layout="constrained"
    )
    for row, volume in zip(axes, volumes, strict=True):
        indices = dataset.subjects()[volume.subject]
        index = _fullest(dataset, indices)
        image, target = dataset[index]
        number = dataset.slices[index].number
        prediction = volume.prediction[number - dataset.slices[indices[0]].number]
        for axis, overlay in zip(row, (None, target.numpy(), prediction), strict=True):
            _draw(axis, image.numpy(), overlay, len(dataset.labels.names))
        row[0].set_ylabel(f"subject {volume.subject}, slice {number}", fontsize=8)
    for axis, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=9)
    _save(figure, path, dataset.labels.names)


def save_contact_sheet(path: Path, data: DataFolder, most: int = 6) -> None:
    """Write a PNG of image and truth: the fullest slice of the first `most` subjects of each split."""
    columns = min(most, max(len(data.dataset(split).subjects()) for split in data.splits))
    rows = 2 * len(data.splits)
    figure, axes = plt.subplots(rows, columns, figsize=(1.8 * columns, 1.9 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for row, split in enumerate(data.splits):
        dataset = data.dataset(split)
        for column, (subject, indices) in enumerate(list(dataset.subjects().items())[:most]):
            image, target = dataset[_fullest(dataset, indices)]
            for axis, overlay in zip(axes[2 * row : 2 * row + 2, column], (None, target.numpy()), strict=True):
                axis.set_axis_on()
                _draw(axis, image.numpy(), overlay, len(data.labels.names))
            axes[2 * row, column].set_title(f"{split} {subject}", fontsize=8)
    _save(figure, path, data.labels.names)


def save_montage(path: Path, images: np.ndarray, segmentation: np.ndarray, names: tuple[str, ...]) -> None:
    """Write a PNG of six slices evenly through what was found: images (channels, D, H, W), class indices (D, H, W)."""
    found = np.flatnonzero(segmentation.any(axis=(1, 2)))
    if not found.size:
        found = np.arange(len(segmentation))
    shown = found[np.unique(np.linspace(0, len(found) - 1, 6).round().astype(int))]
    figure, axes = plt.subplots(2, len(shown), figsize=(1.8 * len(shown), 4), squeeze=False, layout="constrained")
    for column, place in enumerate(shown):
        for axis, overlay in zip(axes[:, column], (None, segmentation[place]), strict=True):
            _draw(axis, images[:, place], overlay, len(names))
        axes[0, column].set_title(f"slice {place + 1} of {len(segmentation)}", fontsize=8)
    _save(figure, path, names)


def save_boxes(
    path: Path, values: dict[str, dict[tuple[str, str], dict[str, float]]], classes: list[str], metric: str
) -> None:
    """Write a PNG of box plots, a panel for each class and their mean: row -> (class, metric) -> subject -> value."""
    panels = [*classes, "mean"]
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    height = 0.9 + 0.26 * len(values)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns, height * lines), squeeze=False, sharey=True, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, label in zip(axes.flat, panels, strict=False):
        known = [[v for v in of_row[label, metric].values() if np.isfinite(v)] for of_row in values.values()]
        axis.boxplot(known, orientation="horizontal", widths=0.6, showfliers=False, manage_ticks=False)
        for place, points in enumerate(known, 1):
            axis.plot(points, np.full(len(points), place), "o", color=COLORS[5], markersize=3, alpha=0.6)
        axis.set_title(f"{label}, {metric} %" if metric in ("DSC", "VS") else f"{label}, {metric}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", linewidth=0.3)
    axes[0, 0].set_yticks(range(1, len(values) + 1), list(values))
    axes[0, 0].set_ylim(len(values) + 0.6, 0.4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def _fullest(dataset: SliceDataset, indices: list[int]) -> int:
    """The index of the slice with the most classes, and among those with the most foreground."""
    targets = {index: dataset[index][1] for index in indices}
    return max(indices, key=lambda index: (len(targets[index].unique()), int((targets[index] > 0).sum())))


def _colors(classes: int) -> ListedColormap:
    return ListedColormap([COLORS[k % len(COLORS)] for k in range(classes - 1)])


def _draw(axis: Axes, image: np.ndarray, overlay: np.ndarray | None, classes: int) -> None:
    """First channel of the image (C, H, W), and class indices (H, W) over it."""
    axis.imshow(image[0], cmap="gray")
    if overlay is not None:
        shown = np.ma.masked_equal(overlay, 0)
        axis.imshow(shown, cmap=_colors(classes), vmin=1, vmax=classes - 1, alpha=0.5, interpolation="nearest")
    axis.set_xticks([], [])
    axis.set_yticks([], [])


def _save(figure: Figure, path: Path, names: tuple[str, ...]) -> None:
    patches = [Patch(color=_colors(len(names))(k), label=name) for k, name in enumerate(names[1:])]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
