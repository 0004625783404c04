"""What the networks cost beside a U-Net with the same encoder, in turns: python -m benchmarks.networks

Prints the medians of a training step (2 slices) and of inference (a slice) as a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from config import PRESETS, Config
from losses import GuidedLoss
from models import build_model
from training.device import choose_dtype

MODERN = PRESETS["modern"]
NATIVE = {"scales": "native", "key_pooling": 4}
NETWORKS: dict[str, Config] = {
    "U-Net (`smp.Unet`, ResNet-34)": MODERN.change(model="smp.Unet"),
    "MS-Dual": MODERN,
    "MS-Dual, native, keys pooled": MODERN.change(**NATIVE),
    "MS-Dual-Guided": MODERN.change(guidance=True),
    "MS-Dual-Guided, native": MODERN.change(guidance=True, scales="native"),
    "MS-Dual-Guided, native, keys pooled, narrow semantic module": MODERN.change(
        guidance=True, semantic_channels=64, **NATIVE
    ),
}
BATCH = 2


def measure(networks: dict[str, Config], size: int, turns: int) -> dict[str, tuple[float, float]]:
    """Network -> median seconds of a training step of BATCH slices (size, size), and of inference of one slice."""
    image = torch.rand(BATCH, 1, size, size).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 5, (BATCH, size, size))
    models = {name: build_model(config).to(memory_format=torch.channels_last) for name, config in networks.items()}
    steps = {name: _training_step(model, image, target) for name, model in models.items()}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    for _ in range(turns + 1):
        for name, model in models.items():
            seconds[name][0].append(_timed(steps[name]))
            seconds[name][1].append(_timed(lambda model=model: _infer(model, image)) / BATCH)
    return {name: (median(step[1:]), median(inference[1:])) for name, (step, inference) in seconds.items()}


def _training_step(model: nn.Module, image: Tensor, target: Tensor) -> Callable[[], None]:
    criterion, optimizer = GuidedLoss(dice=MODERN.loss.dice), torch.optim.Adam(model.parameters())

    def step() -> None:
        with _autocast():
            output = model.train()(image)
        criterion(output, target).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def _infer(model: nn.Module, image: Tensor) -> None:
    with _autocast():
        model.eval()(image)


def _autocast() -> torch.autocast:
    dtype = choose_dtype("auto", torch.device("cpu"))
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def _timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table; the first network is what the others are held against."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the slices in pixels")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    found = measure(NETWORKS, options.size, options.turns)
    first = next(iter(found.values()))
    print("| network | training step | | inference of a slice | |\n|---|---:|---:|---:|---:|")
    for name, (step, inference) in found.items():
        ratios = step / first[0], inference / first[1]
        print(f"| {name} | {step:.2f} s | {ratios[0]:.1f}x | {inference:.3f} s | {ratios[1]:.1f}x |")


if __name__ == "__main__":
    main()
