"""DANet: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention import ChannelAttention, PositionAttention
from models.backbone import build_backbone
from models.network import Network, Output


class DANet(Network):
    """Position and channel attention in parallel on Res-5 of a ResNet that is dilated to H/8.

    Three maps are supervised: of the sum, which is the prediction, and of either branch. The paper's 68,475,961
    parameters include the 2,049,000 of ResNet-101's unused classifier, which is left out here.
    """

    multiple, smallest = 8, 32

    def __init__(self, channels: int, classes: int, backbone: str = "resnet101") -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, channels, output_stride=8)
        self.pad_for(self.backbone)
        width = self.backbone.channels[-1]
        inner = width // 4
        self.position = nn.Sequential(
            _conv_bn_relu(width, inner), PositionAttention(inner), _conv_bn_relu(inner, inner)
        )
        self.channel = nn.Sequential(
            _conv_bn_relu(width, inner), ChannelAttention("released"), _conv_bn_relu(inner, inner)
        )
        self.heads = nn.ModuleList(nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(inner, classes, 1)) for _ in range(3))
        self.initialize()

    def maps(self, image: Tensor) -> Output:
        """Image (B, C, H, W) -> Output with three maps of logits at H/8: of the sum, of position, of channel."""
        deepest = self.backbone(image)[-1]
        position, channel = self.position(deepest), self.channel(deepest)
        features = (position + channel, position, channel)
        return Output.of_logits(*(head(x) for head, x in zip(self.heads, features, strict=True)))


def _conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )
