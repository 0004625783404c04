"""Weights that an encoder starts from: which of a state dict fit, and what they expect of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """(image - mean) / std before an encoder: the image as it is, until pretrained weights say what they expect.

    Mean and std are buffers, so that checkpoints hold those that a network was trained with.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Those of red, green and blue, which repeat over the channels; a single channel gets their means."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            of_channel = [values[k % len(values)] for k in range(len(buffer))]
            buffer[:, 0, 0] = torch.tensor(of_channel if len(buffer) > 1 else [sum(values) / len(values)])

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return (image - self.mean) / self.std


def fitting(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    classifiers: Sequence[str],
    stems: Sequence[str],
    channels: int,
) -> dict[str, Tensor]:
    """`weights` without the classifiers, the first convolutions (`stems`) spread over `channels`.

    Counters of batches, which files from before PyTorch 0.4.1 lack and nothing here reads, are 0 where they are
    missing. Raises ValueError, with the names, where the rest are not those of `expected`, in name, shape or kind.
    """
    heads = tuple(f"{name}." for name in classifiers)
    given, wanted = ({k: v for k, v in each.items() if not str(k).startswith(heads)} for each in (weights, expected))
    counters = [name for name in wanted if name.endswith("num_batches_tracked")]
    given = dict.fromkeys(counters, torch.tensor(0)) | given
    wrong = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    wrong += [f"{name} is unknown" for name in given.keys() - wanted.keys()]
    for name in given.keys() & wanted.keys():
        tensor, shape = given[name], wanted[name].shape
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            wrong.append(f"{name} is {tuple(getattr(tensor, 'shape', ()))}, and should be {tuple(shape)}")
        elif not tensor.isfinite().all():
            wrong.append(f"{name} holds values that are not finite")
    if wrong:
        raise ValueError(f"{len(wrong)} tensors do not fit, such as: {'; '.join(sorted(wrong)[:3])}")
    for name in stems:
        given[f"{name}.weight"] = spread_over(given[f"{name}.weight"], channels)
    return given


def spread_over(weight: Tensor, channels: int) -> Tensor:
    """Weights of a first convolution (out, 3, rows, columns) for another number of channels.

    They repeat over the channels and keep the size of the response. Raises ValueError for weights of another shape.
    """
    if channels == 3:
        return weight
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f"these weights take images of 3 channels only, not of {channels}")
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % 3] * (3 / channels)
