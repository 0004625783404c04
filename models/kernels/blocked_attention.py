"""softmax(q k^T) v without keeping the N x M map: by PyTorch's kernels, or on the CPU a block at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.network import at_least_float32

BLOCK = 2**21  # elements of the N x M map at a time; of 2**18 to 2**22 the best on two cores, by up to a quarter


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T) v: q (B, N, d), k (B, M, d), v (B, M, C), d <= C -> (B, N, C).

    Energies are sums in float32 at least, also of bfloat16 tokens, whose products float32 holds exactly.
    """
    return fused_attention(query, key, value) if query.is_cuda else blocked_attention(query, key, value)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` by PyTorch's kernels that keep no map.

    They want one width for all three; the zeros that widen q and k leave q k^T as it is.
    """
    widen = (0, value.shape[-1] - query.shape[-1])
    query, key = F.pad(query, widen), F.pad(key, widen)
    query, key, value = (tokens.unsqueeze(1) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)


@torch.library.custom_op("ms_dual_guided::blocked_attention", mutates_args=())
def blocked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` on the CPU: a block of queries at a time, again for the gradient (Rabe & Staats, 2021).

    A block fits into the cache. In bfloat16 it takes half the time of PyTorch's kernel, which wants d = C; where the
    processor multiplies tiles (AMX), that kernel's forward pass takes half the time of this one.
    """
    if query.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return fused_attention(query, key, value)
    with _products(query.dtype):
        q, k, v = (at_least_float32(tokens) for tokens in (query, key, value))
        out = v.new_empty(*q.shape[:2], v.shape[2])
        energies, weights = _buffers(q, k)
        for b in range(len(q)):
            for rows in _blocks(q, energies):
                _, weight = _attention(q[b, rows], k[b], energies, weights)
                torch.mm(weight, v[b], out=out[b, rows])
    return out.to(value.dtype)


@blocked_attention.register_fake
def _shape(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What comes out, for tensors that have shapes but no content."""
    return value.new_empty(*query.shape[:2], value.shape[2])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    with _products(grad.dtype):
        q, k, v, g = (at_least_float32(tokens) for tokens in (*ctx.saved_tensors, grad))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        energies, weights = _buffers(q, k)
        for b in range(len(q)):
            for rows in _blocks(q, energies):
                energy, weight = _attention(q[b, rows], k[b], energies, weights)
                dv[b].addmm_(weight.mT, g[b, rows])
                torch.mm(g[b, rows], v[b].mT, out=energy)
                torch._softmax_backward_data(energy, weight, -1, energy.dtype, grad_input=energy)
                torch.mm(energy, k[b], out=dq[b, rows])
                dk[b].addmm_(energy.mT, q[b, rows])
    return dq.to(grad.dtype), dk.to(grad.dtype), dv.to(grad.dtype)


blocked_attention.register_autograd(_backward, setup_context=_save)


def _buffers(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Two blocks of the N x M map, to be filled again and again: fresh memory costs more than the arithmetic."""
    rows = min(query.shape[1], max(1, BLOCK // key.shape[1]))
    energies = key.new_empty(rows, key.shape[1])
    return energies, torch.empty_like(energies)


def _attention(query: Tensor, key: Tensor, energies: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """q k^T and its softmax of a block of queries, in the first rows of the buffers."""
    energy, weight = energies[: len(query)], weights[: len(query)]
    torch.mm(query, key.mT, out=energy)
    torch.softmax(energy, -1, out=weight)
    return energy, weight


def _blocks(query: Tensor, energies: Tensor) -> Iterator[slice]:
    rows = len(energies)
    return (slice(start, start + rows) for start in range(0, query.shape[1], rows))


@contextlib.contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """For tokens of bfloat16, let matrix products take float32 as bfloat16 (and sum in float32)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
