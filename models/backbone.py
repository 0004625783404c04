"""Encoders as feature maps of five resolutions, for any number of image channels: those of torchvision and of timm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import Bottleneck, ResNet

from models.network import tolerate_single_values
from utils import OptionError, is_out_of_memory

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue in [0, 1]
# The parts of `Backbone` -> of torchvision's ResNet.
PARTS = {"stem.0.": "conv1.", "stem.1.": "bn1."} | {f"stages.{k}.": f"layer{k + 1}." for k in range(4)}


def build_backbone(name: str, channels: int = 1, output_stride: int = 32) -> Backbone | TimmBackbone:
    """An encoder without pretrained weights.

    Args:
        name: a ResNet or ResNeXt of torchvision, or "timm." and the name of an encoder of timm.
        channels: channels of the image; the first convolution is built for them.
        output_stride: 32; with 16 or 8 the last stage or two keep the size and dilate their convolutions instead.

    Raises:
        OptionError: another `name`, one that timm cannot build, or whose maps are not those of the networks.
    """
    kind = TimmBackbone if name.startswith("timm.") else Backbone
    return kind(name, channels, output_stride)


def check_backbone(name: str) -> None:
    """Raises OptionError for a name of no encoder."""
    if name.startswith("timm."):
        _import_timm(name)
    elif name not in BACKBONES:
        raise OptionError(f"backbone {name}: must be {', '.join(BACKBONES)}, or timm.NAME")


class Normalization(nn.Module):
    """(image - mean) / std before an encoder: the image as it is, until pretrained weights say what they expect.

    Mean and std are buffers, so that checkpoints hold those that a network was trained with.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Those of red, green and blue, which repeat over the channels; a single channel gets their means."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            of_channel = [values[k % len(values)] for k in range(len(buffer))]
            buffer[:, 0, 0] = torch.tensor(of_channel if len(buffer) > 1 else [sum(values) / len(values)])

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return (image - self.mean) / self.std


# ---------------------------------------------------------------- torchvision


