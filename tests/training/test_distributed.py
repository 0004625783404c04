"""Training in several processes: equal to one process on the same batches, and what happens when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from checkpoint import StopSignal, load_checkpoint
from config import Config
from data.augment import Augmentation
from data.folder import open_data
from data.slices import ShuffledBatches, collate
from distributed import distribute, gather, process_group, rank, share, share_statistics, world
from engine import Epoch, train_one_epoch
from losses import GuidedLoss
from models import build_model, synchronize_batch_norm
from optimization import Optimization
from tests.processes import command, ended, signaled, start, start_all
from tests.test_main import read_csv
from tests.test_reliability import arguments

ROOT = Path(__file__).parents[1]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9))
@settings(deadline=None)
def test_processes_share_the_batches(slices, batch, processes, epoch, skip):
    """Every slice counts once in an epoch and as much as any other, in the order of one process, from any step on."""
    batch = max(batch, processes)
    dataset = range(slices)
    alone = ShuffledBatches(dataset, batch, 3)
    alone.begin(epoch)
    steps = list(alone)
    assert sorted(index for step in steps for index in step) == list(dataset)
    assert [len(step) for step in steps[:-1]] == [batch] * (len(steps) - 1)
    shares = [ShuffledBatches(dataset, batch, 3, k, processes) for k in range(processes)]
    start = min(skip, len(steps))
    for part in shares:
        part.begin(epoch, start)
    parts = [list(part) for part in shares]
    assert [len(part) for part in parts] == [len(steps) - start] * processes
    for step in range(start, len(steps)):
        counted: dict[int, float] = {}
        for part, own in zip(shares, parts, strict=True):
            indices = own[step - start]
            for index in indices:  # DistributedDataParallel takes the mean over the processes of the means over slices
                counted[index] = counted.get(index, 0) + part.weight(step) / processes / len(indices)
        counted = {index: weight for index, weight in counted.items() if weight}
        assert counted == pytest.approx(dict.fromkeys(steps[step], 1 / len(steps[step])))


def test_order_differs_between_epochs_and_seeds():
    orders = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            batches = ShuffledBatches(range(50), 50, seed)
            batches.begin(epoch)
            orders.add(tuple(next(iter(batches))))
    assert len(orders) == 4


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


def steps_in_float64(data: Path, out: Path, batch_size: int, recompute: bool, dice: float, options: dict) -> None:
    """An epoch of two steps, in one process or in several."""
    with process_group():
        torch.manual_seed(0)
        model = build_model(Config(backbone="resnet18", **options)).double()
        if world() > 1:
            synchronize_batch_norm(model)
        if recompute:
            from models import recompute_activations

            recompute_activations(model)
        training = distribute(model, torch.device("cpu"))
        dataset = open_data(data).dataset("train", Augmentation())
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=ShuffledBatches(dataset, batch_size, 0, rank(), world()),
            collate_fn=lambda items: collate([(image.double(), target) for image, target in items]),
        )
        optimization = Optimization(model, Config(**options), len(loader))
        criterion, epoch, device = GuidedLoss(dice=dice), Epoch(0), torch.device("cpu")
        train_one_epoch(training, loader, criterion, optimization, device, False, epoch, 0, StopSignal(), "")
        torch.save({"model": model.state_dict(), "losses": epoch.losses()}, out.with_suffix(f".{rank()}.pt"))


@pytest.mark.parametrize(
    ("processes", "batch_size", "recompute", "dice", "options"),
    [
        (2, 4, False, 0.0, {}),
        (2, 5, True, 0.0, {}),
        (3, 4, False, 1.0, {"guidance": False, "steps": 1, "lr": 1e-4}),
    ],
)
def test_processes_equal_one_on_the_same_global_batch(
    make_data, tmp_path, processes, batch_size, recompute, dice, options
):
    """In float64 with synchronized batch normalization: losses, weights and statistics to 1e-9 of their size.

    With Dice at a smaller rate: its gradients near zero are rounded more coarsely, and Adam makes whole steps of them.
    """
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))
    alone = start(steps_in_float64, data, tmp_path / "one", batch_size, False, dice, options, output=tmp_path / "out")
    assert ended(alone) == 0, (tmp_path / "out").read_text()
    settings = batch_size, recompute, dice, options
    parts = start_all(steps_in_float64, data, tmp_path / "all", *settings, output=tmp_path / "all", world=processes)
    assert [ended(process) for process in parts] == [0] * processes, (tmp_path / "all.0").read_text()
    one, *several = (torch.load(tmp_path / name) for name in ("one.0.pt", *(f"all.{k}.pt" for k in range(processes))))
    for other in several:
        assert other["losses"] == several[0]["losses"]
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=1e-9)
    copied = 0 < 6 % batch_size < processes
    for other in several:
        for key, value in one["model"].items():
            # A last batch that every process has: its unbiased variance is then another one.
            if not (copied and key.endswith("running_var")):
                torch.testing.assert_close(other["model"][key], value, rtol=1e-9, atol=1e-9)


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


def share_running_statistics(folder: Path) -> None:
    with process_group():
        norm = nn.BatchNorm2d(2)
        norm.running_mean.fill_(rank() + 1)
        share_statistics(norm)
        torch.save(norm.running_mean, folder / f"{rank()}.pt")


def test_running_statistics_are_those_of_the_first_process(tmp_path):
    processes = start_all(share_running_statistics, tmp_path, output=tmp_path / "out")
    assert [ended(process) for process in processes] == [0, 0], (tmp_path / "out.0").read_text()
    assert [torch.load(tmp_path / f"{k}.pt").tolist() for k in (0, 1)] == [[1, 1], [1, 1]]


def gather_shares(count: int, out: Path) -> None:
    with process_group():
        out.with_suffix(f".{rank()}").write_text(repr(gather([item * 10 for item in share(range(count))])))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_gathered_in_order(tmp_path, count):
    for process in start_all(gather_shares, count, tmp_path / "items", output=tmp_path / "out"):
        assert ended(process) == 0
    for k in (0, 1):
        assert (tmp_path / f"items.{k}").read_text() == repr([item * 10 for item in range(count)])


@pytest.fixture
def data(make_data) -> Path:
    """Four training steps of two slices; three test subjects for two processes."""
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
    script = ["--nproc_per_node=2", "main.py", *arguments(data, out)[:-1]]
    with log.open("w") as file:
        command = [*torchrun, "--standalone", "--max-restarts=1", *script, "--epochs", "99"]
        running = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        kill_one_process(running, out)
        while "resumed after epoch" not in log.read_text():
            assert running.poll() is None, log.read_text()
            time.sleep(0.05)
        children = kill_one_process(running, out)
        assert running.wait(timeout=60) != 0
    assert "error: process 0 of 2 has lost another one" in log.read_text()
    assert "--resume goes on" in log.read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    epochs = load_checkpoint(out / "last.pt")["epoch"]["number"]
    command = [*torchrun, *script, "--epochs", str(epochs + 1), "--resume"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"resumed after epoch {epochs}" in done.stdout
    assert done.stdout.count("Everything is in") == 1  # one process speaks
    assert len(read_csv(out / "log.csv")) == epochs + 1
    assert [row["subject"] for row in read_csv(out / "test.csv")][::4] == ["4", "6", "7"]


def test_a_signal_to_one_process_stops_both_and_they_go_on(data, tmp_path):
    """Stopped within an epoch and resumed, two processes end as if they had not been."""
    results = []
    for name in ("straight", "stopped"):
        out = tmp_path / name
        flags = arguments(data, out, "--epochs", "2", "--sync_batch_norm")
        if name == "stopped":
            processes = start_all(signaled, flags, 3, signal.SIGUSR1, "1", output=tmp_path / name)
            assert [ended(process) for process in processes] == [75, 75], (tmp_path / "stopped.1").read_text()
            assert load_checkpoint(out / "last.pt")["epoch"]["step"] == 3
        processes = start_all(command, flags, output=tmp_path / name)
        assert [ended(process) for process in processes] == [0, 0], (tmp_path / f"{name}.0").read_text()
        results.append(load_checkpoint(out / "last.pt"))
        assert sorted(path.name for path in (out / "predictions").iterdir()) == [f"{k}.nii.gz" for k in (4, 6, 7)]
    torch.testing.assert_close(results[1]["model"], results[0]["model"], rtol=0, atol=0)


def test_a_mistake_is_said_once(data, tmp_path):
    processes = start_all(command, ["--data", str(tmp_path / "nowhere")], output=tmp_path / "out")
    assert [ended(process) for process in processes] == [2, 2]
    assert "no such folder" in (tmp_path / "out.0").read_text()
    assert (tmp_path / "out.1").read_text() == ""
    processes = start_all(command, arguments(data, tmp_path / "run", "--batch_size", "1"), output=tmp_path / "few")
    assert [ended(process) for process in processes] == [2, 2]
    assert "fewer slices than processes" in (tmp_path / "few.0").read_text()
