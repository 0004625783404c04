"""The subjects of a finished run: segmented again with its best checkpoint, or read again where it only scored them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from config import Config, read_run
from data.dataset import SubjectSlices
from inference.evaluation import Evaluation, Sources
from inference.networks import load_network
from inference.segmentation import check_finite, segment_subjects
from reporting.viewer import Segmented
from training.device import Machine
from training.scores import class_dice
from training.setup import open_data_of
from utils import InputError, read_csv


def run_config(folder: Path) -> Config:
    """The configuration of a run. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct the name")
    config = read_run(folder / "config.json")
    if config is None:
        raise InputError(f"{folder}: not a run folder of main.py; it has no config.json")
    return config


def segment_run(folder: Path, device: str) -> tuple[Segmented, nn.Module | None]:
    """Segment the test subjects of a run again with its best.pt; the validation subjects of one without a test.

    A run of evaluate.py has no network; its segmentations are read again. Raises InputError where run, checkpoint, data
    set or segmentations are gone, or do not fit each other; FloatingPointError where the network gives values that are
    not finite.
    """
    if (folder / "evaluation.json").exists():
        evaluation = Evaluation(Sources.read(folder / "evaluation.json"))
        segmented = scored(evaluation, evaluation.subjects())
        _check_scores(folder, segmented)
        return segmented, None
    config = run_config(folder)
    machine = Machine.of(config.change(device=device, workers="auto").machine)
    trained = load_network(folder / "best.pt", machine.device)
    data = open_data_of(config)
    known = trained.identity.labels, trained.config.network.channels, trained.identity.preparation
    labels = replace(data.labels, mirror=known[0].mirror, mirror_axis=known[0].mirror_axis)  # flips are of the training
    if known != (labels, data.channels, data.preparation):
        raise InputError(f"{config.data}: has other classes, channels or preparation than {folder} was trained on")
    split = "test" if (folder / "test.json").exists() else "val"
    dataset = data.dataset(split)
    if dataset.fingerprint() != (trained.identity.test if split == "test" else trained.identity.validation):
        raise InputError(f"{config.data}: has other slices of {split} than {folder} was trained with")
    subjects, options = list(dataset.subjects()), trained.config.evaluation
    volumes = list(segment_subjects(trained.model, dataset, subjects, options, machine, split))
    check_finite(volumes, trained.path)
    return Segmented(split, dataset, volumes, data.geometry), trained.model


def _check_scores(folder: Path, segmented: Segmented) -> None:
    """Raises InputError where subjects, segmentations or truths are others than those that test.csv scores."""
    stored = {(row["subject"], row["class"]): float(row["dsc"] or "nan") for row in read_csv(folder / "test.csv")}
    names = segmented.dataset.labels.names
    if {subject for subject, _ in stored} != {volume.subject for volume in segmented.volumes}:
        raise InputError(f"{folder}: other subjects were scored than there are now; evaluate again")
    for volume in segmented.volumes:
        found = class_dice(volume, names)
        known = [stored.get((volume.subject, name), math.inf) for name in found]
        if not np.allclose(list(found.values()), known, rtol=0, atol=1e-9, equal_nan=True):
            raise InputError(f"{folder}: subject {volume.subject} is not what was scored; evaluate again")


class ScoredSlice(NamedTuple):
    """A slice of a segmentation that was scored."""

    subject: str
    number: int


class ScoredSlices(SubjectSlices):
    """The slices of segmentations that were scored."""

    def __init__(self, evaluation: Evaluation, numbers: dict[str, Sequence[int]]) -> None:
        self.labels = evaluation.labels
        self.slices = [ScoredSlice(subject, number) for subject, of_one in numbers.items() for number in of_one]
        self._pictures = lru_cache(1)(lambda subject: evaluation.pictures(evaluation.compare(subject)))

    def picture(self, index: int) -> np.ndarray:
        """What is shown of a slice, as `Evaluation.pictures` makes it."""
        subject = self.slices[index].subject
        return self._pictures(subject)[index - self.subjects()[subject][0]]


def scored(evaluation: Evaluation, subjects: Sequence[str]) -> Segmented:
    """The segmentations and truths of subjects. Raises InputError where files are gone or changed."""
    compared = [evaluation.compare(subject) for subject in subjects]
    numbers = {each.volume.subject: each.numbers for each in compared}
    geometry = {each.volume.subject: each.geometry for each in compared}
    return Segmented("test", ScoredSlices(evaluation, numbers), [each.volume for each in compared], geometry)
