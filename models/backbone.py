"""Encoders as feature maps of five resolutions, for any number of image channels: torchvision's, or timm's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import Bottleneck, ResNet

from models.encoder_weights import Normalization, fitting
from models.timm_backbone import TimmBackbone, import_timm
from utils import OptionError

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
        import_timm(name)
    elif name not in BACKBONES:
        raise OptionError(f"backbone {name}: must be {', '.join(BACKBONES)}, or timm.NAME")


class Backbone(nn.Module):
    """The five stages of a residual network without its classifier ("Res-1" to "Res-5" in the paper's Figure 1).

    "resnext101_32x4d" is the paper's by its parameter count. See `build_backbone`.
    """

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
        found = fitting(weights, expected, ("fc",), ("conv1",), self.stem[0].in_channels)
        parts = {"conv1.": self.stem[0], "bn1.": self.stem[1]}
        parts |= {f"layer{k}.": stage for k, stage in enumerate(self.stages, 1)}
        for part, module in parts.items():
            names = [name for name in found if name.startswith(part)]
            module.load_state_dict({name.removeprefix(part): found[name] for name in names})
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
