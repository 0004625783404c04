"""Trained networks, read from the checkpoints of main.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import Config
from data.description import Labels
from data.folder import Identity
from data.preparation import Preparation
from data.volumes import largest_components
from inference.segmentation import segment_volume
from models import build_model
from training.checkpoint import load_checkpoint
from training.device import Machine
from utils import InputError


@dataclass(frozen=True)
class TrainedNetwork:
    """A checkpoint's network and what it needs to know of its data."""

    path: Path
    model: nn.Module
    """In eval mode."""
    config: Config
    identity: Identity

    @property
    def labels(self) -> Labels:
        """The classes that it tells apart."""
        return self.identity.labels

    @property
    def preparation(self) -> Preparation | None:
        """How its scans became slices; None where its data set did not say."""
        return self.identity.preparation


@dataclass(frozen=True)
class Ensemble:
    """One or several networks of one data set and recipe, whose probabilities are averaged."""

    networks: Sequence[TrainedNetwork]
    machine: Machine
    batch_size: int
    """Slices in a forward pass."""
    flips: bool
    """Whether to average over flips of the slices, too."""

    def __post_init__(self) -> None:
        """Raises InputError for networks that cannot be averaged."""
        first = self.networks[0]
        for network in self.networks:
            if _shared(network) != _shared(first):
                raise InputError(
                    f"{network.path}: was trained on other data than {first.path}, or with another "
                    "largest_component; average folds of one data set and recipe"
                )

    @property
    def channels(self) -> int:
        """Image channels."""
        return self.networks[0].config.network.channels

    @property
    def labels(self) -> Labels:
        """The classes that it tells apart."""
        return self.networks[0].labels

    @property
    def preparation(self) -> Preparation | None:
        """How its scans became slices; None where its data set did not say."""
        return self.networks[0].preparation

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Images float32 (channels, D, H, W) in [0, 1] -> class probabilities float32 (classes, D, H, W)."""
        models = [network.model for network in self.networks]
        return segment_volume(models, images, self.batch_size, self.machine, self.flips)

    def classify(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (classes, D, H, W) -> class indices uint8 (D, H, W)."""
        classes = probabilities.argmax(0).astype(np.uint8)
        if self.networks[0].config.evaluation.largest_component:
            classes = largest_components(classes)
        return classes


def _shared(network: TrainedNetwork) -> tuple[object, ...]:
    """What networks must share to be averaged."""
    options = network.config.network.channels, network.config.evaluation.largest_component
    return *options, network.labels, network.preparation


def load_network(path: Path, device: torch.device) -> TrainedNetwork:
    """The network of a checkpoint. Raises InputError for a file that is no checkpoint of main.py."""
    checkpoint = load_checkpoint(path, device)
    try:
        config = Config.from_dict(checkpoint["config"]).change(pretrained=False)
        model = build_model(config)
        model.load_state_dict(checkpoint["model"])
        identity = Identity.from_dict(checkpoint["data"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path}: no checkpoint of main.py ({str(error).splitlines()[0]})") from None
    if identity.preparation is None:
        print(f"{path}: its data set did not say how scans became slices; taking whole axial slices, each stretched")
    model = model.to(device, memory_format=torch.channels_last).eval()
    return TrainedNetwork(path, model, config, identity)
