"""Activation checkpointing (Chen et al., 2016): less memory for more time, with the same results."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.attention import AttentionLayer
from models.ms_dual_guided import FineDecoder
from models.semantic import SemanticModule
from utils import OptionError

BLOCKS = (BasicBlock, Bottleneck, AttentionLayer, SemanticModule, FineDecoder)


def recompute_activations(model: nn.Module) -> None:
    """Let the blocks of `model` keep only their inputs for the backward pass, which computes the rest once more.

    Blocks are those of residual backbones and of refinement steps. Raises OptionError where there are none.
    """
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        name = type(model).__name__
        raise OptionError(f"recompute: {name} has no blocks to recompute; choose smaller batches instead")
    for block in blocks:
        block.forward = functools.partial(_forward, block, block.forward)


def _forward(block: nn.Module, forward: Any, *inputs: Any) -> Any:
    if not block.training:
        return forward(*inputs)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _without_statistics(block)


@contextlib.contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """The second pass must not enter the running statistics of batch normalization a second time."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
