"""What the refinement of a network looks at, as pictures for a page."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor, nn

from data.dataset import SliceDataset
from data.volumes import Volume
from models.inspection import Inspection, inspect
from reporting.encoding import encode_classes, encode_heat, encode_image
from reporting.figures import fullest
from reporting.viewer import worst_slice


def look_inside(model: nn.Module, dataset: SliceDataset, volume: Volume, counts: np.ndarray) -> list[dict[str, Any]]:
    """Maps of the refinement at a subject's worst and fullest slice; nothing for a network that does not refine.

    The position attention is that of the pixel deepest inside a class of the truth (without one: of the middle).
    """
    indices, positions = dataset.subjects()[volume.subject], dataset.positions(volume.subject)
    worst, full = worst_slice(counts[positions]), fullest(volume.target[positions])
    chosen = [("worst", worst)]
    if full != worst:
        chosen.append(("fullest", full))
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
                "image": encode_image(item.images[0]),
                "truth": encode_classes(target),
                "rows": _maps(inspection, point),
            })  # fmt: skip
    return found


def _maps(inspection: Inspection, point: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of pictures over the scales, each with its title; of attention also the point, in parts of the image."""
    height, width = inspection.refined[0].shape
    at_point = {"point": [(point[1] + 0.5) / width, (point[0] + 0.5) / height]}
    rows = [_class_row("Raw prediction", inspection.raw), _class_row("Refined prediction", inspection.refined)]
    for number, step in enumerate(inspection.steps, 1):
        rows += [
            _heat_row(f"Position attention, step {number}", step.attention) | at_point,
            _heat_row(f"Semantic reconstruction, step {number}", step.reconstruction),
            _heat_row(f"Guide, step {number}", step.guide),
        ]
    return [row for row in rows if row.get("classes") or row.get("heat")]


def _class_row(title: str, scales: list[Tensor]) -> dict[str, Any]:
    return {"title": title, "classes": [encode_classes(scale.numpy()) for scale in scales]}


def _heat_row(title: str, maps: list[Tensor]) -> dict[str, Any]:
    return {"title": title, "heat": [encode_heat(x.numpy()) for x in maps]}


def deepest(target: np.ndarray) -> tuple[int, int]:
    """The pixel (row, column) of class indices (H, W) that is furthest from any other class; the middle of nothing."""
    depth = [ndimage.distance_transform_edt(target == k) for k in np.unique(target[target > 0])]
    if not depth:
        return target.shape[0] // 2, target.shape[1] // 2
    row, column = np.unravel_index(int(np.max(depth, 0).argmax()), target.shape)
    return int(row), int(column)
