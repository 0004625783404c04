"""The multi-scale trunk of Figure 1 that MS-Dual-Guided and DAF have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.network import Network, conv_bn_prelu

SCALES = 4  # Res-2 to Res-5
WIDTH = 64  # channels of each scale's features


class MultiScale(Network):
    """Backbone, reduction of its four maps to 64 channels (F'_s), their fusion at H/4 (F_MS).

    16: the semantic module halves the H/4 maps twice. 48: at 32 pixels the coarsest map would be a single one, which
    batch normalization refuses for a single image.

    Args:
        channels, backbone, pretrained: see `models.backbone.Backbone`.
        native: each scale keeps its own resolution, H/4 to H/32; else all are enlarged to H/4, as in the paper.
    """

    multiple, smallest = 16, 48

    def __init__(self, channels: int, backbone: str, pretrained: bool, native: bool = False) -> None:
        super().__init__()
        self.native = native
        self.backbone = Backbone(backbone, channels, pretrained)
        self.reduce = nn.ModuleList(conv_bn_prelu(width, WIDTH, 1) for width in self.backbone.channels[1:])
        self.fuse = nn.Sequential(
            conv_bn_prelu(SCALES * WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 1)
        )

    def features(self, image: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """F'_1..F'_4 and F_MS at the resolution of each, (B, 64, H_s, W_s), and Res-1, (B, 64, H/2, W/2)."""
        first, *maps = self.backbone(image)
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        enlarged = enlarge(reduced)
        fused = self.fuse(torch.cat(enlarged[::-1], 1))
        if not self.native:
            return enlarged, [fused] * SCALES, first
        return reduced, [F.adaptive_avg_pool2d(fused, x.shape[-2:]) for x in reduced], first

    def prediction(self, refined: list[Tensor]) -> Tensor:
        """The mean of the last step's four logit maps, as in the released code; the paper does not say."""
        return torch.stack(enlarge(refined[-SCALES:])).mean(0)


def enlarge(scales: list[Tensor]) -> list[Tensor]:
    """Maps (B, C, ...) of any resolution at that of the first, H/4, bilinearly."""
    size = scales[0].shape[-2:]
    return [x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear") for x in scales]
