"""Training in several processes: equal to one process on the same batches, and what happens when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from config import AugmentationConfig, Config
from data.batches import ShuffledBatches, collate
from data.folder import open_data
from models import build_model, recompute_activations, synchronize_batch_norm
from models.network import BatchNorm
from tests.helpers.processes import command, ended, run_to_end, signaled, start_all
from tests.helpers.runs import ON_CPU, arguments, read_csv
from training.checkpoint import load_checkpoint
from training.device import Machine
from training.distributed import broadcast_statistics, distribute, gather, process_group, rank, shard, world_size
from training.epoch import Epoch, Training, train_one_epoch
from training.optimization import Optimization
from training.setup import training_loss
from training.signals import StopSignal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def normalize(folder: Path, x: torch.Tensor, weight: torch.Tensor) -> None:
    with process_group():
        norm = nn.BatchNorm2d(3).double()
        norm.weight.data.copy_(torch.tensor([0.5, 1.0, 2.0]))
        synchronize_batch_norm(norm)
        part = slice(0, 3) if rank() == 0 else slice(3, None)
        own = x[part].clone().requires_grad_()
        y = norm(own)
        (y * weight[part]).sum().backward()
        torch.save(
            {"y": y.detach(), "x_grad": own.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
             "mean": norm.running_mean, "var": norm.running_var, "count": norm.num_batches_tracked},
            folder / f"{rank()}.pt",
        )  # fmt: skip


def test_synchronized_batch_norm_against_one_batch(tmp_path):
    """Three slices in one process, one in the other, in float64."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    processes = start_all(normalize, tmp_path, x * 3 + 100, weight, output=tmp_path / "out")
    assert [ended(process) for process in processes] == [0, 0]
    parts = [torch.load(tmp_path / f"{k}.pt") for k in (0, 1)]
    norm = nn.BatchNorm2d(3).double()
    norm.weight.data.copy_(torch.tensor([0.5, 1.0, 2.0]))
    whole = (x * 3 + 100).requires_grad_()
    y = norm(whole)
    (y * weight).sum().backward()
    close = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(torch.cat([part["y"] for part in parts]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([part["x_grad"] for part in parts]), whole.grad, **close)
    torch.testing.assert_close(parts[0]["weight"] + parts[1]["weight"], norm.weight.grad, **close)
    torch.testing.assert_close(parts[0]["bias"] + parts[1]["bias"], norm.bias.grad, **close)
    for part in parts:
        torch.testing.assert_close(part["mean"], norm.running_mean, **close)
        torch.testing.assert_close(part["var"], norm.running_var, **close)
        assert part["count"] == 1


def normalize_single_values(folder: Path, x: torch.Tensor) -> None:
    with process_group():
        norm = BatchNorm(3).double()
        norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        synchronize_batch_norm(norm)
        first, last = x[[rank()]], x[:1].clone().requires_grad_()
        of_two = norm(first)
        before = norm.running_var.clone()
        of_one = norm(last)
        of_one.square().sum().backward()
        gradients = last.grad, norm.weight.grad
        torch.save((of_two, of_one, *gradients, before, norm.running_var, norm.running_mean), folder / f"{rank()}.pt")


def test_a_single_value_of_each_channel_is_normalized_as_in_one_process(tmp_path):
    """Of two slices each process has one value; of a last batch of one slice, both have the same."""
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    processes = start_all(normalize_single_values, tmp_path, x, output=tmp_path / "out")
    assert [ended(process) for process in processes] == [0, 0], (tmp_path / "out.0").read_text()
    norm = BatchNorm(3).double()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    last = x[:1].clone().requires_grad_()
    of_two, before = norm(x), norm.running_var.clone()
    of_one = norm(last)
    of_one.square().sum().backward()
    expected = of_one, last.grad, norm.weight.grad, before, norm.running_var, norm.running_mean
    for k in (0, 1):
        own, *others = torch.load(tmp_path / f"{k}.pt")
        torch.testing.assert_close(own, of_two[[k]])
        torch.testing.assert_close(others, list(expected))
    assert torch.equal(before, norm.running_var)


def epoch_in_float64(data: Path, out: Path, batch_size: int, recompute: bool, values: dict[str, Any]) -> None:
    """An epoch of two iterations, in one process or in several."""
    with process_group():
        config = Config.of(backbone="resnet18", batch_size=batch_size, **values)
        torch.manual_seed(0)
        model = build_model(config).double()
        if world_size() > 1:
            synchronize_batch_norm(model)
        if recompute:
            recompute_activations(model)
        dataset = open_data(data).dataset("train", AugmentationConfig())
        loader = DataLoader(
            dataset,
            batch_sampler=ShuffledBatches(dataset, batch_size, 0, rank(), world_size()),
            collate_fn=lambda items: collate([(image.double(), target) for image, target in items]),
        )
        machine = Machine(torch.device("cpu"), dtype=torch.float32, workers=0)
        optimization = Optimization(model, config.optimization, len(loader))
        loss = training_loss(config.loss, config.network.classes, machine.device)
        epoch = Epoch(0)
        train_one_epoch(Training(model, loader, loss, optimization, machine, StopSignal()), epoch, "")
        own, first = model.state_dict(), {}
        for name, value in own.items():
            first[name] = value.clone()
            if world_size() > 1:
                torch.distributed.broadcast(first[name], 0)
        as_first = all(torch.equal(first[name], value) for name, value in own.items())
        torch.save({"losses": epoch.losses(), "as_first": as_first}, out.with_suffix(f".{rank()}.pt"))
        if rank() == 0:
            torch.save(own, out.with_suffix(".model.pt"))


@pytest.mark.parametrize(
    ("processes", "batch_size", "recompute", "values"),
    [
        (2, 4, False, {}),
        (2, 5, True, {"steps": 1}),
        (3, 4, False, {"dice": 1.0, "guidance": False, "steps": 1, "lr": 1e-4}),
    ],
)
def test_processes_equal_one_on_the_same_global_batch(make_data, tmp_path, processes, batch_size, recompute, values):
    """In float64 with synchronized batch normalization: losses, weights and statistics to 1e-9 of their size.

    With Dice at a smaller rate: its gradients near zero are rounded more coarsely, and Adam makes whole steps of them.
    """
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))
    alone = run_to_end(epoch_in_float64, data, tmp_path / "one", batch_size, False, values, output=tmp_path / "out")
    assert alone == 0, (tmp_path / "out").read_text()
    options = batch_size, recompute, values
    parts = start_all(epoch_in_float64, data, tmp_path / "all", *options, output=tmp_path / "all", world_size=processes)
    assert [ended(process) for process in parts] == [0] * processes, (tmp_path / "all.0").read_text()
    one, *several = (torch.load(tmp_path / name) for name in ("one.0.pt", *(f"all.{k}.pt" for k in range(processes))))
    for other in several:
        assert other == several[0] and other["as_first"]
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=1e-9)
    copied = 0 < 6 % batch_size < processes
    expected, weights = (torch.load(tmp_path / name) for name in ("one.model.pt", "all.model.pt"))
    for key, value in expected.items():
        # A last batch that every process has: its unbiased variance is then another one.
        if not (copied and key.endswith("running_var")):
            torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-9)


