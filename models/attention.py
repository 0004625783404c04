"""Position and channel attention (Eq. 1 to 5) and the layers around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.kernels.blocked_attention import attend
from models.network import at_least_float32, conv_bn_prelu


class PositionAttention(nn.Module):
    """Position attention (PAM, Eq. 1-2): each position is a mean over all positions, weighted by their likeness.

    out = gamma * softmax(q k^T) v + x, with q and k 1x1 convolutions to C/8 channels, v to C; gamma starts at 0.
    With `pooling` above 1, k and v are those of the means over squares of that side, as in PVTv2 (Wang et al., 2022).
    """

    def __init__(self, channels: int, pooling: int = 1) -> None:
        super().__init__()
        self.pooling = pooling
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        pooled = self.pooled(x)
        maps = self.query(x), self.key(pooled), self.value(pooled)
        attended = attend(*(each.flatten(2).mT.contiguous() for each in maps))
        return torch.addcmul(x, attended.mT.reshape(x.shape), self.gamma.to(x.dtype))

    def pooled(self, x: Tensor) -> Tensor:
        """What keys and values are taken from."""
        return F.avg_pool2d(x, self.pooling, ceil_mode=True) if self.pooling > 1 else x


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
        return torch.addcmul(x, attended, self.gamma.to(x.dtype))

    def attend(self, x: Tensor) -> Tensor:
        """weights X; recomputed in the backward pass, which is cheaper than to keep X in float32."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = at_least_float32(x).flatten(2).mT  # of (B, N, C), as channels_last has them
            energy = tokens.mT @ tokens
            if self.inverted:
                energy = energy.amax(-1, keepdim=True) - energy
            # Weights below 1e-30 change no sum, and processors take long over those below 1e-38.
            weights = F.threshold(energy.softmax(-1), 1e-30, 0.0)
            return (tokens @ weights.mT).mT.reshape(x.shape).to(x.dtype)


class AttentionLayer(nn.Sequential):
    """Convolution to the working width, an attention module, another convolution ("PAM layer", "CAM layer")."""

    def __init__(self, in_channels: int, channels: int, attention: nn.Module) -> None:
        super().__init__(conv_bn_prelu(in_channels, channels, 3), attention, conv_bn_prelu(channels, channels, 3))
