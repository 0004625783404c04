"""Attention U-Net: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.network import Network, Output, conv_bn_relu, double_conv

WIDTHS = (64, 128, 256, 512, 1024)


class AttentionGate(nn.Module):
    """Weights a skip connection x in [0, 1] by the features g from below: x * sigmoid(psi(relu(W_g g + W_x x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.gate = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.skip = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        """g and x (B, C, H, W) -> the same shape."""
        return x * self.psi((self.gate(g) + self.skip(x)).relu())


class AttentionUNet(Network):
    """U-Net with batch normalization whose skip connections pass a gate. The paper's 34,877,681 parameters are those
    of this 2D form: nearest upsampling and a convolution on the way up, gates at the resolution of the skip."""

    multiple, smallest = 16, 48

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        before = (channels, *WIDTHS[:-1])
        downward = list(zip(before, WIDTHS, strict=True))
        upward = [(deep, width) for width, deep in reversed(downward[1:])]
        self.down = nn.ModuleList(nn.Sequential(*double_conv(shallow, width)) for shallow, width in downward)
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), *conv_bn_relu(deep, width)) for deep, width in upward
        )
        self.gates = nn.ModuleList(AttentionGate(width) for _, width in upward)
        self.up = nn.ModuleList(nn.Sequential(*double_conv(deep, width)) for deep, width in upward)
        self.head = nn.Conv2d(WIDTHS[0], classes, 1)
        self.initialize()

    def maps(self, image: Tensor) -> Output:
        """Image (B, C, H, W) -> Output with one map of logits at full size."""
        skips = [self.down[0](image)]
        for level in self.down[1:]:
            skips.append(level(self.pool(skips[-1])))
        x = skips.pop()
        for enlarge, gate, level in zip(self.enlarge, self.gates, self.up, strict=True):
            x = enlarge(x)
            x = level(torch.cat([gate(x, skips.pop()), x], 1))
        return Output.of_logits(self.head(x))
