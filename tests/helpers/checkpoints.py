"""Checkpoints of which one thing is other than main.py writes it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Where = tuple[Any, ...]
REMOVED = object()
WRONG = [
    None, True, False, -1, -5, 0, 1, 2, 7, 200, 2**63, 2**70, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"),
    "", "abc", "\udc80", "x" * 10**4, [], [1], ["a"], [[[]]], {}, {"a": 1}, {1: 2}, (), (1, 2),
    torch.zeros(3), torch.zeros(()), torch.tensor(True),
]  # fmt: skip


def places(content: Any, where: Where = ()) -> list[Where]:
    """The keys and indices that lead to each part of a checkpoint."""
    found = [where] if where else []
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    for key in keys:
        found += places(content[key], (*where, key))
    return found


def spoiled(tensor: Tensor) -> list[Tensor]:
    """A tensor of other values, shapes or types."""
    other = [tensor[None], tensor.to(torch.float16), tensor.to(torch.int32), tensor.to(torch.complex64)]
    if tensor.is_floating_point():
        other += [torch.full_like(tensor, value) for value in (torch.nan, torch.inf, -torch.inf, -1e-3)]
    return [*other, tensor.flatten()[:1].expand(1000), tensor.to_sparse() if tensor.ndim else tensor[None]]


@st.composite
def mutations(draw: st.DrawFn, content: dict[str, Any]) -> tuple[Where, Any]:
    """A place in a checkpoint, each depth as often, and what it holds instead: REMOVED, or a value of another kind."""
    all_places = places(content)
    depth = draw(st.sampled_from(sorted({len(where) for where in all_places})))
    where = draw(st.sampled_from([where for where in all_places if len(where) == depth]))
    value = content
    for key in where:
        value = value[key]
    values = [REMOVED, *WRONG]
    if isinstance(value, Tensor):
        values += 3 * spoiled(value)
    return where, draw(st.sampled_from(values))


def set_at(content: dict[str, Any], where: Where, value: Any) -> dict[str, Any]:
    """A copy of the checkpoint with `value` at a place, or without it where REMOVED."""
    changed = copy.deepcopy(content)
    inner = changed
    for key in where[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return changed
