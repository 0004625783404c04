"""MS-Dual-Guided, the network of Sinha & Dolz (2020), and its ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attention import AttentionLayer, ChannelAttention, PositionAttention
from models.multi_scale import SCALES, WIDTH, MultiScale
from models.network import Output, conv_bn_prelu, heads, resized
from models.semantic import DirectDistance, SemanticModule
from utils import OptionError


@dataclass(frozen=True)
class StepOptions:
    """What a refinement step is made of; see `MSDualGuided`."""

    variant: str
    position_attention: bool
    channel_attention: bool
    key_pooling: Sequence[int]
    """Of each scale."""
    guidance: bool
    encoder_decoder: bool
    semantic_channels: int
    norm_by_scale: bool


class RefinementStep(nn.Module):
    """One guided attention module at each of the four scales (Figure 2)."""

    def __init__(self, options: StepOptions) -> None:
        super().__init__()
        width = 2 * WIDTH
        layers = nn.ModuleList
        self.position = self.channel = self.semantic = self.guide = None
        if options.position_attention:
            self.position = layers(
                AttentionLayer(width, WIDTH, PositionAttention(WIDTH, pooling)) for pooling in options.key_pooling
            )
        if options.channel_attention:
            self.channel = layers(
                AttentionLayer(width, WIDTH, ChannelAttention(options.variant)) for _ in range(SCALES)
            )
        if options.guidance:
            norms = SCALES if options.norm_by_scale else 0
            if options.encoder_decoder:
                self.semantic = SemanticModule(width, options.semantic_channels, norms)
            else:
                self.semantic = DirectDistance()
            shared = options.variant == "paper"
            self.guide = layers(nn.Conv2d(width, WIDTH, 3, padding=1) for _ in range(1 if shared else SCALES))
        self.project = layers(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(SCALES))

    def forward(self, inputs: list[Tensor]) -> tuple[list[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Each scale (B, 128, H_s, W_s) -> refined (B, 64, H_s, W_s), latents and reconstructions (none: no guidance).

        Lists run over the scales.
        """
        attended = [self.attend(x, scale) for scale, x in enumerate(inputs)]
        latents, reconstructions = (), ()
        if self.semantic is not None:
            latents, reconstructions = self.semantic(inputs)
            shared = len(self.guide) == 1
            guides = [self.guide[0 if shared else scale](x) for scale, x in enumerate(reconstructions)]
            attended = [x * guide for x, guide in zip(attended, guides, strict=True)]
        refined = [project(x) for x, project in zip(attended, self.project, strict=True)]
        return refined, latents, reconstructions

    def attend(self, x: Tensor, scale: int) -> Tensor:
        """The sum of position and channel attention at a scale: (B, 128, H_s, W_s) -> (B, 64, H_s, W_s)."""
        halves = [layers[scale](x) for layers in (self.position, self.channel) if layers is not None]
        return sum(halves)


class FineDecoder(nn.Module):
    """From the maps of a step and Res-1 to logits at the image's size, as the last two levels of a U-Net.

    The paper has none: its logits are at H/4. Here the sum of the scales, each enlarged to the next finer one, then to
    H/2, goes beside Res-1 through two 3x3 convolutions (64 and 16 channels), and what comes out, enlarged to H, through
    another (16) and a 1x1 head.
    """

    def __init__(self, first_channels: int, classes: int) -> None:
        super().__init__()
        narrow = WIDTH // 4  # at H, where a channel costs most
        self.merge = nn.Sequential(conv_bn_prelu(WIDTH + first_channels, WIDTH, 3), conv_bn_prelu(WIDTH, narrow, 3))
        self.head = nn.Sequential(conv_bn_prelu(narrow, narrow, 3), nn.Conv2d(narrow, classes, 1))

    def forward(self, refined: list[Tensor], first: Tensor, image: Tensor) -> Tensor:
        """Scales (B, 64, H_s, W_s), Res-1 (B, 64, H/2, W/2), image (B, C, H, W) -> logits (B, classes, H, W)."""
        x = refined[-1]
        for finer in refined[-2::-1]:
            x = finer + resized(x, finer)
        x = self.merge(torch.cat([resized(x, first), first], 1))
        return self.head(resized(x, image))


