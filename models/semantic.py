"""The semantic module (Figure 3), which guides the attention of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.network import double_conv


class SemanticModule(nn.Module):
    """The encoder-decoder that guides attention (Figure 3): 128 -> 256 -> 512 channels at H/4, and back.

    Sides must be multiples of 4, which MSDualGuided sees to.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *double_conv(channels, 2 * channels),
            nn.MaxPool2d(2),
            *double_conv(2 * channels, 4 * channels),
            nn.MaxPool2d(2),
        )
        self.decoder = nn.Sequential(
            *double_conv(4 * channels, 2 * channels),
            nn.ConvTranspose2d(2 * channels, 2 * channels, 2, stride=2),
            *double_conv(2 * channels, channels),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        )

    def forward(self, scales: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Each scale (B, C, H, W) -> latents (B, 4C, H/4, W/4) and reconstructions (B, C, H, W), scale by scale.

        One pass over all scales has the larger batches that devices want, and adds up fewer gradients.
        """
        latent = self._pass(self.encoder, torch.cat(tuple(scales)), len(scales))
        reconstruction = self._pass(self.decoder, latent, len(scales))
        return latent.chunk(len(scales)), reconstruction.chunk(len(scales))

    def _pass(self, layers: nn.Sequential, x: Tensor, scales: int) -> Tensor:
        """Batch normalization takes the statistics of each scale apart, as if the scales came one after the other."""
        for layer in layers:
            if self.training and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                x = torch.cat([layer(scale) for scale in x.chunk(scales)])
            elif isinstance(layer, nn.MaxPool2d):  # to find the maxima again costs less than to keep them, as int64
                x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x)
        return x


class Identity(nn.Module):
    """What stands for the semantic module without encoder-decoder ("dist", Table II): the features themselves.

    The guided loss is then the direct distance between the features of successive steps; there is nothing to
    reconstruct. The paper gives no formula for this row; this is our reading.
    """

    def forward(self, scales: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Each scale (B, C, H, W) -> the same, twice."""
        return scales, scales
