"""What the networks cost beside a U-Net with the same encoder, in turns: python -m benchmarks.networks

Prints the medians of a training step (2 slices) and of inference (a slice), and the memory of the step, as a table.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.run import resident, timed
from config import PRESETS, Config, MachineConfig
from losses import GuidedLoss
from models import build_model
from training.device import Machine, without_denormals
from training.device import peak_memory as process_memory
from training.optimization import Optimization

MODERN = PRESETS["modern"]
QUARTER = MODERN.change(scales="quarter", key_pooling=1, semantic_channels=256)
NETWORKS: dict[str, Config] = {
    "U-Net (`smp.Unet`, ResNet-34)": MODERN.change(model="smp.Unet"),
    "MS-Dual, quarter": QUARTER,
    "MS-Dual, native": MODERN,
    "MS-Dual-Guided, quarter": QUARTER.change(guidance=True),
    "MS-Dual-Guided, native": MODERN.change(guidance=True),
}
BATCH = 2
MACHINE = Machine.of(MachineConfig(device="cpu"))


class Cost(NamedTuple):
    """Medians of a network over all turns."""

    step: float
    """Seconds of a training step of BATCH slices."""
    step_ratio: float
    """The same over the first network's."""
    inference: float
    """Seconds of inference of one slice."""
    inference_ratio: float


def measure(networks: dict[str, Config], size: int, turns: int) -> dict[str, Cost]:
    """Network -> its cost with slices (size, size). All take turns, and ratios are those of one turn."""
    image, target = _slices(size)
    models = {name: build_model(config).to(memory_format=torch.channels_last) for name, config in networks.items()}
    steps = {name: _training_step(model, image, target) for name, model in models.items()}
    steps_taken, inferences = [], []
    for _ in range(turns + 1):
        steps_taken.append([timed(step) for step in steps.values()])
        inferences.append([timed(lambda model=model: _infer(model, image)) / BATCH for model in models.values()])
    taken = [np.array(seconds[1:]) for seconds in (steps_taken, inferences)]
    medians = [x for seconds in taken for x in (np.median(seconds, 0), np.median(seconds / seconds[:, :1], 0))]
    return {name: Cost(*map(float, costs)) for name, costs in zip(models, np.transpose(medians), strict=True)}


def peak_memory(config: Config, size: int) -> float:
    """GiB at the most in four training steps, without the program; for a process of its own."""
    before = resident()
    model = build_model(config).to(memory_format=torch.channels_last)
    step = _training_step(model, *_slices(size))
    for _ in range(4):
        step()
    return process_memory(torch.device("cpu")) - before / 2**30


def _slices(size: int) -> tuple[Tensor, Tensor]:
    image = torch.rand(BATCH, 1, size, size).contiguous(memory_format=torch.channels_last)
    return image, torch.randint(0, 5, (BATCH, size, size))


def _training_step(model: nn.Module, image: Tensor, target: Tensor) -> Callable[[], None]:
    criterion, optimization = GuidedLoss(dice=MODERN.loss.dice), Optimization(model, MODERN.optimization, 1)
    taken = torch.tensor(False)

    def step() -> None:
        with MACHINE.autocast():
            output = model.train()(image)
        criterion(output, target).total.backward()
        optimization.step(taken)

    return step


@torch.inference_mode()
def _infer(model: nn.Module, image: Tensor) -> None:
    with MACHINE.autocast():
        model.eval()(image)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table; the first network is what the others are held against."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the slices in pixels")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args(arguments)
    with without_denormals():
        found = measure(NETWORKS, options.size, options.turns)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (config, options.size)) for name, config in NETWORKS.items()}
    print("| network | training iteration | | inference of a slice | | memory |\n|---|---:|---:|---:|---:|---:|")
    for name, cost in found.items():
        print(
            f"| {name} | {cost.step:.2f} s | {cost.step_ratio:.1f}x "
            f"| {cost.inference:.3f} s | {cost.inference_ratio:.1f}x | {memory[name]:.2f} GiB |"
        )


if __name__ == "__main__":
    main()
