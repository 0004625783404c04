"""Position and channel attention (Eq. 1 to 5) and the layers around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.kernels.blocked_attention import attend
from models.network import at_least_float32, conv_bn_prelu


class PositionAttention(nn.Module):
    """Position attention (PAM, Eq. 1-2): each position is a mean over all positions, weighted by their likeness.

    out = gamma * softmax(q k^T) v + x, with q and k 1x1 convolutions to C/8 channels, v to C; gamma starts at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        query, key, value = (conv(x).flatten(2).mT.contiguous() for conv in (self.query, self.key, self.value))
        attended = attend(query, key, value)
        return self.gamma * attended.mT.reshape(x.shape) + x


class ChannelAttention(nn.Module):
    """Channel attention (CAM): each channel is a mean over all channels, weighted by their likeness.

    With the energy E = X X^T over positions, the weights are softmax(E) in the paper (Eq. 4) and
    softmax(rowmax(E) - E) in the released code, after DANet. out = gamma * weights X + x; gamma starts at 0.
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.inverted = variant == "released"
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        attended = checkpoint(self.attend, x, use_reentrant=False, preserve_rng_state=False)
        return self.gamma * attended + x

    def attend(self, x: Tensor) -> Tensor:
        """weights X; recomputed in the backward pass, which is cheaper than to keep X in float32."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = at_least_float32(x).flatten(2).mT  # of (B, N, C), as channels_last has them
            energy = tokens.mT @ tokens
            if self.inverted:
                energy = energy.amax(-1, keepdim=True) - energy
            return (tokens @ energy.softmax(-1).mT).mT.reshape(x.shape).to(x.dtype)


class AttentionLayer(nn.Sequential):
    """Convolution to the working width, an attention module, another convolution ("PAM layer", "CAM layer")."""

    def __init__(self, in_channels: int, channels: int, attention: nn.Module) -> None:
        super().__init__(conv_bn_prelu(in_channels, channels, 3), attention, conv_bn_prelu(channels, channels, 3))
