"""What the refinement of a network looks at, as pictures for a page."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor, nn

from data.dataset import SliceDataset
from data.geometry import Geometry
from data.volumes import Volume
from models.inspection import Inspection, inspect
from reporting.encoding import encode_classes, encode_heat, encode_image
from reporting.figures import fullest
from reporting.viewer import worst_slice
from utils import IGNORED


def look_inside(
    model: nn.Module, dataset: SliceDataset, volume: Volume, counts: np.ndarray, geometry: Geometry
) -> list[dict[str, Any]]:
    """Maps of the refinement at a subject's fullest slice and the one with the most errors; none without refinement.

    The position attention is that of the pixel deepest inside the largest class of the truth there.
    """
    indices, positions = dataset.subjects()[volume.subject], dataset.positions(volume.subject)
    worst, full = worst_slice(counts[positions]), fullest(volume.target[positions])
    chosen = [("fullest", full)]
    if worst != full:
        chosen.append(("most errors", worst))
    found = []
    for kind, k in chosen:
        item, target = dataset.slices[indices[k]], volume.target[positions[k]]
        image = dataset[indices[k]][0]
        point = deepest(target)
        inspection = inspect(model, image[None].to(next(model.parameters()).device), point)
        if inspection:
            found.append({
                "subject": volume.subject,
                "number": item.number,
                "kind": kind,
                "image": encode_image(dataset, indices[k]),
                "truth": encode_classes(target),
                "truth_note": "hatched: not annotated" if IGNORED in target else "",
                "aspect": target.shape[1] / (target.shape[0] * geometry.pixel_aspect),
                "point": [(point[1] + 0.5) / target.shape[1], (point[0] + 0.5) / target.shape[0]],
                "rows": _maps(inspection),
            })  # fmt: skip
    return found


def _maps(inspection: Inspection) -> list[dict[str, Any]]:
    """Rows of pictures over the scales, each with its title."""
    rows = [_class_row("Raw prediction", inspection.raw), _class_row("Refined prediction", inspection.refined)]
    for number, step in enumerate(inspection.steps, 1):
        rows += [
            _heat_row(f"Position attention, step {number}", step.attention) | {"cross": True},
            _heat_row(f"Semantic reconstruction, step {number}", step.reconstruction),
            _heat_row(f"Guide, step {number}", step.guide),
        ]
    return [row for row in rows if row.get("classes") or row.get("heat")]


def _class_row(title: str, scales: list[Tensor]) -> dict[str, Any]:
    return {"title": title, "classes": [encode_classes(scale.numpy()) for scale in scales]}


def _heat_row(title: str, maps: list[Tensor]) -> dict[str, Any]:
    return {"title": title, "heat": [encode_heat(x.numpy()) for x in maps]}


def deepest(target: np.ndarray) -> tuple[int, int]:
    """The pixel (row, column) of class indices (H, W) deepest inside the largest class; the middle of nothing.

    The image ends at its edge, and so does a class.
    """
    sizes = np.bincount(target[target != IGNORED])[1:]
    if not sizes.any():
        return target.shape[0] // 2, target.shape[1] // 2
    inside = np.pad(target == sizes.argmax() + 1, 1)
    depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), target.shape)
    return int(row), int(column)
