"""What a training is made of, as its configuration says."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from config import Config, LossConfig
from data.batches import ShuffledBatches, slice_loader
from data.dataset import SliceDataset
from data.description import parse_mirror, read_mirror
from data.folder import DataFolder, open_data
from data.splits import read_split
from losses import GuidedLoss, own_loss, try_loss
from models import build_model, check_network, is_own, recompute_activations, synchronize_batch_norm
from training.checkpoint import check_weights
from training.device import Machine
from training.distributed import AllReduceSum, rank, world_size
from training.pretrained import start_from_pretrained
from training.run import has_checkpoint
from utils import InputError, OptionError, errors_begin


def check_options(config: Config) -> None:
    """Raises InputError for what can be refused before the data are read."""
    batch_size = config.optimization.batch_size
    if batch_size < world_size():
        raise InputError(f"--batch_size {batch_size}: fewer slices than processes; give {world_size()} or more")
    check_network(config.network)
    if has_checkpoint(config.out):  # it does not begin with weights of files
        return
    pretrained, init = config.network.pretrained, config.optimization.init
    if pretrained not in ("none", "imagenet") and not Path(pretrained).exists():
        raise OptionError(f"pretrained {pretrained}: no such file; must be none, imagenet, or a file of weights")
    if init is not None and not init.exists():
        raise InputError(f"{init}: no such file of weights")


def open_data_of(config: Config) -> DataFolder:
    """The data set, split by its folders or by the split file, with the mirrored classes of the configuration."""
    subjects = read_split(config.split_file) if config.split_file else None
    data = open_data(config.data, subjects=subjects)
    labels, options = data.labels, config.augmentation
    if options.mirror:
        with errors_begin(f"--mirror {options.mirror}"):
            labels = replace(labels, mirror=read_mirror(parse_mirror(options.mirror), labels.names))
    if options.mirror_axis != "auto":
        labels = replace(labels, mirror_axis=options.mirror_axis)
    return replace(data, labels=labels)


def training_loader(dataset: SliceDataset, config: Config, machine: Machine) -> DataLoader:
    """This process's part of the shuffled batches."""
    batch_size, seed = config.optimization.batch_size, config.machine.seed
    batches = ShuffledBatches(dataset, batch_size, seed, rank(), world_size())
    return slice_loader(dataset, batches, machine.workers, machine.pin_memory)


def training_network(config: Config, machine: Machine) -> nn.Module:
    """The network on its device. Raises OptionError as `build_model` does."""
    network = build_model(config)
    if not has_checkpoint(config.out):
        start_from_pretrained(network, config.network.pretrained)
    if config.optimization.freeze_backbone:
        _check_backbone(network, config.network.model)
    if is_own(config.network.model):
        _check_own(network, config.network.model)
    network.to(machine.device, memory_format=torch.channels_last)
    if config.machine.recompute:
        recompute_activations(network)
    if config.machine.sync_batch_norm and world_size() > 1:
        synchronize_batch_norm(network)
    return network


def _check_backbone(network: nn.Module, model: str) -> None:
    """Raises OptionError where the backbone cannot stay while the rest of the network is trained."""
    if not hasattr(network, "backbone"):
        raise OptionError(f"freeze_backbone: {model} has no backbone; train all of it from the start")
    kept = {id(weight) for weight in network.backbone.parameters()}
    if not any(weight.requires_grad and id(weight) not in kept for weight in network.parameters()):
        raise OptionError(
            f"freeze_backbone: {model} has no weights beside its backbone; train all of it from the start"
        )


def _check_own(network: nn.Module, text: str) -> None:
    """Raises OptionError for a network that could be built, but not be trained or kept in a checkpoint."""
    if not any(weight.requires_grad for weight in network.parameters()):
        raise OptionError(f"model {text}: has no weights to train")
    try:
        check_weights(network, network.state_dict())
    except (ValueError, RuntimeError, AttributeError) as error:  # also of what is no tensor, or has no shape yet
        raise OptionError(f"model {text}: no checkpoint could hold its weights and buffers ({error})") from None
    if any(weight.dim() == 5 for weight in network.parameters()):
        raise OptionError(f"model {text}: has 3D layers; must be a network of images (batch, channels, rows, columns)")


def training_loss(options: LossConfig, classes: int, device: torch.device) -> GuidedLoss:
    """The loss on its device; its sums run over all processes. Raises OptionError for a loss that cannot be used."""
    weights = asdict(options)
    weights["loss"] = own_loss(options.loss, classes)
    loss = GuidedLoss(**weights, all_reduce=AllReduceSum.apply if world_size() > 1 else None).to(device)
    if loss.loss is not None:
        try_loss(options.loss, loss.loss, classes, device)
    return loss