class HalfUsed(nn.Module):
    """As PSPNet of segmentation_models.pytorch, it has weights that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def gradients_of_steps(folder: Path) -> None:
    with process_group():
        network = HalfUsed()
        model, gradients = distribute(network, torch.device("cpu")), []
        for step in range(3):
            network.zero_grad()
            model(torch.full((1, 2), float(step + rank()))).sum().backward()
            gradients.append((network.used.weight.grad, network.idle.weight.grad))
        torch.save(gradients, folder / f"{rank()}.pt")


def test_weights_that_no_step_uses_are_not_waited_for(tmp_path):
    """The gradient of the others is the mean over both processes, in every step; theirs stays None."""
    processes = start_all(gradients_of_steps, tmp_path, output=tmp_path / "out")
    assert [ended(process) for process in processes] == [0, 0], (tmp_path / "out.0").read_text()
    for k in (0, 1):
        for step, (used, idle) in enumerate(torch.load(tmp_path / f"{k}.pt")):
            assert torch.equal(used, torch.full((2, 2), step + 0.5))
            assert idle is None


def give_statistics(folder: Path) -> None:
    with process_group():
        norm = nn.BatchNorm2d(2)
        norm.running_mean.fill_(rank() + 1)
        broadcast_statistics(norm)
        torch.save(norm.running_mean, folder / f"{rank()}.pt")


def test_running_statistics_are_those_of_the_first_process(tmp_path):
    processes = start_all(give_statistics, tmp_path, output=tmp_path / "out")
    assert [ended(process) for process in processes] == [0, 0], (tmp_path / "out.0").read_text()
    assert [torch.load(tmp_path / f"{k}.pt").tolist() for k in (0, 1)] == [[1, 1], [1, 1]]


def gather_shards(count: int, out: Path) -> None:
    with process_group():
        out.with_suffix(f".{rank()}").write_text(repr(gather([item * 10 for item in shard(range(count))])))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_gathered_in_order(tmp_path, count):
    for process in start_all(gather_shards, count, tmp_path / "items", output=tmp_path / "out"):
        assert ended(process) == 0
    for k in (0, 1):
        assert (tmp_path / f"items.{k}").read_text() == repr([item * 10 for item in range(count)])


@pytest.fixture
def data(make_data) -> Path:
    """Four iterations of two slices; three test subjects for two processes."""
    return make_data({"train": ["1", "2"], "val": ["3", "5"], "test": ["4", "6", "7"]}, numbers=(1, 2, 3, 4))


def kill_one_process(torchrun: subprocess.Popen, out: Path) -> list[str]:
    """Kill the second process of a training that has saved its first epoch; return the ids of both."""
    while not (out / "last.pt").exists():
        assert torchrun.poll() is None, "it ended before its first epoch did"
        time.sleep(0.05)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    return children


def test_torchrun_restarts_what_was_killed_then_ends_and_goes_on(data, tmp_path):
    """The real command. A killed process ends all, which start once more; the second time, with a clear line."""
    out, log, torchrun = tmp_path / "run", tmp_path / "log", [sys.executable, "-m", "torch.distributed.run"]
    small = [*ON_CPU, "--backbone", "resnet18", "--steps", "1", "--no_guidance", "--batch_size", "2"]
    script = ["--nproc_per_node=2", "main.py", *small, "--data", str(data), "--out", str(out)]
    with log.open("w") as file:
        restarting = [*torchrun, "--standalone", "--max-restarts=1", *script, "--epochs", "99"]
        running = subprocess.Popen(restarting, cwd=ROOT, stdout=file, stderr=file)
        kill_one_process(running, out)
        while "resumed after epoch" not in log.read_text():
            assert running.poll() is None, log.read_text()
            time.sleep(0.05)
        children = kill_one_process(running, out)
        assert running.wait(timeout=60) != 0
    assert "error: process 0 of 2 has lost another one" in log.read_text()
    assert "--resume goes on" in log.read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    epochs = load_checkpoint(out / "last.pt")["progress"]["epoch"]["number"]
    flags = [*script[2:], "--epochs", str(epochs + 1), "--resume"]
    processes = start_all(command, flags, output=tmp_path / "again")
    assert [ended(process) for process in processes] == [0, 0], (tmp_path / "again.0").read_text()
    first, second = ((tmp_path / f"again.{k}").read_text() for k in (0, 1))
    assert f"resumed after epoch {epochs}" in first
    assert first.count("Everything is in") == 1 and second == ""  # one process speaks
    assert len(read_csv(out / "log.csv")) == epochs + 1
    assert [row["subject"] for row in read_csv(out / "test.csv")][::4] == ["4", "6", "7"]


def test_a_signal_to_one_process_stops_both_and_they_go_on(data, tmp_path):
    """Stopped within an epoch and resumed, two processes end as if they had not been; one alone ends there, too."""
    results = {}
    for name, processes in (("straight", 2), ("stopped", 2), ("alone", 1)):
        out = tmp_path / name
        flags = arguments(data, out, "--epochs", "2", "--sync_batch_norm")
        if name != "straight":
            stopped = start_all(signaled, flags, 3, signal.SIGUSR1, "1", output=tmp_path / name)
            assert [ended(process) for process in stopped] == [75, 75], (tmp_path / f"{name}.1").read_text()
            assert load_checkpoint(out / "last.pt")["progress"]["epoch"]["iteration"] == 3
        running = start_all(command, flags, output=tmp_path / name, world_size=processes)
        assert [ended(process) for process in running] == [0] * processes, (tmp_path / f"{name}.0").read_text()
        results[name] = load_checkpoint(out / "last.pt")["model"]
        written = sorted(path.name for path in (out / "predictions").glob("*.nii.gz"))
        assert written == [f"{k}.nii.gz" for k in (4, 6, 7)]
    torch.testing.assert_close(results["stopped"], results["straight"], rtol=0, atol=0)
    for weights in results.values():
        # Before batch normalization: the gradient of a bias is rounding, which Adam makes steps of.
        del weights["layers.0.bias"], weights["layers.1.running_mean"]
    torch.testing.assert_close(results["alone"], results["straight"], rtol=1e-3, atol=1e-4)


def test_a_mistake_is_said_once(data, tmp_path):
    processes = start_all(command, ["--data", str(tmp_path / "nowhere")], output=tmp_path / "out")
    assert [ended(process) for process in processes] == [2, 2]
    assert "no such folder" in (tmp_path / "out.0").read_text()
    assert (tmp_path / "out.1").read_text() == ""
    processes = start_all(command, arguments(data, tmp_path / "run", "--batch_size", "1"), output=tmp_path / "few")
    assert [ended(process) for process in processes] == [2, 2]
    assert "fewer slices than processes" in (tmp_path / "few.0").read_text()
