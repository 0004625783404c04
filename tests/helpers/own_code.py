"""Networks and losses as users bring them; a file that imports nothing of the repository but `models`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Network, Output
from models.attention import ChannelAttention, PositionAttention
from models.network import resized
from models.semantic import SemanticModule


class Logits(nn.Module):
    """One map, at half the size."""

    multiple, smallest = 8, 32

    def __init__(self, channels: int, classes: int, width: int = 4, dropout: float = 0.1, **others: Any) -> None:
        super().__init__()
        self.others = others
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head, self.coarse = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 3, 4)

    def forward(self, image: Tensor) -> Any:
        """Image -> what a network returns."""
        return self.head(self.layers(image))


class Several(Logits):
    """Two maps in train mode, of other resolutions, the prediction first."""

    def forward(self, image: Tensor) -> list[Tensor] | Tensor:
        """Image -> maps."""
        x = self.layers(image)
        return [self.head(x), self.coarse(x)] if self.training else self.head(x)


class Whole(Logits):
    """An output with latents."""

    def forward(self, image: Tensor) -> Output:
        """Image -> output."""
        x = self.layers(image)
        return Output([self.coarse(x)], [self.head(x)], [[x], [x + 1]], [(x, 2 * x)])


class Values(Logits):
    """Looks at values, which tensors without content have not, when it is made and when it is used."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.scale = torch.ones(1).item()

    def forward(self, image: Tensor) -> Tensor:
        """Image -> map."""
        return super().forward(image) * (1.0 if image.mean().item() < 9 else 2.0)


class Wrong(nn.Module):
    """Returns what its argument names."""

    def __init__(self, classes: int, what: str) -> None:
        super().__init__()
        self.classes, self.what = classes, what
        self.weight = nn.Parameter(torch.zeros(classes, 1, 1))

    def forward(self, image: Tensor) -> Any:
        """Image -> no maps of logits."""
        logits = image[:, :1] + self.weight
        return {
            "dictionary": {"out": logits},
            "nothing": [],
            "classes": logits[:, 1:],
            "flat": logits.flatten(2),
            "batch": logits[:1],
            "indices": logits.argmax(1, keepdim=True).expand_as(logits),
            "second": [logits, None],
        }[self.what]


class OtherWhenSegmenting(Logits):
    """Returns a dictionary in eval mode."""

    def forward(self, image: Tensor) -> Any:
        """Image -> what a network returns."""
        logits = super().forward(image)
        return logits if self.training else {"out": logits}


class Volumes(nn.Module):
    """A network of volumes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv3d(channels, classes, 1)


class AllBackbone(nn.Module):
    """A network in another one's attribute of this name."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.backbone = Logits(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Image -> map."""
        return self.backbone(image)


class Ours(Network):
    """A network with the repository's base class."""

    multiple, smallest = 1, 32

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 1)

    def maps(self, image: Tensor) -> Output:
        """Image -> its one map."""
        return Output.of_logits(self.layer(image))


class OnlyOneSize(Logits):
    """Takes images of 64 x 64."""

    def forward(self, image: Tensor) -> Tensor:
        """Image -> map."""
        if image.shape[2:] != (64, 64):
            raise ValueError("images must be of 64 x 64")
        return super().forward(image)


class Branches(Logits):
    """Computes otherwise where images are higher than wide."""

    def forward(self, image: Tensor) -> Tensor:
        """Image -> map."""
        return super().forward(image) * (10.0 if image.shape[2] > image.shape[3] else -10.0)


class Adaptive(Logits):
    """Takes away what parts of the image have in the mean, which pyramid pooling computes."""

    def forward(self, image: Tensor) -> Tensor:
        """Image -> map."""
        x = self.layers(image)
        parts = [F.adaptive_avg_pool2d(x, size) for size in (1, 2, 3, 6)]
        parts = [F.interpolate(part, x.shape[2:], mode="bilinear", align_corners=True) for part in parts]
        return self.head(x - sum(parts) / 4)


class Parts(Network):
    """The parts of a refinement step, on maps of any sides: no multiples of what they halve."""

    multiple, smallest = 1, 32

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(channels, 16, 3, 2, padding=1), nn.Conv2d(16, classes, 1)
        self.position, self.channel = PositionAttention(16, pooling=3), ChannelAttention("released")
        self.semantic = SemanticModule(16, 8)

    def maps(self, image: Tensor) -> Output:
        """Image -> its one map."""
        x = self.stem(image)
        _, (guide,) = self.semantic([x])
        coarse = F.avg_pool2d(x, 2)
        return Output.of_logits(self.head(self.channel(self.position(x)) * guide + resized(coarse, x)))


class Infinite(Logits):
    """Has a buffer that checkpoints refuse."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.register_buffer("mask", torch.full((2,), -torch.inf))


class Weighted(nn.Module):
    """Cross-entropy with a buffer of weights, times a factor."""

    def __init__(self, classes: int, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("weight", torch.arange(1.0, classes + 1))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits and target -> scalar."""
        return self.factor * F.cross_entropy(logits, target, self.weight)


class Unusable(nn.Module):
    """A loss with the fault that its argument names."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.calls = fault, 0
        self.factor = nn.Parameter(torch.ones(()), requires_grad=fault == "weights")
        self.register_buffer("count", torch.zeros(()))

    def forward(self, logits: Tensor, target: Tensor) -> Any:
        """Logits and target -> no loss that can be trained with."""
        if self.fault == "raises":
            raise RuntimeError("three\nlines\nlong")
        if self.fault == "changes":
            self.count += 1
        if self.fault == "counts":
            self.calls += 1
        if self.fault == "ignored":
            target = target.clamp(min=0)
        loss = self.factor * F.cross_entropy(logits, target)
        return {
            "vector": loss[None],
            "number": loss.item(),
            "infinite": loss / 0,
            "constant": loss.detach(),
            "flat": 0 * loss,
        }.get(self.fault, loss)


class NoModule:
    """A class, but no torch.nn.Module."""


def in_folder(folder: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function` in another working folder."""
    os.chdir(folder)
    function(*arguments)
