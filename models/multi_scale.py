"""The multi-scale trunk of Figure 1 that MS-Dual-Guided and DAF have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import build_backbone
from models.network import Network, conv_bn_prelu, resized

SCALES = 4  # Res-2 to Res-5
WIDTH = 64  # channels of each scale's features


class MultiScale(Network):
    """Backbone, reduction of its four maps to 64 channels (F'_s), their fusion at H/4 (F_MS).

    Args:
        channels, backbone: see `models.backbone.build_backbone`.
        native: each scale keeps its own resolution, H/4 to H/32, also in the losses; else all are enlarged to H/4, as
            in the paper.
    """

    multiple = 16  # the semantic module halves the H/4 maps twice
    smallest = 48  # at 32 pixels the coarsest map would be a single value, of which there is no variance

    def __init__(self, channels: int, backbone: str, native: bool = False) -> None:
        super().__init__()
        self.native = native
        if native:  # so that a position of the coarsest map, too, stands for a square of whole pixels
            self.multiple, self.smallest = 32, 64
        self.backbone = build_backbone(backbone, channels)
        self.pad_for(self.backbone)
        self.reduce = nn.ModuleList(conv_bn_prelu(width, WIDTH, 1) for width in self.backbone.channels[-SCALES:])
        self.fuse = nn.Sequential(
            conv_bn_prelu(SCALES * WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 1)
        )

    def features(self, image: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """F'_1..F'_4 and F_MS at the resolution of each, (B, 64, H_s, W_s), and the backbone's finest map."""
        found = self.backbone(image)
        first, maps = found[0], found[-SCALES:]
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        enlarged = [resized(x, reduced[0]) for x in reduced]
        fused = self.fuse(torch.cat(enlarged[::-1], 1))
        if not self.native:
            return enlarged, [fused] * SCALES, first
        fusions = [fused]
        for _ in reduced[1:]:
            fusions.append(F.avg_pool2d(fusions[-1], 2))
        return reduced, fusions, first

    def prediction(self, refined: list[Tensor]) -> Tensor:
        """The mean of the last step's four logit maps, as in the released code; the paper does not say."""
        last = refined[-SCALES:]
        return sum(resized(x, last[0]) for x in last) / SCALES
