"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from data.slices import SliceDataset
from engine import Volume
from utils import atomic_path

# Okabe and Ito's colors, told apart by color-blind eyes; after eight classes they begin again.
COLORS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#FFFFFF"]


def save_overview(path: Path, volumes: list[Volume], dataset: SliceDataset, most: int = 4) -> None:
    """Write a PNG of image, truth and prediction: the slice with the most foreground of the first `most` subjects."""
    volumes = volumes[:most]
    names = dataset.labels.names
    colors = ListedColormap([COLORS[k % len(COLORS)] for k in range(len(names) - 1)])
    figure, axes = plt.subplots(
        len(volumes), 3, figsize=(7.5, 2.6 * len(volumes) + 0.4), squeeze=False, layout="constrained"
    )
    for row, volume in zip(axes, volumes, strict=True):
        indices = dataset.subjects()[volume.subject]
        numbers = np.array([dataset.slices[index].number for index in indices])
        places = numbers - numbers.min()
        shown = np.count_nonzero(volume.target[places], axis=(1, 2)).argmax()
        image = dataset[indices[shown]][0][0].numpy()
        overlays = (None, volume.target[places[shown]], volume.prediction[places[shown]])
        for axis, overlay in zip(row, overlays, strict=True):
            axis.imshow(image, cmap="gray")
            if overlay is not None:
                classes = np.ma.masked_equal(overlay, 0)
                axis.imshow(classes, cmap=colors, vmin=1, vmax=len(names) - 1, alpha=0.55, interpolation="nearest")
            axis.set_xticks([], [])
            axis.set_yticks([], [])
        row[0].set_ylabel(f"subject {volume.subject}, slice {numbers[shown]}", fontsize=8)
    for axis, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=9)
    patches = [Patch(color=colors(k), label=name) for k, name in enumerate(names[1:])]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
