"""Networks: tensors in, tensors out. Nothing in here knows of data, losses or training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from torch import nn

from config import Config, NetworkConfig
from models.backbone import check_backbone
from models.baselines import DAF, PAN, AttentionUNet, DANet, SegmentationModel, UNet
from models.kernels.recompute import recompute_activations
from models.kernels.sync_batch_norm import synchronize_batch_norm
from models.ms_dual_guided import MSDualGuided
from models.network import Network, Output, count_parameters
from models.own import OwnNetwork, build_own, is_own, named_by, own_class, own_file
from models.released import load_released
from utils import OptionError

__all__ = [
    "NETWORKS",
    "MSDualGuided",
    "Network",
    "Output",
    "build_model",
    "check_network",
    "count_parameters",
    "describe_network",
    "is_own",
    "load_released",
    "own_class",
    "own_file",
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


def build_model(config: Config) -> nn.Module:
    """The network that `config.network` describes.

    Raises OptionError for options that are unknown or exclude each other.
    """
    options = config.network
    check_network(options)
    named = asdict(options)
    del named["pretrained"]  # what a backbone starts from; see `Network.load_pretrained`
    if is_own(options.model):
        network = build_own("model", options.model, {name: named[name] for name in named if name != "model"})
        return network if isinstance(network, Network) else OwnNetwork(options.model, network, options.classes)
    return _constructor(options)(**{name: named[name] for name in _options_of(options)})


def check_network(options: NetworkConfig) -> None:
    """Raises OptionError for what can be refused before anything is built."""
    library = options.model.startswith("smp.")
    if not (options.model in NETWORKS or library or is_own(options.model)):
        names = ", ".join(NETWORKS)
        raise OptionError(f"model {options.model}: must be {names}, smp.NAME, or package.module:Class")
    if options.model in NETWORKS:
        check_backbone(options.backbone)
    elif is_own(options.model):
        own_class("model", options.model)
    if options.pretrained == "none":
        return
    if is_own(options.model):
        raise OptionError(f"pretrained: is not for {options.model}; give what its constructor takes in its brackets")
    if "backbone" not in _options_of(options):
        raise OptionError(f"pretrained: {options.model} has no backbone with ImageNet weights")
    if library and options.pretrained != "imagenet":
        raise OptionError(f"pretrained {options.pretrained}: {options.model} takes no file; choose imagenet")


def unused_options(options: NetworkConfig) -> set[str]:
    """The fields of `options` that its network does not take."""
    taken = _options_of(options) | {"model"}
    if "backbone" in taken and not is_own(options.model):
        taken.add("pretrained")
    return set(asdict(options)) - taken


def describe_network(options: NetworkConfig) -> str:
    """Network and backbone for people to read; of a network of one's own, which may be gone, what the option says."""
    if is_own(options.model):
        return options.model
    taken = _options_of(options)
    title = options.model
    if "guidance" in taken and not options.guidance:
        title += " without guidance"
    return f"{title}, {options.backbone}" if "backbone" in taken else title


def _constructor(options: NetworkConfig) -> Callable[..., nn.Module]:
    if options.model in NETWORKS:
        return NETWORKS[options.model]
    if is_own(options.model):
        return own_class("model", options.model)
    return partial(SegmentationModel, options.model.removeprefix("smp."))


def _options_of(options: NetworkConfig) -> set[str]:
    """The fields of `options` that its network's constructor names."""
    return set(asdict(options)).intersection(named_by(_constructor(options)))
