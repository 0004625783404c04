"""The subjects of a finished run, segmented again with its best checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from config import Config, read_run
from data.folder import Identity
from inference.segmentation import segment_subjects
from models import build_model
from reporting.viewer import Segmented
from training.checkpoint import load_checkpoint
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

    Raises InputError where run, checkpoint or data set are gone, or do not fit each other.
    """
    config = run_config(folder)
    machine = Machine.of(config.change(device=device, workers="auto").machine)
    checkpoint = load_checkpoint(folder / "best.pt", machine.device)
    trained = Config.from_dict(checkpoint["config"]).change(pretrained=False)
    identity = Identity.from_dict(checkpoint["data"])
    data = open_data_of(config)
    known = identity.labels, trained.network.channels, identity.preparation
    if known != (data.labels, data.channels, data.preparation):
        raise InputError(f"{config.data}: has other classes, channels or preparation than {folder} was trained on")
    model = build_model(trained).to(machine.device, memory_format=torch.channels_last)
    model.load_state_dict(checkpoint["model"])
    split = "test" if (folder / "test.json").exists() else "val"
    dataset = data.dataset(split)
    volumes = segment_subjects(model, dataset, list(dataset.subjects()), trained.evaluation, machine, split)
    return Segmented(split, dataset, list(volumes), data.geometry), model
