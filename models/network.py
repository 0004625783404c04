"""What all networks share: images of any size, one kind of output, one initialization."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.kernels.prelu import PReLU
from utils import ceil_div


class Output(NamedTuple):
    """What a network returns in train mode. Scales run from the finest (Res-2) to the coarsest (Res-5).

    Logits are (B, classes, H, W), those of a network with `native` scales (B, classes, ceil(H / stride), ...), where
    the stride is the side, a power of two, of the squares of pixels that they stand for.
    """

    raw: list[Tensor]
    """Logits of each scale before refinement; empty without deep supervision."""
    refined: list[Tensor]
    """Logits of the refined scales, step by step, and of the fine decoder where there is one. Of a baseline: the maps
    that it supervises, its prediction first."""
    latents: list[list[Tensor]]
    """Of each step, the latent features of each scale; empty without guidance."""
    reconstructions: list[tuple[Tensor, Tensor]]
    """Input of the semantic module and its reconstruction, step by step and scale by scale."""

    @classmethod
    def of_logits(cls, *logits: Tensor) -> Output:
        """The output of a network without guidance, which supervises these maps, its prediction first."""
        return cls([], list(logits), [], [])

    @classmethod
    def of(cls, returned: Output | Tensor | Sequence[Tensor]) -> Output:
        """What any network returns: an `Output`, one map of logits, or several with its prediction first."""
        if isinstance(returned, Output):
            return returned
        return cls.of_logits(*(returned if isinstance(returned, list | tuple) else [returned]))


class Network(nn.Module):
    """Pads the image to what the layers take, and brings all logits to the image's own size.

    A network says what its layers take (`multiple`, `smallest`: sides in pixels), computes its maps (`maps`), and says
    which of them are its prediction (`prediction`). With `native`, only the prediction is brought to the image's size.
    """

    multiple = 16
    smallest = 48
    native = False

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with logits of any resolution."""
        raise NotImplementedError

    def prediction(self, refined: list[Tensor]) -> Tensor:
        """The refined maps -> the logits that the network predicts with."""
        return refined[0]

    def forward(self, image: Tensor) -> Output | Tensor:
        """Image (B, C, H, W), any H, W >= 32 -> Output in train mode, logits (B, classes, H, W) in eval mode."""
        if not image.is_floating_point():
            raise ValueError(f"images of {image.dtype}: must be floating-point numbers, from 0 to 1")
        height, width = image.shape[-2:]
        if min(height, width) < 32:
            raise ValueError(f"images must be at least 32 x 32 pixels, not {height} x {width}")
        padded_height, padded_width = self.padded(height), self.padded(width)
        padded = F.pad(image, (0, padded_width - width, 0, padded_height - height))

        def resize(logits: Tensor) -> Tensor:
            return crop(resized(logits, padded))

        def crop(logits: Tensor) -> Tensor:
            # Even a slice that leaves nothing out costs the backward pass a copy.
            if padded.shape == image.shape:
                return logits
            stride = padded_height // logits.shape[-2]
            return logits[..., : ceil_div(height, stride), : ceil_div(width, stride)]

        output = self.maps(padded)
        if not self.training:
            return resize(self.prediction(output.refined))
        fit = crop if self.native else resize
        raw, refined = ([fit(logits) for logits in maps] for maps in (output.raw, output.refined))
        return Output(raw, refined, *output[2:])

    def padded(self, side: int) -> int:
        """The length to which a side of the image is padded, in pixels."""
        # Of torch, which knows also the sides of an exported network, that are no numbers.
        return torch.sym_max(self.smallest, ceil_div(side, self.multiple) * self.multiple)

    def pad_for(self, backbone: nn.Module) -> None:
        """Pad images to what the backbone takes, too."""
        self.multiple = max(self.multiple, backbone.multiple)
        self.smallest = max(self.smallest, 2 * backbone.multiple)

    def load_pretrained(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Start the backbone from ImageNet weights; see `load_pretrained` of models.backbone.Backbone."""
        self.backbone.load_pretrained(weights)

    def initialize(self) -> None:
        """The released code's initialization: Xavier, and BN near one. What a library has initialized stays so."""
        parts = [module.modules() for module in self.modules() if getattr(module, "initialized", False)]
        kept = set(itertools.chain(*parts))
        for module in self.modules():
            if module in kept:
                continue
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)


def count_parameters(network: nn.Module) -> int:
    """Numbers in the weights of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization that uses its running statistics for a single value per channel, which has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def tolerate_single_values(network: nn.Module) -> None:
    """Let all batch normalizations of `network` be ours: the last batch of an epoch may be a single image."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm


def resized(x: Tensor, like: Tensor) -> Tensor:
    """A map (B, C, H, W) bilinearly at the height and width of another."""
    size = like.shape[-2:]
    if x.shape[-2:] == size:
        return x
    x = F.interpolate(x, size, mode="bilinear")
    if x.requires_grad:  # the gradient of a part of a concatenation has gaps, with which PyTorch takes 25 times as long
        x.register_hook(_without_gaps)
    return x


def _without_gaps(grad: Tensor) -> Tensor:
    layout = torch.channels_last if grad.stride(1) == 1 else torch.contiguous_format
    return grad.contiguous(memory_format=layout)


def heads(in_channels: int, classes: int, count: int) -> nn.ModuleList:
    """`count` 1x1 convolutions from features to logits."""
    return nn.ModuleList(nn.Conv2d(in_channels, classes, 1) for _ in range(count))


def conv_bn_prelu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, batch normalization, PReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), nn.BatchNorm2d(out_channels), PReLU()
    )


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution that keeps the size, batch normalization, ReLU."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        BatchNorm(out_channels),
        nn.ReLU(inplace=True),
    ]


def double_conv(in_channels: int, out_channels: int) -> list[nn.Module]:
    """`conv_bn_relu` twice."""
    return [*conv_bn_relu(in_channels, out_channels), *conv_bn_relu(out_channels, out_channels)]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
