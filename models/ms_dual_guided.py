"""MS-Dual-Guided, the network of Sinha & Dolz (2020), and its ablations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import (
    AttentionLayer,
    ChannelAttention,
    Identity,
    PositionAttention,
    SemanticModule,
    conv_bn_prelu,
)
from models.backbone import Backbone

SCALES = 4  # Res-2 to Res-5
WIDTH = 64  # channels of each scale's features
MULTIPLE = 16  # the semantic module halves the H/4 maps twice
SMALLEST = 48  # pads 32 to 48: at 32 the coarsest map is one pixel, which batch normalization refuses at batch size 1


class Output(NamedTuple):
    """What the network returns in train mode. Scales run from the finest (Res-2) to the coarsest (Res-5)."""

    raw: list[Tensor]
    """Logits (B, classes, H, W) of each scale before refinement; empty without deep supervision."""
    refined: list[Tensor]
    """Logits (B, classes, H, W) of the refined scales, step by step; the last four are the last step's."""
    latents: list[list[Tensor]]
    """Of each step, the latent features of each scale; empty without guidance."""
    reconstructions: list[tuple[Tensor, Tensor]]
    """Input of the semantic module and its reconstruction, step by step and scale by scale."""


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

    def forward(self, x: Tensor, scale: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features (B, 128, H/4, W/4) -> refined (B, 64, H/4, W/4), latent and reconstruction (None: no guidance)."""
        attended = sum(layers[scale](x) for layers in (self.position, self.channel) if layers is not None)
        if self.semantic is None:
            return self.project[scale](attended), None, None
        latent, reconstruction = self.semantic(x)
        guide = self.guide[scale if len(self.guide) > 1 else 0]
        return self.project[scale](attended * guide(reconstruction)), latent, reconstruction


class MSDualGuided(nn.Module):
    """Multi-scale network with stacked, guided position and channel attention.

    Res-2..Res-5 are reduced to 64 channels at H/4 (F'_s) and fused (F_MS). Step 1 refines cat(F'_s, F_MS), step k + 1
    refines cat(F'_s, refined_k * F_MS). Eval mode returns the mean of the last step's four logit maps, as the released
    code does; the paper does not say.

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
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if not (position_attention or channel_attention):
            raise ValueError("position_attention and channel_attention are both off: a refinement step needs one")
        if variant not in ("paper", "released"):
            raise ValueError(f"variant must be paper or released, not {variant!r}")
        options = (variant, position_attention, channel_attention, guidance, encoder_decoder)
        # The first step has no heads of its own unless it is the last.
        supervised_steps = max(steps - 1, 1) if deep_supervision else 1

        self.backbone = Backbone(backbone, channels, pretrained)
        self.reduce = nn.ModuleList(conv_bn_prelu(width, WIDTH, 1) for width in self.backbone.channels)
        self.fuse = nn.Sequential(
            conv_bn_prelu(SCALES * WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 3), conv_bn_prelu(WIDTH, WIDTH, 1)
        )
        self.steps = nn.ModuleList(RefinementStep(*options) for _ in range(steps))
        self.raw_heads = _heads(classes) if deep_supervision else None
        self.refined_heads = nn.ModuleList(_heads(classes) for _ in range(supervised_steps))
        self._initialize(keep=self.backbone if pretrained else None)

    def _initialize(self, keep: nn.Module | None) -> None:
        """The released code's initialization, which must not touch pretrained weights: Xavier, and BN near one."""
        kept = set(keep.modules()) if keep else set()
        for module in self.modules():
            if module in kept:
                continue
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Output | Tensor:
        """Image (B, C, H, W), any H, W >= 32 -> Output in train mode, mean logits (B, classes, H, W) in eval mode."""
        image, size = _pad(image)
        features, fused = self._features(image)

        maps, latents, reconstructions = [], [], []
        for step in self.steps:
            guides = [refined * fused for refined in maps[-1]] if maps else [fused] * SCALES
            inputs = [torch.cat(pair, 1) for pair in zip(features, guides, strict=True)]
            refined, latent, reconstruction = zip(*(step(x, scale) for scale, x in enumerate(inputs)), strict=True)
            maps.append(refined)
            if step.semantic is not None:
                latents.append(list(latent))
                if not isinstance(step.semantic, Identity):
                    reconstructions += zip(inputs, reconstruction, strict=True)

        if not self.training:
            logits = [head(x) for head, x in zip(self.refined_heads[-1], maps[-1], strict=True)]
            return _resize(torch.stack(logits).mean(0), image, size)
        raw = [head(x) for head, x in zip(self.raw_heads or [], features, strict=bool(self.raw_heads))]
        supervised = zip(self.refined_heads, maps[-len(self.refined_heads) :], strict=True)
        refined = [head(x) for heads, step_maps in supervised for head, x in zip(heads, step_maps, strict=True)]
        return Output(
            [_resize(x, image, size) for x in raw], [_resize(x, image, size) for x in refined], latents, reconstructions
        )

    def _features(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """F'_1..F'_4 and F_MS, each (B, 64, H/4, W/4)."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, self.backbone(image), strict=True)]
        size = reduced[0].shape[-2:]
        features = [reduced[0]] + [F.interpolate(x, size, mode="bilinear") for x in reduced[1:]]
        return features, self.fuse(torch.cat(features[::-1], 1))


def _heads(classes: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(WIDTH, classes, 1) for _ in range(SCALES))


def _pad(image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The image with zeros at its right and bottom up to sides that the network takes, and its own sides."""
    height, width = image.shape[-2:]
    if min(height, width) < 32:
        raise ValueError(f"images must be at least 32 x 32 pixels, not {height} x {width}")
    right, bottom = (max(SMALLEST, -(-side // MULTIPLE) * MULTIPLE) - side for side in (width, height))
    return F.pad(image, (0, right, 0, bottom)), (height, width)


def _resize(logits: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits at H/4 -> bilinear to the padded image, cropped to `size`."""
    return F.interpolate(logits, image.shape[-2:], mode="bilinear")[..., : size[0], : size[1]]
