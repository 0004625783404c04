"""The estimate of a training step's memory, and what is said where it does not suffice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import Config
from losses import GuidedLoss
from models import build_model
from models.kernels import blocked_attention as kernel
from tests.helpers.processes import command, run_to_end
from tests.helpers.runs import ON_CPU
from training import memory
from training.memory import LiveBytes, MemoryBudget, StepMemory, available_bytes, step_memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "bfloat16"),
    [({"steps": 2}, False), ({"steps": 1}, True), ({"model": "unet"}, False), ({"steps": 2, "recompute": True}, False)],
)
def test_estimate_against_what_autograd_keeps(options, bfloat16):
    """Counted on a real step of three slices: the storages that the backward pass waits for, once each."""
    config = Config.of(backbone="resnet18", **options)
    estimate = step_memory(config, (96, 64), bfloat16)
    model = build_model(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        GuidedLoss()(model(torch.rand(3, 1, 96, 64)), torch.zeros(3, 96, 64, dtype=torch.long))
    activations = sum(size for address, size in kept.items() if address not in own)
    counted = 16 * parameters + activations
    if config.machine.recompute:
        assert estimate.of(3) < 0.95 * counted
    else:
        assert estimate.of(3) == pytest.approx(counted, rel=0.05)


class Operations(LiveBytes):
    """Counts them, too."""

    count = 0

    def __torch_dispatch__(self, *call: Any) -> Any:
        Operations.count += 1
        return super().__torch_dispatch__(*call)


@pytest.mark.slow
def test_estimate_takes_as_long_for_large_slices_as_for_small_ones(monkeypatch):
    """As many operations, where real attention goes through 3 and 41 blocks; and the bytes of a real step."""
    monkeypatch.setattr(memory, "LiveBytes", Operations)
    monkeypatch.setattr(kernel, "BLOCK", 100 * 256)
    config, counts = Config.of(backbone="resnet18", steps=1), []
    for side in (64, 128):
        Operations.count = 0
        estimate = step_memory(config, (side, side), False)
        counts.append(Operations.count)
    assert counts[0] == counts[1]
    model, target = build_model(config), torch.zeros(1, side, side, dtype=torch.long)
    with LiveBytes() as live:
        kept = GuidedLoss()(model(torch.rand(1, 1, side, side)), target)
        assert kept.total.requires_grad
        assert estimate.per_slice == pytest.approx(live.bytes, rel=1e-3)


@pytest.mark.slow
def test_estimate_waits_for_no_other_process(monkeypatch):
    """The Dice loss sums over the processes, but not where there is nothing to sum."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the estimate spoke to other processes")

    config = Config.of(backbone="resnet18", steps=1, guidance=False, dice=1.0)
    alone = step_memory(config, (48, 48), False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)
    assert step_memory(config, (48, 48), False) == alone


@pytest.mark.slow
def test_estimate_of_a_transformer():
    """It is built from tensors with content, whose numbers it wants to know; counted on a real step."""
    pytest.importorskip("segmentation_models_pytorch")
    config, target = Config.of(model="smp.Segformer", backbone="mit_b0"), torch.zeros(1, 64, 64, dtype=torch.long)
    model = build_model(config)
    with LiveBytes() as live:
        kept = GuidedLoss()(model(torch.rand(1, 1, 64, 64)), target)
        assert kept.total.requires_grad
        assert step_memory(config, (64, 64), False).per_slice == pytest.approx(live.bytes, rel=1e-2)


def test_what_fits():
    memory = StepMemory(fixed=1000, per_slice=100)
    for available in (0, 999, 1099, 1100, 1999, 2000):
        slices = memory.fits(available)
        assert memory.of(slices) <= available or slices == 0
        assert memory.of(slices + 1) > available


def run_in_little_memory(data: Path, out: Path) -> None:
    """Address space for 300 MiB more than the process has when training begins."""
    import resource

    import main

    train = main.train_one_epoch

    def limited(*arguments: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 300 * 2**20,) * 2)
        train(*arguments)

    main.train_one_epoch = limited
    flags = ["--backbone", "resnet18", "--steps", "1", "--no_guidance", "--batch_size", "6", "--epochs", "3"]
    command(["--data", str(data), "--out", str(out), *ON_CPU, *flags])


@pytest.mark.slow
def test_out_of_memory_says_what_to_change(make_data, tmp_path):
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3), size=(256, 256))
    assert run_to_end(run_in_little_memory, data, tmp_path / "run", output=tmp_path / "out") == 1
    message = (tmp_path / "out").read_text()
    assert "an iteration takes about" in message
    assert "error: out of memory in a training step; " in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_advice_fits_the_memory():
    config, size = Config.of(backbone="resnet18", steps=1), (64, 64)
    plain = step_memory(config, size, False)
    text = MemoryBudget(config, size, False, plain.of(3), processes=1).advice()
    assert "--batch_size 3 (" in text
    (slices,) = re.findall(r"--batch_size (\d+) --recompute", text)
    recomputed = step_memory(config.change(recompute=True), size, False)
    assert recomputed.of(int(slices)) <= plain.of(3)
    assert "--batch_size 6" in MemoryBudget(config, size, False, plain.of(3), processes=2).advice()
    assert "smaller" in MemoryBudget(config, size, False, plain.fixed, processes=1).advice()
    unet = Config.of(model="unet")  # which has nothing to recompute
    advice = MemoryBudget(unet, size, False, step_memory(unet, size, False).of(2), processes=1).advice()
    assert re.fullmatch(r"try --batch_size 2 \(about \d+\.\d GiB\)", advice)


def test_other_errors_are_not_called_out_of_memory(monkeypatch):
    budget = MemoryBudget(Config(), (64, 64), False, 0, processes=1)
    monkeypatch.setattr(MemoryBudget, "advice", lambda self: "fewer slices")
    with pytest.raises(RuntimeError, match="shapes"), budget.explain_out_of_memory():
        raise RuntimeError("shapes differ")
    with pytest.raises(MemoryError, match="fewer slices"), budget.explain_out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert 2**28 < available_bytes(torch.device("cpu")) < 2**50


@pytest.mark.slow
def test_peak_memory_is_that_of_this_program_alone():
    """Not of the program that started it; getrusage would tell of that, too."""
    held = np.ones(3 * 2**28, np.uint8)  # by this process, which is larger
    code = (
        "import numpy as np, torch; from training.device import peak_memory; cpu = torch.device('cpu'); "
        "first = peak_memory(cpu); taken = np.ones(2**28, np.uint8); print(first, peak_memory(cpu) - first)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, more = map(float, result.stdout.split())
    assert 0.1 < first < held.nbytes / 2**30
    assert more == pytest.approx(0.25, abs=0.02)


def test_cached_files_of_a_control_group_count_as_free(tmp_path, monkeypatch):
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable: 33554432 kB\n")
    (group / "memory.max").write_text(f"{16 * 2**30}\n")
    (group / "memory.current").write_text(f"{15 * 2**30}\n")
    (group / "memory.stat").write_text(f"anon {2**30}\ninactive_file {10 * 2**30}\nactive_file {4 * 2**30}\n")
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert available_bytes(torch.device("cpu")) == 15 * 2**30
    (group / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) == 32 * 2**30
