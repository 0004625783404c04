"""U-Net: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.network import Network, Output, only

WIDTHS = (64, 128, 256, 512, 1024)


class UNet(Network):
    """Five levels of two 3x3 convolutions with ReLU, maxima on the way down, transposed convolutions on the way up.

    As published without batch normalization, which the paper's 31,030,853 parameters confirm; convolutions keep the
    size, so that nothing is cropped.
    """

    multiple, smallest = 16, 32

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(_double_conv, (channels, *WIDTHS), WIDTHS))
        self.pool = nn.MaxPool2d(2)
        ups = list(zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(deep, width, 2, stride=2) for deep, width in ups)
        self.up = nn.ModuleList(_double_conv(deep, width) for deep, width in ups)
        self.head = nn.Conv2d(WIDTHS[0], classes, 1)
        self.initialize()

    def maps(self, image: Tensor) -> Output:
        """Image (B, C, H, W) -> Output with one map of logits at full size."""
        skips = [self.down[0](image)]
        for level in self.down[1:]:
            skips.append(level(self.pool(skips[-1])))
        x = skips.pop()
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            x = level(torch.cat([skips.pop(), enlarge(x)], 1))
        return only(self.head(x))


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
    )
