"""The guided loss of Sinha & Dolz (2020), Eq. 6, 7 and 10."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Output
from models.attention import at_least_float32


class LossTerms(NamedTuple):
    """Scalars; the three terms stand before their weighting."""

    total: Tensor
    segmentation: Tensor
    guided: Tensor
    reconstruction: Tensor


class GuidedLoss(nn.Module):
    """L = alpha * segmentation + beta * guided + gamma * reconstruction.

    segmentation: sum of the pixel-mean cross-entropies of all maps, raw and refined (Eq. 10's first term);
    guided (Eq. 7): sum over scales of MSE(latent of step i, latent of step i + 1), for all successive steps;
    reconstruction (Eq. 6): sum over scales and steps of MSE(input of the semantic module, its reconstruction).
    MSE is the mean over elements, as in the released code, not the paper's sum of squares. Nothing is detached.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 0.25, gamma: float = 0.1) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def forward(self, output: Output, target: Tensor) -> LossTerms:
        """Output of the network and target (B, H, W), class indices; pixels of -100 do not count."""
        with torch.autocast(target.device.type, enabled=False):
            maps = [at_least_float32(logits) for logits in (*output.raw, *output.refined)]
            segmentation = torch.stack([F.cross_entropy(logits, target.long()) for logits in maps]).sum()
            zero = segmentation.new_zeros(())
            successive = zip(output.latents, output.latents[1:], strict=False)
            guided = sum((_mse(a, b) for now, then in successive for a, b in zip(now, then, strict=True)), zero)
            reconstruction = sum((_mse(a, b) for a, b in output.reconstructions), zero)
            total = self.alpha * segmentation + self.beta * guided + self.gamma * reconstruction
        return LossTerms(total, segmentation, guided, reconstruction)


def _mse(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(at_least_float32(a), at_least_float32(b))