class Backbone(nn.Module):
    """The five stages of a residual network without its classifier ("Res-1" to "Res-5" in the paper's Figure 1).

    "resnext101_32x4d" is the paper's by its parameter count. See `build_backbone`.
    """

    initialized = False  # networks initialize it
    multiple = 1  # of which the image's sides must be

    def __init__(self, name: str, channels: int = 1, output_stride: int = 32) -> None:
        super().__init__()
        check_backbone(name)
        self.name = name
        resnet = _resnet(name)
        if output_stride == 8:
            _dilate(resnet.layer3, 2)
        if output_stride < 32:
            _dilate(resnet.layer4, 16 // output_stride * 2)
        if channels != 3:
            resnet.conv1 = nn.Conv2d(channels, resnet.conv1.out_channels, 7, stride=2, padding=3, bias=False)
        self.normalize = Normalization(channels)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        self.channels = [resnet.conv1.out_channels] + [resnet.fc.in_features // 2**k for k in (3, 2, 1, 0)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, C, H, W) -> maps of Res-1 to Res-5, at H/2, H/4, ..., H/32 or the stride (rounded up)."""
        x = self.stem[:3](self.normalize(image))
        maps, x = [x], self.stem[3](x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def load_pretrained(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Take `weights`, a state dict of torchvision's network or of timm's of this name, or download torchvision's.

        Those of the first convolution are spread over the channels; images are normalized from then on. Raises
        OptionError where there are none to download, or they cannot be; ValueError for tensors that do not fit.
        """
        if weights is None:
            weights = _downloaded(self.name).state_dict()
        with torch.device("meta"):
            expected = _resnet(self.name).state_dict()
        fitting = _fitting(weights, expected, ("fc",), ("conv1",), self.stem[0].in_channels)
        for name, tensor in self.state_dict().items():
            for ours, theirs in PARTS.items():
                if name.startswith(ours):
                    tensor.copy_(fitting[theirs + name.removeprefix(ours)])
        self.normalize.set(IMAGENET_MEAN, IMAGENET_STD)


def _resnet(name: str) -> ResNet:
    if name == "resnext101_32x4d":
        return ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    return get_model(name, weights=None)


def _downloaded(name: str) -> ResNet:
    """torchvision's network with its ImageNet weights."""
    if name == "resnext101_32x4d":
        raise OptionError(
            "pretrained: torchvision has no ImageNet weights for resnext101_32x4d; timm has: choose backbone "
            "timm.resnext101_32x4d, or another one, or give their file"
        )
    weights = get_model_weights(name).DEFAULT
    try:
        return get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no connection; a file that is cut or damaged
        reason, folder = str(error).partition(". ")[0], Path(torch.hub.get_dir(), "checkpoints")
        raise OptionError(
            f"pretrained: {weights.url} could not be downloaded or read ({reason}); put the file into {folder} "
            "by hand, or train from scratch"
        ) from None


def _dilate(stage: nn.Module, rate: int) -> None:
    """Take the stride out of a stage and spread the 3x3 convolutions after it instead (Yu & Koltun, 2016)."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            if module.kernel_size == (3, 3):
                spread = rate // 2 if module.stride == (2, 2) else rate
                module.dilation = module.padding = (spread, spread)
            module.stride = (1, 1)


# ---------------------------------------------------------------- timm


class TimmBackbone(nn.Module):
    """An encoder of timm (https://github.com/huggingface/pytorch-image-models) with its own initialization.

    Its maps are at H/4 to H/32 (or the stride), with one at H/2 before them where it has one. See `build_backbone`.
    Raises OptionError also (forward) for images of another size, where an encoder takes only one.
    """

    initialized = True
    multiple = 32

    def __init__(self, name: str, channels: int = 1, output_stride: int = 32) -> None:
        super().__init__()
        self.name, self.image_channels = name, channels
        settings = _import_timm(name).models.get_pretrained_cfg(name.removeprefix("timm."))
        options = {"features_only": True, "in_chans": channels}
        if output_stride != 32:
            options["output_stride"] = output_stride
        self.only_size = None
        try:
            self.encoder = _create(name, **options, **({"strict_img_size": False} if settings.fixed_input_size else {}))
        except OptionError:  # an encoder that takes no other size
            self.encoder, self.only_size = _create(name, **options), settings.input_size[1:]
        found = self.encoder.feature_info.reduction()
        self.reductions = found[-5:] if found[-5:-4] == [2] else found[-4:]
        wanted = [min(k, output_stride) for k in (4, 8, 16, 32)]
        if self.reductions[-4:] != wanted:
            raise OptionError(
                f"backbone {name}: has maps at 1/{', 1/'.join(map(str, found))} of the image; must have them at "
                f"1/{', 1/'.join(map(str, wanted))}: choose another one"
            )
        self.channels = self.encoder.feature_info.channels()[-len(self.reductions) :]
        self.normalize = Normalization(channels)
        tolerate_single_values(self.encoder)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, C, H, W), sides multiples of 32 -> maps at H/2, if it has one, H/4, ..., H/32 or the stride."""
        size = tuple(image.shape[-2:])
        if self.only_size not in (None, size):
            raise OptionError(
                f"backbone {self.name}: takes slices of {self.only_size} only, not {size}; choose another"
            )
        try:
            maps = self.encoder(self.normalize(image))[-len(self.channels) :]
        except AssertionError as error:
            raise OptionError(f"backbone {self.name}: takes no slices of {size} ({error}); choose another") from None
        if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC":
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        if any(x.shape[2:] != (size[0] // k, size[1] // k) for x, k in zip(maps, self.reductions, strict=True)):
            raise OptionError(f"backbone {self.name}: its maps of slices of {size} have other sides; choose another")
        return maps

    def load_pretrained(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Take `weights`, a state dict of timm's network, or what timm downloads; see `Backbone.load_pretrained`."""
        network = _create(self.name, pretrained=weights is None)
        classifiers, stems = (
            (names,) if isinstance(names, str) else names or ()
            for names in (network.pretrained_cfg[key] for key in ("classifier", "first_conv"))
        )
        expected = network.state_dict()
        fitting = _fitting(expected if weights is None else weights, expected, classifiers, stems, self.image_channels)
        # As an encoder the network has some "." as "_", and may lie in a "model" or "body".
        flat = {name.replace(".", "_"): tensor for name, tensor in fitting.items()}
        for name, tensor in self.encoder.state_dict().items():
            tensor.copy_(flat[re.sub(r"^(model|body)\.", "", name).replace(".", "_")])
        self.normalize.set(network.pretrained_cfg["mean"], network.pretrained_cfg["std"])


def _import_timm(name: str) -> ModuleType:
    """timm. Raises OptionError where it is missing, or has no network of this name."""
    try:
        import timm
    except ImportError:
        raise OptionError(f"backbone {name}: needs a library that is not installed: pip install timm") from None
    try:
        plain = re.fullmatch(r"timm\.[\w.-]+", name)  # timm takes other names for addresses and folders to load from
        known = plain and timm.is_model(plain[0].removeprefix("timm."))
        known = known and timm.models.get_pretrained_cfg(name.removeprefix("timm.")) is not None
    except RuntimeError:  # of an unknown tag
        known = False
    if not known:
        raise OptionError(f"backbone {name}: timm has no network or weights of this name; see timm.list_models()")
    return timm


def _create(name: str, **options: object) -> nn.Module:
    """timm's network. Raises OptionError where it does not take the options, or its weights cannot be downloaded."""
    try:
        return _import_timm(name).create_model(name.removeprefix("timm."), **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        stride = options.get("output_stride")
        reason = f"its maps cannot stay at 1/{stride} of the image, as the network needs it" if stride else str(error)
        raise OptionError(f"backbone {name}: {reason}; choose another one") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: there are no weights
        if not options.get("pretrained") or is_out_of_memory(error):
            raise
        reason = str(error.__cause__ or error).splitlines()[0]
        raise OptionError(
            f"pretrained: timm could not get the weights of {name} ({reason}); give their file, or train from scratch"
        ) from None


# ---------------------------------------------------------------- weights


def _fitting(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    classifiers: Sequence[str],
    stems: Sequence[str],
    channels: int,
) -> dict[str, Tensor]:
    """`weights` without the classifiers, the first convolutions (`stems`) spread over `channels`.

    Raises ValueError, with the names, where they are not those of `expected`, in name, shape or kind.
    """
    heads = tuple(f"{name}." for name in classifiers)
    given, wanted = ({k: v for k, v in each.items() if not str(k).startswith(heads)} for each in (weights, expected))
    wrong = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    wrong += [f"{name} is unknown" for name in given.keys() - wanted.keys()]
    for name in given.keys() & wanted.keys():
        tensor, shape = given[name], wanted[name].shape
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            wrong.append(f"{name} is {tuple(getattr(tensor, 'shape', ()))}, and should be {tuple(shape)}")
        elif not tensor.isfinite().all():
            wrong.append(f"{name} holds values that are not finite")
    if wrong:
        raise ValueError(f"{len(wrong)} tensors do not fit, such as: {'; '.join(sorted(wrong)[:3])}")
    for name in stems:
        given[f"{name}.weight"] = spread_over(given[f"{name}.weight"], channels)
    return given


def spread_over(weight: Tensor, channels: int) -> Tensor:
    """Weights of a first convolution (out, 3, rows, columns) for another number of channels.

    They repeat over the channels and keep the size of the response. Raises ValueError for weights of another shape.
    """
    if channels == 3:
        return weight
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f"these weights take images of 3 channels only, not of {channels}")
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % 3] * (3 / channels)