class MSDualGuided(MultiScale):
    """Multi-scale network with stacked, guided position and channel attention.

    Res-2..Res-5 are reduced to 64 channels (F'_s) and fused (F_MS). Step 1 refines cat(F'_s, F_MS), step k + 1 refines
    cat(F'_s, refined_k * F_MS).

    Args:
        channels, classes: of the image, and of the target with the background.
        backbone: see `models.backbone.build_backbone`.
        steps: refinement steps, at least 1.
        scales: "quarter" enlarges all scales to H/4, as the paper does; "native" refines each at its own resolution,
            with F_MS averaged down to it.
        key_pooling: position attention at H/4 takes its keys and values from means over squares of this side; at
            native scales each coarser one pools by half as much, at least 1.
        semantic_channels: of the semantic module's first stage; 256 in the paper.
        norm_by_scale: the semantic module has a batch normalization for each scale, as `SemanticModule` says.
        position_attention, channel_attention: the two halves of a step; at least one.
        guidance: the semantic module, its guiding convolution and its losses; without it the paper's MS-Dual.
        encoder_decoder: False replaces the semantic module by the direct distance ("dist" in Table II).
        neutral_guide: the guiding convolution starts as a factor of one, not with random weights.
        deep_supervision: heads on the raw maps and on steps 2, 3, ...; without it on the last step alone.
        fine_decoder: a `FineDecoder` on the last step; its map is the prediction.
        variant: "paper" shares the guiding convolution over the scales and uses Eq. 4 in channel attention, which the
            paper's text and its parameter counts say; "released" does what the released code does.

    Raises:
        OptionError: a number below 1, an unknown text, or no attention at all.
        ValueError: (forward) an image smaller than 32 pixels, or of whole numbers.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 5,
        backbone: str = "resnext101_32x4d",
        steps: int = 2,
        scales: str = "quarter",
        key_pooling: int = 1,
        semantic_channels: int = 256,
        norm_by_scale: bool = False,
        position_attention: bool = True,
        channel_attention: bool = True,
        guidance: bool = True,
        encoder_decoder: bool = True,
        neutral_guide: bool = False,
        deep_supervision: bool = True,
        fine_decoder: bool = False,
        variant: str = "paper",
    ) -> None:
        numbers = {"steps": steps, "key_pooling": key_pooling, "semantic_channels": semantic_channels}
        for name, number in numbers.items():
            if number < 1:
                raise OptionError(f"{name} {number}: must be at least 1")
        if not (position_attention or channel_attention):
            raise OptionError("no_position_attention and no_channel_attention: a refinement step needs one of the two")
        if variant not in ("paper", "released"):
            raise OptionError(f"variant {variant}: must be paper or released")
        if scales not in ("quarter", "native"):
            raise OptionError(f"scales {scales}: must be quarter or native")
        native = scales == "native"
        pooling = [max(1, key_pooling // 2**k) if native else key_pooling for k in range(SCALES)]
        options = StepOptions(
            variant,
            position_attention,
            channel_attention,
            pooling,
            guidance,
            encoder_decoder,
            semantic_channels,
            norm_by_scale,
        )
        # The first step has no heads of its own unless it is the last.
        supervised_steps = max(steps - 1, 1) if deep_supervision else 1

        super().__init__(channels, backbone, native)
        self.steps = nn.ModuleList(RefinementStep(options) for _ in range(steps))
        self.raw_heads = heads(WIDTH, classes, SCALES) if deep_supervision else None
        self.refined_heads = nn.ModuleList(heads(WIDTH, classes, SCALES) for _ in range(supervised_steps))
        self.decoder = FineDecoder(self.backbone.channels[0], classes) if fine_decoder else None
        self.initialize()
        if guidance and neutral_guide:
            for step in self.steps:
                for guide in step.guide:
                    nn.init.zeros_(guide.weight)
                    nn.init.ones_(guide.bias)

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with logits at the scales' resolution, those of the fine decoder at H."""
        features, fused, first = self.features(image)
        maps, latents, reconstructions = [], [], []
        for step in self.steps:
            beside = [x * each for x, each in zip(maps[-1], fused, strict=True)] if maps else fused
            inputs = [torch.cat(pair, 1) for pair in zip(features, beside, strict=True)]
            refined, latent, reconstruction = step(inputs)
            maps.append(refined)
            if self.training and step.semantic is not None:
                latents.append(list(latent))
                if not isinstance(step.semantic, DirectDistance):
                    reconstructions += zip(inputs, reconstruction, strict=True)
        refined = self.refined_logits(maps)
        raw = self.raw_logits(features)
        if self.decoder is not None:
            refined.append(self.decoder(maps[-1], first, image))
        return Output(raw, refined, latents, reconstructions)

    def raw_logits(self, features: list[Tensor]) -> list[Tensor]:
        """Logits of each scale before refinement; none without deep supervision."""
        if self.raw_heads is None:
            return []
        return [head(x) for head, x in zip(self.raw_heads, features, strict=True)]

    def refined_logits(self, maps: list[list[Tensor]]) -> list[Tensor]:
        """Logits of the supervised steps, step by step and scale by scale."""
        supervised = maps[-len(self.refined_heads) :]
        logits = []
        for step_heads, scales in zip(self.refined_heads, supervised, strict=True):
            logits += [head(x) for head, x in zip(step_heads, scales, strict=True)]
        return logits

    def prediction(self, refined: list[Tensor]) -> Tensor:
        """The decoder's logits, or without it the mean of the last step's."""
        return refined[-1] if self.decoder is not None else super().prediction(refined)
