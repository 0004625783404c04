"""The semantic module (Figure 3), which guides the attention of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.network import BatchNorm, double_conv


class SemanticModule(nn.Module):
    """The encoder-decoder that guides attention (Figure 3): 128 -> width -> 2 width channels, at a quarter, and back.

    The paper's width is 256. Sides that are no multiples of 4 are padded with their last pixels.

    The scales share the layers. In training, batch normalization takes the statistics of each scale apart. In
    evaluation it has one mean and variance for all, which fit none of them; with `norms`, the number of scales, each
    has a batch normalization of its own instead (Chang et al., 2019).
    """

    def __init__(self, channels: int, width: int, norms: int = 0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *double_conv(channels, width),
            nn.MaxPool2d(2),
            *double_conv(width, 2 * width),
            nn.MaxPool2d(2),
        )
        inner = min(width, channels)
        self.decoder = nn.Sequential(
            *double_conv(2 * width, width),
            nn.ConvTranspose2d(width, width, 2, stride=2),
            *double_conv(width, inner),
            nn.ConvTranspose2d(inner, channels, 2, stride=2),
        )
        for layers in (self.encoder, self.decoder) if norms else ():
            for k, layer in enumerate(layers):
                if isinstance(layer, BatchNorm):
                    layers[k] = nn.ModuleList(BatchNorm(layer.num_features) for _ in range(norms))

    def forward(self, scales: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Each scale (B, C, H, W) -> latents (B, 2 width, H/4, W/4) and reconstructions (B, C, H, W), scale by scale.

        In training, one pass over all scales of one size has the larger batches that devices want, and adds up fewer
        gradients. Else, batches are large and memory is what counts.
        """
        one_size = self.training and all(x.shape == scales[0].shape for x in scales)
        # The coarsest first, as in the released code: the last one weighs most in running statistics.
        order = range(len(scales))[::-1]
        latents, reconstructions = [], []
        for of_pass in [order] if one_size else [[k] for k in order]:
            x = torch.cat([scales[k] for k in of_pass]) if one_size else scales[of_pass[0]]
            height, width = x.shape[-2:]
            if height % 4 or width % 4:
                x = F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
            latent = self._pass(self.encoder, x, of_pass)
            reconstruction = self._pass(self.decoder, latent, of_pass)[..., :height, :width]
            latents += _chunks(latent, len(of_pass))
            reconstructions += _chunks(reconstruction, len(of_pass))
        return latents[::-1], reconstructions[::-1]

    def _pass(self, layers: nn.Sequential, x: Tensor, scales: Sequence[int]) -> Tensor:
        """The layers for the scales of these numbers, whose batches stand one after the other in `x`."""
        for layer in layers:
            if isinstance(layer, nn.ModuleList | nn.modules.batchnorm._BatchNorm):
                norms = [layer[k] if isinstance(layer, nn.ModuleList) else layer for k in scales]
                parts = [norm(part) for norm, part in zip(norms, _chunks(x, len(scales)), strict=True)]
                x = torch.cat(parts) if len(parts) > 1 else parts[0]
            elif isinstance(layer, nn.MaxPool2d):  # to find the maxima again costs less than to keep them, as int64
                x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x)
        return x


def _chunks(x: Tensor, count: int) -> Sequence[Tensor]:
    """`x.chunk`, which ONNX has no form of for a single chunk of any batch."""
    return x.chunk(count) if count > 1 else [x]


class DirectDistance(nn.Module):
    """What stands for the semantic module without encoder-decoder ("dist", Table II): the features themselves.

    The guided loss is then the direct distance between the features of successive steps; there is nothing to
    reconstruct. The paper gives no formula for this row; this is our reading.
    """

    def forward(self, scales: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Each scale (B, C, H, W) -> the same, twice."""
        return scales, scales
