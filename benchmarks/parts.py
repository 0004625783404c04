"""What share of the machine's rate the parts of MS-Dual-Guided reach: python -m benchmarks.parts

Prints, for the forward pass of each part, its arithmetic, its time, and what of the rate of a large matrix product in
bfloat16 that is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import MACHINE, MODERN, QUARTER
from benchmarks.run import measure_rate
from config import Config
from models import build_model
from models.attention import AttentionLayer
from models.backbone import Backbone
from models.ms_dual_guided import FineDecoder
from models.semantic import SemanticModule

NETWORKS = {"quarter": QUARTER.change(guidance=True), "native": MODERN.change(guidance=True)}
PARTS = {Backbone: "backbone", AttentionLayer: "attention", SemanticModule: "semantic module", FineDecoder: "decoder"}
BATCH, TURNS = 8, 9


class Meter:
    """How much a quantity grows in the parts of a network, added up over the calls of each."""

    def __init__(self, model: nn.Module, now: Callable[[], float]) -> None:
        self.now = now
        self.grown: dict[str, float] = defaultdict(float)
        for module in model.modules():
            if type(module) in PARTS:
                self._watch(module, PARTS[type(module)])

    def _watch(self, module: nn.Module, part: str) -> None:
        def begin(*call: Any) -> None:
            self.grown[part] -= self.now()

        def end(*call: Any) -> None:
            self.grown[part] += self.now()

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def take(self) -> dict[str, float]:
        """What has grown since the last call."""
        taken = dict(self.grown)
        self.grown.clear()
        return taken


@torch.inference_mode()
def measure(config: Config, size: int) -> dict[str, tuple[float, float]]:
    """Part -> FLOP and median seconds of the forward pass of a slice (size, size)."""
    image = torch.rand(BATCH, 1, size, size).contiguous(memory_format=torch.channels_last)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.ms_dual_guided.blocked_attention: _attention_flops}
    )
    counted = build_model(config).eval()
    flops = Meter(counted, counter.get_total_flops)
    with counter:
        counted(image)
    timed = build_model(config).to(memory_format=torch.channels_last).eval()
    seconds = Meter(timed, time.perf_counter)
    turns = []
    for _ in range(TURNS + 2):
        with MACHINE.autocast():
            timed(image)
        turns.append(seconds.take())
    return {
        part: (amount / BATCH, float(np.median([turn[part] for turn in turns[2:]])) / BATCH)
        for part, amount in flops.take().items()
    }


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Of q k^T and of its product with v, from their shapes."""
    (batch, queries, width), (_, keys, _), (_, _, channels) = query, key, value
    return 2 * batch * queries * keys * (width + channels)


def table(measured: dict[str, dict[str, tuple[float, float]]], rate: float) -> str:
    """The parts of each network, whose names stand under "scales", beside a rate in FLOP/s."""
    lines = ["| part | scales | GFLOP a slice | ms a slice | share of the rate |", "|---|---|---:|---:|---:|"]
    for part in PARTS.values():
        for scales, parts in measured.items():
            flops, seconds = parts[part]
            cells = f"{flops / 1e9:.2f} | {1000 * seconds:.1f} | {flops / seconds / rate:.0%}"
            lines.append(f"| {part} | {scales} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    rate = measure_rate(torch.device("cpu"))["bfloat16"]
    print(f"A large matrix product in bfloat16: {rate / 1e9:,.0f} GFLOP/s\n")
    print(table({scales: measure(config, 256) for scales, config in NETWORKS.items()}, rate))


if __name__ == "__main__":
    main()
