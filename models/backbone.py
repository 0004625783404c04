"""ResNet and ResNeXt of torchvision as five feature maps, for any number of image channels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import Bottleneck, ResNet

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


class Backbone(nn.Module):
    """The five stages of a residual network without its classifier ("Res-1" to "Res-5" in the paper's Figure 1).

    Args:
        name: a ResNet or ResNeXt of torchvision, or "resnext101_32x4d", the paper's by its parameter count.
        channels: channels of the image; the first convolution is built for them.
        pretrained: load torchvision's ImageNet weights; the first convolution's are spread over `channels`.
        output_stride: 32; with 16 or 8 the last stage or two keep the size and dilate their convolutions instead.

    Raises:
        OptionError: another `name`; `pretrained` where torchvision has no weights, or they cannot be downloaded.
    """

    def __init__(self, name: str, channels: int = 1, pretrained: bool = False, output_stride: int = 32) -> None:
        super().__init__()
        resnet = _resnet(name, pretrained)
        if output_stride == 8:
            _dilate(resnet.layer3, 2)
        if output_stride < 32:
            _dilate(resnet.layer4, 16 // output_stride * 2)
        if channels != 3:
            resnet.conv1 = _adapt_stem(resnet.conv1, channels)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        self.channels = [resnet.conv1.out_channels] + [resnet.fc.in_features // 2**k for k in (3, 2, 1, 0)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, C, H, W) -> maps of Res-1 to Res-5, at H/2, H/4, ..., H/32 or the stride (rounded up)."""
        x = self.stem[:3](image)
        maps, x = [x], self.stem[3](x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _resnet(name: str, pretrained: bool) -> ResNet:
    if name not in BACKBONES:
        raise OptionError(f"backbone {name}: must be {', '.join(BACKBONES)}")
    if name != "resnext101_32x4d":
        weights = get_model_weights(name).DEFAULT if pretrained else None
        try:
            return get_model(name, weights=weights)
        except (OSError, RuntimeError) as error:  # no connection; a file that is cut or damaged
            if weights is None:
                raise
            reason, folder = str(error).partition(". ")[0], Path(torch.hub.get_dir(), "checkpoints")
            raise OptionError(
                f"pretrained: {weights.url} could not be downloaded or read ({reason}); put the file into {folder} "
                "by hand, or train from scratch"
            ) from None
    if pretrained:
        raise OptionError(
            "pretrained: torchvision has no ImageNet weights for resnext101_32x4d; "
            "choose resnext101_32x8d, resnext101_64x4d or another backbone, or train from scratch"
        )
    return ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)


def _dilate(stage: nn.Module, rate: int) -> None:
    """Take the stride out of a stage and spread the 3x3 convolutions after it instead (Yu & Koltun, 2016)."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            if module.kernel_size == (3, 3):
                spread = rate // 2 if module.stride == (2, 2) else rate
                module.dilation = module.padding = (spread, spread)
            module.stride = (1, 1)


def _adapt_stem(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The convolution for another number of channels: weights repeat over them and keep the size of the response."""
    stem = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
    rgb = torch.arange(channels) % 3 if channels > 1 else torch.arange(3)
    weight = conv.weight.detach()[:, rgb]
    with torch.no_grad():
        stem.weight.copy_(weight.sum(1, keepdim=True) if channels == 1 else weight * (3 / channels))
    return stem
