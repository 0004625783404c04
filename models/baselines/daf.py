"""DAF: Wang et al., "Deep Attentional Features for Prostate Segmentation in Ultrasound", MICCAI 2018."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention import AttentionLayer, ChannelAttention, PositionAttention
from models.multi_scale import SCALES, WIDTH, MultiScale
from models.network import Output, conv_bn_prelu, heads


class DAF(MultiScale):
    """Attention at each scale on cat(F'_s, F_MS); its product with F_MS refines F'_s; eight heads are supervised.

    `attention` is DAF's own ("sigmoid"), or what the ablation of Table I puts in its place: "position" (PAM), "channel"
    (CAM), or "dual" (both and their sum: DANet's attention, one step). The paper's parameter counts say that these rows
    keep DAF's refinement. They are the counts of this network for "sigmoid" (43,482,179) and "position" (43,486,343).
    "channel" has 43,465,543, one digit from the printed 43,485,543; "dual" has 43,946,899, the printed 43,980,179 less
    eight 1x1 convolutions of DANet's head that the sum does not use.
    """

    def __init__(self, channels: int, classes: int, backbone: str, attention: str, variant: str) -> None:
        super().__init__(channels, backbone)
        self.attention = nn.ModuleList(_attention(attention, variant) for _ in range(SCALES))
        self.refine = nn.ModuleList(
            nn.Sequential(
                conv_bn_prelu(2 * WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 1)
            )
            for _ in range(SCALES)
        )
        self.raw_heads = heads(WIDTH, classes, SCALES)
        self.refined_heads = heads(WIDTH, classes, SCALES)
        self.initialize()

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with four raw and four refined maps of logits at H/4."""
        features, (fused, *_), _ = self.features(image)
        raw, refined = [], []
        for scale, x in enumerate(features):
            attended = self.attention[scale](torch.cat([x, fused], 1)) * fused
            raw.append(self.raw_heads[scale](x))
            refined.append(self.refined_heads[scale](self.refine[scale](torch.cat([x, attended], 1))))
        return Output(raw, refined, [], [])


class DualAttention(nn.Module):
    """Position and channel attention in parallel; a 1x1 convolution of their sum."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.position, self.channel = _attention("position", variant), _attention("channel", variant)
        self.project = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 128, H, W) -> (B, 64, H, W)."""
        return self.project(self.position(x) + self.channel(x))


def _attention(name: str, variant: str) -> nn.Module:
    """128 -> 64 channels."""
    if name == "position":
        return AttentionLayer(2 * WIDTH, WIDTH, PositionAttention(WIDTH))
    if name == "channel":
        return AttentionLayer(2 * WIDTH, WIDTH, ChannelAttention(variant))
    if name == "dual":
        return DualAttention(variant)
    return nn.Sequential(
        conv_bn_prelu(2 * WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid()
    )
