"""PAN: Li, Xiong, An & Wang, "Pyramid Attention Network for Semantic Segmentation", BMVC 2018."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbone import build_backbone
from models.network import BatchNorm, Network, Output, conv_bn_relu, resized


class PAN(Network):
    """Feature pyramid attention on Res-5 (dilated to H/16), then global attention upsampling along Res-4 to Res-2.

    The whole decoder is as wide as there are classes. So the paper's parameter counts say: 21,323,991 (ResNet-34) and
    42,675,415 (ResNet-101) are this network's with four outputs; with five they are 21,329,098 and 42,695,690.
    """

    multiple, smallest = 16, 128  # the pyramid halves the H/16 maps three times

    def __init__(self, channels: int, classes: int, backbone: str = "resnet101") -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, output_stride=16)
        self.pad_for(self.backbone)
        *widths, deepest = self.backbone.channels[-4:]
        self.pyramid = FeaturePyramidAttention(deepest, classes)
        self.up = nn.ModuleList(GlobalAttentionUpsample(width, classes) for width in reversed(widths))
        self.initialize()

    def maps(self, image: Tensor) -> Output:
        """Image (B, C, H, W) -> Output with one map of logits at H/4."""
        *maps, deepest = self.backbone(image)[-4:]
        x = self.pyramid(deepest)
        for up, skip in zip(self.up, reversed(maps), strict=True):
            x = up(x, skip)
        return Output.of_logits(x)


class FeaturePyramidAttention(nn.Module):
    """Features times a pyramid of 7x7, 5x5 and 3x3 convolutions at one half, fourth and eighth, plus their mean."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(in_channels, channels, 1))
        self.features = nn.Sequential(*conv_bn_relu(in_channels, channels, 1))
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), *conv_bn_relu(width, 1, kernel))
            for width, kernel in ((in_channels, 7), (1, 5), (1, 3))
        )
        self.across = nn.ModuleList(nn.Sequential(*conv_bn_relu(1, 1, kernel)) for kernel in (7, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W)."""
        level, levels, above = x, [], [x]
        for down, across in zip(self.down, self.across, strict=True):
            level = down(level)
            levels.append(across(level))
            above.append(level)
        attention = 0
        for level, like in zip(reversed(levels), reversed(above[:-1]), strict=True):
            attention = resized(attention + level, like)
        return attention * self.features(x) + resized(self.mean(x), x)


class GlobalAttentionUpsample(nn.Module):
    """A skip connection, its channels weighted by the mean of the deeper features, plus those features."""

    def __init__(self, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), BatchNorm(channels), nn.Sigmoid()
        )
        self.skip = nn.Sequential(*conv_bn_relu(skip_channels, channels))

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """deep (B, channels, h, w), skip (B, C, H, W) -> (B, channels, H, W)."""
        return resized(deep, skip) + self.skip(skip) * self.weight(deep)
