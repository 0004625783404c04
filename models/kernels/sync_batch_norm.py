"""Batch normalization over the slices of all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from models.network import BatchNorm, at_least_float32
from utils import OptionError


def synchronize_batch_norm(model: nn.Module) -> None:
    """Let every batch normalization of `model` take its statistics over the batches of all processes.

    Raises OptionError for one that does more, such as timm's BatchNormAct2d with its activation, or lacks something.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        complete = module.affine and module.track_running_stats and module.momentum is not None
        if type(module) not in (nn.BatchNorm2d, BatchNorm) or not complete:
            raise OptionError(
                f"sync_batch_norm: {name} of the network, a {type(module).__name__}, is no BatchNorm2d with weights, "
                "running statistics and a momentum; leave this option out, or take another network or backbone"
            )
        module.__class__ = SyncBatchNorm


class SyncBatchNorm(nn.BatchNorm2d):
    """What torch.nn.SyncBatchNorm computes, on the CPU too, which that one refuses; with weights and momentum."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape; B may differ between processes."""
        if not self.training:
            return super().forward(x)
        y, mean, var = Normalize.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)
        with torch.no_grad():
            if self.num_batches_tracked is not None:  # None while activations are recomputed
                self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return y


class Normalize(torch.autograd.Function):
    """Normalization by mean and variance over all processes, and its gradient (Ioffe & Szegedy, 2015).

    A single value of each channel, which all processes have of a last batch of one slice, is normalized as by
    `BatchNorm`: with the running statistics, which stay.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the normalized x, and the mean and unbiased variance of each channel."""
        var, mean = torch.var_mean(at_least_float32(x), (0, 2, 3), correction=0)
        own = torch.stack([torch.full_like(mean, x.numel() // x.shape[1]), mean, var])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        counts, means, variances = torch.stack(parts, 1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / count  # Chan et al. (1983)
        single = (counts == 1).all() & (var == 0).all()
        mean = running_mean.where(single, mean)
        unbiased = running_var.where(single, var * (count / (count - 1).clamp(min=1)))
        var = running_var.where(single, var)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count.where(~single, torch.inf))
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        shape = (1, -1, 1, 1)
        normalized = (at_least_float32(x) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([at_least_float32(grad).sum((0, 2, 3)), (grad * normalized).sum((0, 2, 3))])
        bias_grad, weight_grad = own.clone()
        distributed.all_reduce(own)
        of_mean, of_var = (own / count).view(2, *shape)
        x_grad = (grad - of_mean - normalized * of_var) * (weight * scale).view(shape)
        return x_grad.to(x.dtype), weight_grad, bias_grad, None, None, None
