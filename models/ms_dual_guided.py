"""MS-Dual-Guided, the network of Sinha & Dolz (2020), and its ablations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention import (
    AttentionLayer,
    ChannelAttention,
    Identity,
    PositionAttention,
    SemanticModule,
)
from models.multi_scale import SCALES, WIDTH, MultiScale
from models.network import Output, heads


class RefinementStep(nn.Module):
    """One guided attention module at each of the four scales (Figure 2)."""

    def __init__(
        self, variant: str, position_attention: bool, channel_attention: bool, guidance: bool, encoder_decoder: bool
    ) -> None:
        super().__init__()
        layers = nn.ModuleList
        width = 2 * WIDTH
        self.position = self.channel = self.semantic = self.guide = None
        if position_attention:
            self.position = layers(AttentionLayer(width, WIDTH, PositionAttention(WIDTH)) for _ in range(SCALES))
        if channel_attention:
            self.channel = layers(AttentionLayer(width, WIDTH, ChannelAttention(variant)) for _ in range(SCALES))
        if guidance:
            self.semantic = SemanticModule(width) if encoder_decoder else Identity()
            shared = variant == "paper"
            self.guide = layers(nn.Conv2d(width, WIDTH, 3, padding=1) for _ in range(1 if shared else SCALES))
        self.project = layers(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(SCALES))

    def forward(self, inputs: list[Tensor]) -> tuple[list[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Each scale (B, 128, H/4, W/4) -> refined (B, 64, H/4, W/4), latents and reconstructions (none: no guidance).

        Lists run over the scales.
        """
        halves = [layers for layers in (self.position, self.channel) if layers is not None]
        attended = [sum(layer(x) for layer in layers) for x, *layers in zip(inputs, *halves, strict=True)]
        latents, reconstructions = (), ()
        if self.semantic is not None:
            latents, reconstructions = self.semantic(inputs)
            guides = [*self.guide] * (SCALES // len(self.guide))
            attended = [x * guide(y) for x, y, guide in zip(attended, reconstructions, guides, strict=True)]
        return [project(x) for x, project in zip(attended, self.project, strict=True)], latents, reconstructions


class MSDualGuided(MultiScale):
    """Multi-scale network with stacked, guided position and channel attention.

    Res-2..Res-5 are reduced to 64 channels at H/4 (F'_s) and fused (F_MS). Step 1 refines cat(F'_s, F_MS), step k + 1
    refines cat(F'_s, refined_k * F_MS).

    Args:
        channels, classes: of the image, and of the target with the background.
        backbone, pretrained: see `models.backbone.Backbone`.
        steps: refinement steps, at least 1.
        position_attention, channel_attention: the two halves of a step; at least one.
        guidance: the semantic module, its guiding convolution and its losses; without it the paper's MS-Dual.
        encoder_decoder: False replaces the semantic module by the direct distance ("dist" in Table II).
        deep_supervision: heads on the raw maps and on steps 2, 3, ...; without it on the last step alone.
        variant: "paper" shares the guiding convolution over the scales and uses Eq. 4 in channel attention, which the
            paper's text and its parameter counts say; "released" does what the released code does.

    Raises:
        ValueError: fewer than one step, no attention at all, or (forward) an image smaller than 32 pixels.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 5,
        backbone: str = "resnext101_32x4d",
        pretrained: bool = False,
        steps: int = 2,
        position_attention: bool = True,
        channel_attention: bool = True,
        guidance: bool = True,
        encoder_decoder: bool = True,
        deep_supervision: bool = True,
        variant: str = "paper",
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if not (position_attention or channel_attention):
            raise ValueError("position_attention and channel_attention are both off: a refinement step needs one")
        if variant not in ("paper", "released"):
            raise ValueError(f"variant must be paper or released, not {variant!r}")
        options = (variant, position_attention, channel_attention, guidance, encoder_decoder)
        # The first step has no heads of its own unless it is the last.
        supervised_steps = max(steps - 1, 1) if deep_supervision else 1

        super().__init__(channels, backbone, pretrained)
        self.steps = nn.ModuleList(RefinementStep(*options) for _ in range(steps))
        self.raw_heads = heads(WIDTH, classes, SCALES) if deep_supervision else None
        self.refined_heads = nn.ModuleList(heads(WIDTH, classes, SCALES) for _ in range(supervised_steps))
        self.initialize(keep=self.backbone if pretrained else None)

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with logits at H/4."""
        features, fused = self.features(image)
        maps, latents, reconstructions = [], [], []
        for step in self.steps:
            guides = [refined * fused for refined in maps[-1]] if maps else [fused] * SCALES
            inputs = [torch.cat(pair, 1) for pair in zip(features, guides, strict=True)]
            refined, latent, reconstruction = step(inputs)
            maps.append(refined)
            if step.semantic is not None:
                latents.append(list(latent))
                if not isinstance(step.semantic, Identity):
                    reconstructions += zip(inputs, reconstruction, strict=True)
        supervised = zip(self.refined_heads, maps[-len(self.refined_heads) :], strict=True)
        refined = [head(x) for pair in supervised for head, x in zip(*pair, strict=True)]
        raw = [head(x) for head, x in zip(self.raw_heads or [], features, strict=bool(self.raw_heads))]
        return Output(raw, refined, latents, reconstructions)
