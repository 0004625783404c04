"""The subjects of a finished run, segmented again with its best checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from config import Config, read_run
from inference.networks import load_network
from inference.segmentation import check_finite, segment_subjects
from reporting.viewer import Segmented
from training.device import Machine
from training.setup import open_data_of
from utils import InputError


def run_config(folder: Path) -> Config:
    """The configuration of a run. Raises InputError where there is none."""
    config = read_run(folder / "config.json")
    if config is None:
        raise InputError(f"{folder}: not a run folder of main.py; it has no config.json")
    return config


def segment_run(folder: Path, device: str) -> tuple[Segmented, nn.Module]:
    """Segment the test subjects of a run again with its best.pt; the validation subjects of one without a test.

    Raises InputError where run, checkpoint or data set are gone, or do not fit each other; FloatingPointError where the
    network gives values that are not finite.
    """
    config = run_config(folder)
    machine = Machine.of(config.change(device=device, workers="auto").machine)
    trained = load_network(folder / "best.pt", machine.device)
    data = open_data_of(config)
    known = trained.identity.labels, trained.config.network.channels, trained.identity.preparation
    if known != (data.labels, data.channels, data.preparation):
        raise InputError(f"{config.data}: has other classes, channels or preparation than {folder} was trained on")
    split = "test" if (folder / "test.json").exists() else "val"
    dataset = data.dataset(split)
    subjects, options = list(dataset.subjects()), trained.config.evaluation
    volumes = list(segment_subjects(trained.model, dataset, subjects, options, machine, split))
    check_finite(volumes, trained.path)
    return Segmented(split, dataset, volumes, data.geometry), trained.model
