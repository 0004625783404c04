"""U-Net: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.network import Network, Output

WIDTHS = (64, 128, 256, 512, 1024)


class UNet(Network):
    """Five levels of two 3x3 convolutions with ReLU, maxima on the way down, transposed convolutions on the way up.

    As published without batch normalization, which the paper's 31,030,853 parameters confirm; convolutions keep the
    size, so that nothing is cropped.
    """

    multiple, smallest = 16, 32

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        before = (channels, *WIDTHS[:-1])
        downward = list(zip(before, WIDTHS, strict=True))
        upward = [(deep, width) for width, deep in reversed(downward[1:])]
        self.down = nn.ModuleList(_double_conv(shallow, width) for shallow, width in downward)
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(deep, width, 2, stride=2) for deep, width in upward)
        self.up = nn.ModuleList(_double_conv(deep, width) for deep, width in upward)
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
        return Output.of_logits(self.head(x))


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
    )
