"""The slice viewer of a page: images, truth and prediction of as many subjects as fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.dataset import SubjectSlices
from data.geometry import Geometry
from data.volumes import Volume
from metrics import unknown_classes
from reporting.encoding import encode_image, encode_mask
from utils import IGNORED

LEAST_AREA = 0.1  # of the subject's fullest slice, for a slice that is shown first


class Segmented(NamedTuple):
    """Segmented subjects of a split with their images."""

    split: str
    """"val" or "test"."""
    dataset: SubjectSlices
    volumes: Sequence[Volume]
    geometry: dict[str, Geometry]
    """Subject -> where its slices lie, for the sides of its pixels."""


def confusion(volume: Volume, classes: int) -> np.ndarray:
    """(D, classes, classes): of each slice, the number of pixels by class in the truth and class in the prediction.

    Pixels that nobody annotated are left out. Predictions of `unknown_classes` are background.
    """
    unknown = list(unknown_classes(volume.target, classes))
    judged = np.where(np.isin(volume.prediction, unknown), 0, volume.prediction)
    pairs = volume.target.astype(np.int32) * classes + judged
    annotated = volume.target != IGNORED
    counts = [np.bincount(plane[known], minlength=classes**2) for plane, known in zip(pairs, annotated, strict=True)]
    return np.stack(counts).reshape(-1, classes, classes)


def mean_dice(counts: np.ndarray) -> np.ndarray:
    """Mean Dice over the classes that truth or prediction has, (...), of counts (..., classes, classes).

    NaN where there is only background.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1)[..., 1:]
    sizes = (counts.sum(-1) + counts.sum(-2))[..., 1:]
    present = sizes > 0
    dice = np.where(present, 2 * hits / np.maximum(sizes, 1), 0).sum(-1)
    return np.where(present.any(-1), dice / np.maximum(present.sum(-1), 1), np.nan)


def worst_slice(counts: np.ndarray) -> int:
    """The slice with the most wrong pixels of those with some foreground, of counts (D, classes, classes).

    Truth or prediction of such a slice has at least a tenth of the foreground that the fullest slice of the truth has:
    an end slice with one false blob says little of a subject.
    """
    wrong = counts.sum((1, 2)) - np.trace(counts, axis1=1, axis2=2)
    truth, prediction = counts[:, 1:].sum((1, 2)), counts[:, :, 1:].sum((1, 2))
    shown = np.maximum(truth, prediction) >= LEAST_AREA * truth.max()
    return int(np.where(shown, wrong, -1).argmax())


def view(segmented: Segmented, volumes: list[Volume], counts: dict[str, np.ndarray], room: int) -> list[dict[str, Any]]:
    """What the viewer holds of as many of `volumes` as `room` bytes take.

    Where not even the first one fits, it is cut to the slices about its worst.
    """
    subjects: list[dict[str, Any]] = []
    for volume in volumes:
        slices = list(range(len(segmented.dataset.subjects()[volume.subject])))
        subject = _subject(segmented, volume, slices, counts[volume.subject])
        while not subjects and len(slices) > 1 and _size(subject) > room:
            worst = subject["worst"]
            near = sorted(slices, key=lambda k: abs(k - slices[0] - worst))
            slices = sorted(near[: len(slices) // 2])
            subject = _subject(segmented, volume, slices, counts[volume.subject])
        if _size(subject) > room:
            break
        room -= _size(subject)
        subjects.append(subject)
    return subjects


def _size(subject: dict[str, Any]) -> int:
    return len(json.dumps(subject))


def _subject(segmented: Segmented, volume: Volume, slices: list[int], counts: np.ndarray) -> dict[str, Any]:
    """Of some of a subject's slices, counted from 0: images as JPEG, class indices as zlib streams, all in base64."""
    indices = [segmented.dataset.subjects()[volume.subject][k] for k in slices]
    files = [segmented.dataset.slices[index] for index in indices]
    of_all = segmented.dataset.positions(volume.subject)
    positions = [of_all[k] for k in slices]
    dice = mean_dice(counts[positions])
    rows, columns = volume.target.shape[1:]
    return {
        "subject": volume.subject,
        "numbers": [item.number for item in files],
        "size": [rows, columns],
        "aspect": columns / (rows * segmented.geometry[volume.subject].pixel_aspect),
        "dice": dice.tolist(),
        "worst": worst_slice(counts[positions]),
        "images": [encode_image(segmented.dataset, index) for index in indices],
        "truth": encode_mask(volume.target[positions]),
        "prediction": encode_mask(volume.prediction[positions]),
        "unknown": sorted(unknown_classes(volume.target, len(segmented.dataset.labels.names))),
    }
