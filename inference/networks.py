"""Trained networks, read from the checkpoints of main.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import Config
from data.folder import Identity
from data.geometry import Geometry
from data.mirror import mirror_of
from data.volumes import largest_components
from inference.segmentation import not_finite, segment_volume
from models import NETWORKS, build_model, is_own, own_file
from training.checkpoint import check_weights, content_of, load_checkpoint
from training.device import Machine
from utils import InputError, errors_begin


@dataclass(frozen=True)
class TrainedNetwork:
    """A checkpoint's network and what it needs to know of its data."""

    path: Path
    model: nn.Module
    """In eval mode."""
    config: Config
    identity: Identity
    """Of the data set that it was trained on: classes, channels, how scans became slices."""


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
    def identity(self) -> Identity:
        """Of the data set of the first network: `_shared` says what of it those of the others have, too."""
        return self.networks[0].identity

    def probabilities(self, images: np.ndarray, geometry: Geometry, name: str) -> np.ndarray:
        """Images float32 (channels, D, H, W) in [0, 1] -> class probabilities float32 (classes, D, H, W).

        Raises, with the scan's `name`, FloatingPointError where a network gives values that are not finite, InputError
        where flips exchange classes, but it is not known along which axis of its slices.
        """
        models, mirror = [network.model for network in self.networks], None
        if self.flips:
            with errors_begin(f"--tta: {name}", "; give the direction of slices in their dataset.json, or omit --tta"):
                mirror = mirror_of(self.identity.labels, geometry)
        probabilities = segment_volume(models, images, self.batch_size, self.machine, self.flips, mirror)
        if not np.isfinite(probabilities).all():
            raise not_finite(name, [network.path for network in self.networks])
        return probabilities

    def classify(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (classes, D, H, W) -> class indices uint8 (D, H, W)."""
        classes = probabilities.argmax(0).astype(np.uint8)
        if self.networks[0].config.evaluation.largest_component:
            classes = largest_components(classes)
        return classes


def _shared(network: TrainedNetwork) -> tuple[object, ...]:
    """What networks must share to be averaged."""
    options = network.config.network.channels, network.config.evaluation.largest_component
    return *options, network.identity.labels, network.identity.preparation, network.identity.channels


@torch.random.fork_rng(devices=[])  # a network begins with random weights, which are not kept
def load_network(path: Path, device: torch.device) -> TrainedNetwork:
    """The network of a checkpoint. Raises InputError for a file that is no checkpoint of this version."""
    checkpoint = load_checkpoint(path, device)
    with content_of(path):
        config = Config.from_dict(checkpoint["config"])
        identity = Identity.from_dict(checkpoint["data"])
        if len(identity.labels.names) != config.network.classes:
            raise ValueError(f"{len(identity.labels.names)} labels for {config.network.classes} classes")
        weights = checkpoint["model"]
        plain = config.network.model in NETWORKS and not config.network.backbone.startswith("timm.")
        if plain:  # others cannot all be built without memory
            with torch.device("meta"):
                check_weights(build_model(config), weights)
    own = is_own(config.network.model)
    with errors_begin(path) if own else content_of(path):
        if own:
            print(f"{path}: the network {config.network.model} is of {own_file(config.network.model)}", flush=True)
        model = build_model(config)
    with content_of(path):
        check_weights(model, weights)
        model.load_state_dict(dict(weights))
    model = model.to(device, memory_format=torch.channels_last).eval()
    return TrainedNetwork(path, model, config, identity)
