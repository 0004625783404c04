"""The guided loss of Sinha & Dolz (2020), Eq. 6, 7 and 10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, log2
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.network import Output, at_least_float32
from models.own import build_own, in_words
from utils import UNCOUNTED, OptionError, ceil_div, is_out_of_memory


class LossTerms(NamedTuple):
    """Scalars; the three terms stand before their weighting."""

    total: Tensor
    segmentation: Tensor
    guided: Tensor
    reconstruction: Tensor


class GuidedLoss(nn.Module):
    """L = alpha * segmentation + beta * guided + gamma * reconstruction.

    segmentation: sum over all maps, raw and refined, of their pixel-mean cross-entropy (Eq. 10's first term) and, which
    the paper has not, `dice` times their `dice_loss`;
    guided (Eq. 7): sum over scales of MSE(latent of step i, latent of step i + 1), for all successive steps;
    reconstruction (Eq. 6): sum over scales and steps of MSE(input of the semantic module, its reconstruction).
    MSE is the mean over elements, as in the released code, not the paper's sum of squares. Nothing is detached.

    Args:
        alpha, beta, gamma, dice: the weights.
        loss: what replaces the cross-entropy of a map; logits float32 (B, classes, H, W), target -> scalar.
        all_reduce: what sums a tensor over the processes that train together (`training.distributed.AllReduceSum`),
            for the sums of the Dice loss; one process needs none.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.25,
        gamma: float = 0.1,
        dice: float = 0.0,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma, self.dice = alpha, beta, gamma, dice
        self.loss = loss
        self.all_reduce = all_reduce

    def forward(self, output: Output | Tensor | Sequence[Tensor], target: Tensor, counted: bool = True) -> LossTerms:
        """What a network returns, see `Output.of`, and target (B, H, W), class indices, with UNCOUNTED pixels left out.

        With `counted` False, the slices do not enter the sums of `dice_loss` (`ShuffledBatches.weight` is 0). Raises
        ValueError for maps and targets of other shapes, and for targets that are not whole numbers.
        """
        output = Output.of(output)
        if not output.refined or not all(isinstance(logits, Tensor) for logits in output.refined):
            raise ValueError("output: must be an Output, logits (B, classes, H, W), or a list of them")
        with torch.autocast(target.device.type, enabled=False):
            maps = [at_least_float32(logits) for logits in (*output.raw, *output.refined)]
            losses = [self.of_map(*around_centres(logits, target), counted) for logits in maps]
            segmentation = torch.stack(losses).sum()
            guided = segmentation.new_zeros(())
            for latents, of_next_step in pairwise(output.latents):
                for a, b in zip(latents, of_next_step, strict=True):
                    guided = guided + MeanSquaredError.apply(a, b)
            reconstruction = segmentation.new_zeros(())
            for of_input, reconstructed in output.reconstructions:
                reconstruction = reconstruction + MeanSquaredError.apply(of_input, reconstructed)
            total = self.alpha * segmentation + self.beta * guided + self.gamma * reconstruction
        return LossTerms(total, segmentation, guided, reconstruction)

    def of_map(self, logits: Tensor, target: Tensor, counted: bool) -> Tensor:
        """What one map (B, classes, H, W) adds to the segmentation term."""
        if self.loss is None:
            loss = cross_entropy(logits, target)
        else:  # as the cross-entropy, 0 for a map of which nothing counts
            counts = (target != UNCOUNTED).any()
            loss = self.loss(logits.contiguous(), target.where(counts, 0)) * counts
        if self.dice:
            loss = loss + self.dice * dice_loss(logits, target, counted, self.all_reduce)
        return loss


def around_centres(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A map (B, classes, h, w) and the target (B, H, W) that it is held against, as (B', classes, h, w), (B', h, w).

    A logit stands for a square of pixels (`Output`). It is held against the four pixels around the centre of the
    square, each as an element of the batch (B' = 4 B): one of them alone is off the centre, and would teach the network
    to segment half a pixel away. A square of one pixel is held against this one (B' = B). Pixels outside of the image
    are UNCOUNTED. Raises ValueError as `_check` does, and for a map that has not ceil(H / stride) rows or
    ceil(W / stride) columns.
    """
    _check(logits, target)
    (rows, columns), (height, width) = logits.shape[-2:], target.shape[-2:]
    stride = 2 ** max(0, ceil(log2(height / rows)))  # rows = ceil(H / stride), and H is at least the largest stride
    if (rows, columns) != (ceil_div(height, stride), ceil_div(width, stride)):
        raise ValueError(
            f"logits of {rows} x {columns} for a target of {height} x {width}: must have its size, or a half, a "
            "quarter, ... of it, rounded up; interpolate them"
        )
    if stride == 1:
        return logits, target.long()
    padding = (0, columns * stride - width, 0, rows * stride - height)
    padded = F.pad(target.long(), padding, value=UNCOUNTED)
    central = (stride // 2 - 1, stride // 2)
    targets = [padded[:, i::stride, j::stride] for i in central for j in central]
    return logits.repeat(4, 1, 1, 1), torch.cat(targets)


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 4 or logits.shape[1] < 2:
        raise ValueError(f"logits {tuple(logits.shape)}: must be (B, classes, H, W), two classes with the background")
    if target.ndim != 3 or len(target) != len(logits):
        raise ValueError(f"target {tuple(target.shape)} for logits {tuple(logits.shape)}: must be (B, H, W)")
    if target.is_floating_point():
        raise ValueError(f"target of {target.dtype}: must be class indices, whole numbers")


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over the pixels that count, a scalar; 0 where none does."""
    counted = (target != UNCOUNTED).sum().clamp(min=1)
    return F.cross_entropy(logits, target, ignore_index=UNCOUNTED, reduction="sum") / counted


def dice_loss(
    logits: Tensor,
    target: Tensor,
    counted: bool = True,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """1 - the mean over classes but the background of (2 sum p t + 1) / (sum p + sum t + 1), a scalar.

    p is the softmax of logits (B, classes, H, W), t the one-hot target (B, H, W); sums run over batch and pixels, and
    with `all_reduce` over other processes, but not over UNCOUNTED pixels, nor over slices that are not `counted`
    (Drozdzal et al., 2016). The ones keep the gradient small of classes that a batch lacks. Raises ValueError for a
    target of another size, and as `GuidedLoss` does.
    """
    _check(logits, target)
    if target.shape[-2:] != logits.shape[-2:]:
        raise ValueError(f"target {tuple(target.shape)} for logits {tuple(logits.shape)}: must be of one size")
    valid = ((target != UNCOUNTED) & counted).unsqueeze(1)
    p = at_least_float32(logits).softmax(1) * valid
    t = torch.zeros_like(p).scatter_(1, target.long().unsqueeze(1).where(valid, 0), 1.0) * valid
    sums = torch.stack([x.sum((0, 2, 3)) for x in (p * t, p, t)])
    if all_reduce is not None:
        sums = all_reduce(sums)
    both, of_p, of_t = sums[:, 1:]  # without the background
    return 1 - ((2 * both + 1) / (of_p + of_t + 1)).mean()


def own_loss(text: str, classes: int) -> nn.Module | None:
    """The loss of a class "package.module:Class(key=value, ...)"; None for an empty text. Raises OptionError."""
    return build_own("loss", text, {"classes": classes, "ignore_index": UNCOUNTED}) if text else None


def try_loss(text: str, loss: nn.Module, classes: int, device: torch.device) -> None:
    """Raises OptionError where `loss`, which is already there, cannot be trained with, tried on random logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 32, 32, generator=generator).to(device).requires_grad_()
    target = (torch.arange(2 * 32 * 32, device=device) % classes).view(2, 32, 32)
    target[:, :4] = UNCOUNTED
    before = _state_of(loss)
    try:
        value = loss(logits, target.clone())
        is_scalar = isinstance(value, Tensor) and value.shape == () and bool(value.isfinite())
        has_gradient = is_scalar and value.requires_grad
        grad = torch.autograd.grad(value, logits)[0] if has_gradient else torch.zeros_like(logits)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise OptionError(f"loss {text}: fails on logits (2, {classes}, 32, 32): {in_words(error)}") from None
    faults = {
        "must return a finite scalar": not is_scalar,
        "has no finite gradient": not (grad.any() and grad.isfinite().all()),
        f"must leave out the pixels whose target is {UNCOUNTED}": bool(grad[:, :, :4].any()),
        "has weights of its own, which nothing would train": any(each.requires_grad for each in loss.parameters()),
        "changes its buffers or numbers, which no checkpoint keeps": _state_of(loss) != before,
    }
    for fault, holds in faults.items():
        if holds:
            raise OptionError(f"loss {text}: {fault}; correct it, or take another loss")


def _state_of(loss: nn.Module) -> list[Any]:
    numbers = [value for part in loss.modules() for value in vars(part).values() if isinstance(value, int | float)]
    return numbers + [buffer.tolist() for buffer in loss.buffers()]


class MeanSquaredError(torch.autograd.Function):
    """The mean of (a - b)^2 in float32 at least, without float32 copies of a and b, the largest tensors of a step."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return (at_least_float32(a) - b).square_().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        difference = (at_least_float32(a) - b).mul_(2 * grad / a.numel())
        return difference.to(a.dtype), (-difference).to(b.dtype)
