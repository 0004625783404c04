"""Position attention, channel attention and the semantic module: the parts of a refinement step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.network import double_conv


def conv_bn_prelu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, batch normalization, PReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), nn.BatchNorm2d(out_channels), nn.PReLU()
    )


class PositionAttention(nn.Module):
    """Position attention (PAM, Eq. 1-2): each position is a mean over all positions, weighted by their likeness.

    out = gamma * softmax(q k^T) v + x, with q and k 1x1 convolutions to C/8 channels, v to C; gamma starts at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        query, key, value = (conv(x).flatten(2).mT.contiguous() for conv in (self.query, self.key, self.value))
        attended = position_attention(query, key, value)
        return self.gamma * attended.mT.reshape(x.shape) + x


def position_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T) v without keeping the N x N map: q, k (B, N, d), v (B, N, C), d <= C -> (B, N, C).

    Energies are sums in float32 at least, also of bfloat16 tokens, whose products float32 holds exactly.
    """
    return fused_attention(query, key, value) if query.is_cuda else BlockedAttention.apply(query, key, value)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`position_attention` by PyTorch's kernels that keep no map.

    They want one width for all three; the zeros that widen q and k leave q k^T as it is.
    """
    widen = (0, value.shape[-1] - query.shape[-1])
    query, key, value = (tokens.unsqueeze(1) for tokens in (F.pad(query, widen), F.pad(key, widen), value))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)


class BlockedAttention(torch.autograd.Function):
    """`position_attention` on the CPU: a block of queries at a time, again for the gradient (Rabe & Staats, 2021).

    A block fits into the cache. In bfloat16 it takes half the time of PyTorch's kernel, which wants d = C.
    """

    BLOCK = 2**21  # elements of the N x N map at a time; of 2**18 to 2**22 the best on two cores, by up to a quarter

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        with _products(query.dtype):
            q, k, v = (at_least_float32(tokens) for tokens in (query, key, value))
            out, (energy, weights) = torch.empty_like(v), _buffers(k)
            for b in range(len(q)):
                for rows in _blocks(energy):
                    e, w = energy[: len(q[b, rows])], weights[: len(q[b, rows])]
                    torch.mm(q[b, rows], k[b].mT, out=e)
                    torch.softmax(e, -1, out=w)
                    torch.mm(w, v[b], out=out[b, rows])
        return out.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        with _products(grad.dtype):
            q, k, v, g = (at_least_float32(tokens) for tokens in (*ctx.saved_tensors, grad))
            dq, dk, dv, (energy, weights) = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), _buffers(k)
            for b in range(len(q)):
                for rows in _blocks(energy):
                    e, w = energy[: len(q[b, rows])], weights[: len(q[b, rows])]
                    torch.mm(q[b, rows], k[b].mT, out=e)
                    torch.softmax(e, -1, out=w)
                    dv[b].addmm_(w.mT, g[b, rows])
                    torch.mm(g[b, rows], v[b].mT, out=e)
                    torch._softmax_backward_data(e, w, -1, e.dtype, grad_input=e)
                    torch.mm(e, k[b], out=dq[b, rows])
                    dk[b].addmm_(e.mT, q[b, rows])
        return tuple(gradient.to(grad.dtype) for gradient in (dq, dk, dv))


def _buffers(key: Tensor) -> tuple[Tensor, Tensor]:
    """Two blocks of the N x N map, to be filled again and again: fresh memory costs more than the arithmetic."""
    count = key.shape[1]
    # Tensors without content take no memory, and `memory.step_memory` would only wait for the many blocks.
    rows = count if isinstance(key, FakeTensor) else min(count, max(1, BlockedAttention.BLOCK // count))
    energy = key.new_empty(rows, count)
    return energy, torch.empty_like(energy)


def _blocks(energy: Tensor) -> Iterator[slice]:
    rows, count = energy.shape
    return (slice(start, start + rows) for start in range(0, count, rows))


@contextlib.contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """For tokens of bfloat16, let matrix products take float32 as bfloat16 (and sum in float32)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class ChannelAttention(nn.Module):
    """Channel attention (CAM): each channel is a mean over all channels, weighted by their likeness.

    With the energy E = X X^T over positions, the weights are softmax(E) in the paper (Eq. 4) and
    softmax(rowmax(E) - E) in the released code, after DANet. out = gamma * weights X + x; gamma starts at 0.
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.inverted = variant == "released"
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        attended = checkpoint(self.attend, x, use_reentrant=False, preserve_rng_state=False)
        return self.gamma * attended + x

    def attend(self, x: Tensor) -> Tensor:
        """weights X; recomputed in the backward pass, which is cheaper than to keep X in float32."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = at_least_float32(x).flatten(2).mT  # of (B, N, C), as channels_last has them
            energy = tokens.mT @ tokens
            if self.inverted:
                energy = energy.amax(-1, keepdim=True) - energy
            return (tokens @ energy.softmax(-1).mT).mT.reshape(x.shape).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class AttentionLayer(nn.Sequential):
    """Convolution to the working width, an attention module, another convolution ("PAM layer", "CAM layer")."""

    def __init__(self, in_channels: int, channels: int, attention: nn.Module) -> None:
        super().__init__(conv_bn_prelu(in_channels, channels, 3), attention, conv_bn_prelu(channels, channels, 3))


class SemanticModule(nn.Module):
    """The encoder-decoder that guides attention (Figure 3): 128 -> 256 -> 512 channels at H/4, and back.

    Sides must be multiples of 4, which MSDualGuided sees to.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *double_conv(channels, 2 * channels),
            nn.MaxPool2d(2),
            *double_conv(2 * channels, 4 * channels),
            nn.MaxPool2d(2),
        )
        self.decoder = nn.Sequential(
            *double_conv(4 * channels, 2 * channels),
            nn.ConvTranspose2d(2 * channels, 2 * channels, 2, stride=2),
            *double_conv(2 * channels, channels),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        )

    def forward(self, scales: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Each scale (B, C, H, W) -> latents (B, 4C, H/4, W/4) and reconstructions (B, C, H, W), scale by scale.

        One pass over all scales has the larger batches that devices want, and adds up fewer gradients.
        """
        latent = self._through(self.encoder, torch.cat(tuple(scales)), len(scales))
        reconstruction = self._through(self.decoder, latent, len(scales))
        return latent.chunk(len(scales)), reconstruction.chunk(len(scales))

    def _through(self, layers: nn.Sequential, x: Tensor, scales: int) -> Tensor:
        """Batch normalization takes the statistics of each scale apart, as if the scales came one after the other."""
        for layer in layers:
            if self.training and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                x = torch.cat([layer(scale) for scale in x.chunk(scales)])
            elif isinstance(layer, nn.MaxPool2d):  # to find the maxima again costs less than to keep them, as int64
                x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x)
        return x


class Identity(nn.Module):
    """What stands for the semantic module without encoder-decoder ("dist", Table II): the features themselves.

    The guided loss is then the direct distance between the features of successive steps; there is nothing to
    reconstruct. The paper gives no formula for this row; this is our reading.
    """

    def forward(self, scales: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Each scale (B, C, H, W) -> the same, twice."""
        return scales, scales
