"""What the refinement of MSDualGuided looks at in one image, taken from the network by forward hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import PositionAttention
from models.ms_dual_guided import MSDualGuided
from models.semantic import SemanticModule
from utils import ceil_div


class StepMaps(NamedTuple):
    """Maps of one refinement step, float32, one a scale, of its resolution; empty where it has no such part."""

    attention: list[Tensor]
    """softmax(q k^T) of the chosen point: how much each position counts in the position attention at that point."""
    reconstruction: list[Tensor]
    """Mean magnitude over the channels of the semantic module's reconstruction."""
    guide: list[Tensor]
    """Mean magnitude over the channels of what the attended features are multiplied by."""


class Inspection(NamedTuple):
    """What a network made of one image (H, W). Scales run from the finest to the coarsest."""

    raw: list[Tensor]
    """Class indices, uint8 (H, W), before refinement: of each scale, then of the mean of their logits; empty without
    deep supervision."""
    refined: list[Tensor]
    """The same after the last step, and at the end the prediction: their mean, or the fine decoder's."""
    steps: list[StepMaps]


@torch.inference_mode()
def inspect(model: nn.Module, image: Tensor, point: tuple[int, int]) -> Inspection | None:
    """Image (1, C, H, W) and a pixel (row, column) of it -> what refines its segmentation.

    None for networks without refinement steps. The model is left in eval mode.
    """
    if not isinstance(model, MSDualGuided):
        return None
    height, width = image.shape[-2:]
    padded = model.padded(height), model.padded(width)
    raw, refined, steps = [], [], [StepMaps([], [], []) for _ in model.steps]
    with contextlib.ExitStack() as hooks:
        for head in model.raw_heads or []:
            _watch(hooks, head, raw)
        for head in model.refined_heads[-1]:
            _watch(hooks, head, refined)
        for maps, step in zip(steps, model.steps, strict=True):
            for layer in step.position or []:
                _watch(hooks, layer[1], maps.attention, partial(_attention_of, point, padded))
            if isinstance(step.semantic, SemanticModule):
                _watch(hooks, step.semantic, maps.reconstruction, _reconstructions)
            for guide in step.guide or []:
                _watch(hooks, guide, maps.guide)
        prediction = model.eval()(image)

    def classes(scales: list[Tensor]) -> list[Tensor]:
        logits = [F.interpolate(x.float(), padded, mode="bilinear")[..., :height, :width] for x in scales]
        mean = [torch.stack(logits).mean(0)] if logits else []
        return [x.argmax(1)[0].to("cpu", torch.uint8) for x in logits + mean]

    def magnitude(x: Tensor) -> Tensor:
        return unpadded(x.float().abs().mean(1)[0])

    def unpadded(x: Tensor) -> Tensor:
        rows, columns = ceil_div(len(x) * height, padded[0]), ceil_div(x.shape[1] * width, padded[1])
        return x[:rows, :columns].cpu()

    return Inspection(
        classes(raw),
        [*classes(refined)[:-1], prediction.argmax(1)[0].to("cpu", torch.uint8)],
        [
            StepMaps(
                [unpadded(x) for x in maps.attention],
                [magnitude(x) for scales in maps.reconstruction for x in scales],
                [magnitude(x) for x in maps.guide],
            )
            for maps in steps
        ],
    )


def _watch(
    hooks: contextlib.ExitStack, module: nn.Module, sink: list[Any], take: Callable[..., Any] | None = None
) -> None:
    """Put what `take` makes of each call of a module, by default its output, into `sink` until `hooks` end."""

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        sink.append(take(module, inputs, output) if take else output)

    hooks.callback(module.register_forward_hook(keep).remove)


def _reconstructions(module: SemanticModule, inputs: tuple[Any], output: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return output[1]


def _attention_of(
    point: tuple[int, int], size: tuple[int, int], module: PositionAttention, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    """The row softmax(q k^T) of a pixel of an image of this size, as a map. The N x N map is never made."""
    x = inputs[0]
    row, column = (at * side // of_image for at, side, of_image in zip(point, x.shape[-2:], size, strict=True))
    query, key = module.query(x).float(), module.key(module.pooled(x)).float()
    energy = torch.einsum("c,cn->n", query[0, :, row, column], key[0].flatten(1))
    return energy.softmax(0).reshape(key.shape[-2:])
