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
    """Backbone, reduction of its four maps to 64 channels at H/4 (F'_s), their fusion (F_MS).

    16: the semantic module halves the H/4 maps twice. 48: at 32 pixels the coarsest map would be a single one, which
    batch normalization refuses for a single image.
    """

    multiple, smallest = 16, 48

    def __init__(self, channels: int, backbone: str, pretrained: bool) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, channels, pretrained)
        self.reduce = nn.ModuleList(conv_bn_prelu(width, WIDTH, 1) for width in self.backbone.channels[1:])
        self.fuse = nn.Sequential(
            conv_bn_prelu(SCALES * WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 1)
        )

    def features(self, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """F'_1..F'_4 and F_MS, each (B, 64, H/4, W/4), and Res-1, (B, 64, H/2, W/2)."""
        first, *maps = self.backbone(image)
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        size = reduced[0].shape[-2:]
        features = [reduced[0]] + [F.interpolate(x, size, mode="bilinear") for x in reduced[1:]]
        return features, self.fuse(torch.cat(features[::-1], 1)), first

    def prediction(self, refined: list[Tensor]) -> Tensor:
        """The mean of the last step's four logit maps, as in the released code; the paper does not say."""
        return torch.stack(refined[-SCALES:]).mean(0)
