"""The same mathematics as ONNX, where PyTorch has no translation, or none for maps of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operation -> a function that writes it as ONNX, for `torch.onnx.export`. Needs the library onnxscript."""
    from onnxscript import opset18 as op

    def attention(query: Any, key: Any, value: Any) -> Any:
        energy = op.MatMul(query, op.Transpose(key, perm=[0, 2, 1]))
        return op.MatMul(op.Softmax(energy, axis=-1), value)

    def larger(a: Any, b: Any) -> Any:
        return op.Max(a, b)

    def adaptive_mean(x: Any, output_size: Any) -> Any:
        rows, columns = shares(x, 2, int(output_size[0])), shares(x, 3, int(output_size[1]))
        return op.MatMul(op.MatMul(rows, x), op.Transpose(columns, perm=[1, 0]))

    def shares(x: Any, axis: int, parts: int) -> Any:
        """How much of each part, (parts, length), comes from where along an axis; parts may overlap."""
        one, count, zero = (op.Constant(value_ints=[value]) for value in (1, parts, 0))
        length = op.Shape(x, start=axis, end=axis + 1)
        part = op.Unsqueeze(op.Constant(value_ints=list(range(parts))), one)
        at = op.Range(op.Squeeze(zero), op.Squeeze(length), op.Squeeze(one))
        first = op.Div(op.Mul(part, length), count)
        end = op.Div(op.Add(op.Mul(op.Add(part, one), length), op.Sub(count, one)), count)
        inside = op.Cast(op.And(op.GreaterOrEqual(at, first), op.Less(at, end)), to=1)
        return op.Div(inside, op.ReduceSum(inside, one, keepdims=1))

    return {
        torch.ops.ms_dual_guided.blocked_attention.default: attention,
        torch.sym_max: larger,
        torch.ops.aten.adaptive_avg_pool2d.default: adaptive_mean,
        torch.ops.aten._adaptive_avg_pool2d.default: adaptive_mean,
    }
