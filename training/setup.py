"""What a training is made of, as its configuration says."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn
from torch.utils.data import DataLoader

from config import Config, LossConfig, OptimizationConfig
from data.batches import ShuffledBatches, slice_loader
from data.dataset import SliceDataset
from data.folder import DataFolder, open_data
from data.splits import read_split
from losses import GuidedLoss
from models import build_model, recompute_activations, synchronize_batch_norm
from training.device import Machine
from training.distributed import AllReduceSum, rank, world_size
from training.run import has_checkpoint
from utils import InputError


def check_batches(options: OptimizationConfig) -> None:
    """Raises InputError where a batch has not a slice for each process."""
    if options.batch_size < world_size():
        raise InputError(f"--batch_size {options.batch_size}: fewer slices than processes; give {world_size()} or more")


def open_data_of(config: Config) -> DataFolder:
    """The data set, split by its folders or by the split file."""
    subjects = read_split(config.split_file) if config.split_file else None
    return open_data(config.data, subjects=subjects)


def training_loader(dataset: SliceDataset, config: Config, machine: Machine) -> DataLoader:
    """This process's part of the shuffled batches."""
    batch_size, seed = config.optimization.batch_size, config.machine.seed
    batches = ShuffledBatches(dataset, batch_size, seed, rank(), world_size())
    return slice_loader(dataset, batches, machine.workers, machine.pin_memory)


def training_network(config: Config, machine: Machine) -> nn.Module:
    """The network on its device. Raises OptionError as `build_model` does."""
    if has_checkpoint(config.out):  # the weights of a run that goes on need no others to start from
        config = config.change(pretrained=False)
    network = build_model(config)
    network.to(machine.device, memory_format=torch.channels_last)
    if config.machine.recompute:
        recompute_activations(network)
    if config.machine.sync_batch_norm and world_size() > 1:
        synchronize_batch_norm(network)
    return network


def training_loss(options: LossConfig) -> GuidedLoss:
    """The loss; its sums run over all processes."""
    return GuidedLoss(**asdict(options), all_reduce=AllReduceSum.apply if world_size() > 1 else None)
