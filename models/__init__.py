"""Networks: tensors in, tensors out. Nothing in here knows about files, flags or training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from torch import nn

from config import Config, NetworkConfig
from models.backbone import BACKBONES
from models.baselines import DAF, PAN, AttentionUNet, DANet, SegmentationModel, UNet
from models.kernels.recompute import recompute_activations
from models.kernels.sync_batch_norm import synchronize_batch_norm
from models.ms_dual_guided import MSDualGuided
from models.network import Network, Output
from models.released import load_released
from utils import OptionError

__all__ = [
    "NETWORKS",
    "MSDualGuided",
    "Network",
    "Output",
    "build_model",
    "check_network",
    "describe_network",
    "load_released",
    "recompute_activations",
    "synchronize_batch_norm",
    "unused_options",
]

# Name (--model) -> constructor. A network takes those fields of NetworkConfig that its constructor names.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ms_dual_guided": MSDualGuided,
    "unet": UNet,
    "attention_unet": AttentionUNet,
    "danet": DANet,
    "pan": PAN,
    "daf": partial(DAF, attention="sigmoid"),
    # Table I's rows of one step: DAF with another attention.
    "daf_pam": partial(DAF, attention="position"),
    "daf_cam": partial(DAF, attention="channel"),
    "daf_dual": partial(DAF, attention="dual"),
}
OF_GUIDANCE = {"encoder_decoder", "neutral_guide", "semantic_channels"}


def build_model(config: Config) -> nn.Module:
    """The network that `config.network` describes.

    Raises OptionError for options that are unknown or exclude each other.
    """
    options = config.network
    check_network(options)
    named = asdict(options)
    return _constructor(options)(**{name: named[name] for name in _options_of(options)})


def check_network(options: NetworkConfig) -> None:
    """Raises OptionError for what can be refused before anything is built."""
    library = options.model.startswith("smp.")
    if options.model not in NETWORKS and not library:
        raise OptionError(f"model {options.model}: must be {', '.join(NETWORKS)}, or smp.NAME")
    if options.backbone not in BACKBONES and not library:
        raise OptionError(f"backbone {options.backbone}: must be {', '.join(BACKBONES)}")
    if options.pretrained and "pretrained" not in _options_of(options):
        raise OptionError(f"pretrained: {options.model} has no backbone with ImageNet weights")


def unused_options(options: NetworkConfig) -> set[str]:
    """The fields of `options` that its network does not take, or that do nothing beside its other options."""
    unused = set(asdict(options)) - _options_of(options) - {"model"}
    return unused if options.guidance else unused | OF_GUIDANCE


def describe_network(options: NetworkConfig) -> str:
    """Network and backbone for people to read."""
    taken = _options_of(options)
    title = options.model
    if "guidance" in taken and not options.guidance:
        title += " without guidance"
    return f"{title}, {options.backbone}" if "backbone" in taken else title


def _constructor(options: NetworkConfig) -> Callable[..., nn.Module]:
    if options.model in NETWORKS:
        return NETWORKS[options.model]
    return partial(SegmentationModel, options.model.removeprefix("smp."))


def _options_of(options: NetworkConfig) -> set[str]:
    """The fields of `options` that its network's constructor names."""
    named = inspect.signature(_constructor(options)).parameters
    return {name for name in asdict(options) if name in named}
