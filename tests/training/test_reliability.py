"""Runs that are killed, stopped, starved or fed with numbers that are not finite: nothing is lost, and all is said."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import memory
from checkpoint import REQUEUE, StopSignal, load_checkpoint
from config import Config, parse_config
from data.folder import open_data
from data.slices import ShuffledBatches
from engine import Epoch, train_one_epoch
from losses import GuidedLoss
from main import main
from memory import LiveBytes, StepMemory, available_bytes, explain_out_of_memory, step_memory
from models import build_model
from models.attention import BlockedAttention
from optimization import Optimization
from tests.processes import command, ended, signaled, start
from tests.test_main import read_csv
from utils import InputError

TINY = [
    "--backbone",
    "resnet18",
    "--steps",
    "1",
    "--device",
    "cpu",
    "--amp",
    "off",
    "--batch_size",
    "2",
    "--no-guidance",
]


@pytest.fixture
def data(make_data) -> Path:
    """Three training steps in an epoch."""
    return make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))


def arguments(data: Path, out: Path, *flags: str) -> list[str]:
    return ["--data", str(data), "--out", str(out), *TINY, "--epochs", "3", *flags, "--resume"]


def same_result(first: Path, second: Path) -> None:
    """Weights, optimizer, log and scores are the same, bit for bit."""
    before, after = (load_checkpoint(folder / "last.pt") for folder in (first, second))
    for checkpoint in (before, after):
        del checkpoint["config"]
        for row in checkpoint["log"]:
            del row["seconds"], row["memory_gib"]
        checkpoint.update(checkpoint.pop("optimization"))
    for part in ("model", "optimizer"):
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0)
    for part in ("schedule", "epoch", "best", "log", "slices"):
        assert after[part] == before[part]
    for name in ("log.csv", "test.csv"):
        rows = [read_csv(folder / name) for folder in (first, second)]
        for row in (*rows[0], *rows[1]):
            row.pop("seconds", None), row.pop("memory_gib", None)
        assert rows[0] == rows[1]
    best = [load_checkpoint(folder / "best.pt")["model"] for folder in (first, second)]
    torch.testing.assert_close(*best, rtol=0, atol=0)


def leftovers(out: Path) -> list[Path]:
    """Checkpoints that are, or were, being written."""
    return list(out.glob(".*.partial.*.pt"))


def test_killed_at_any_moment_it_ends_with_the_same_result(data, tmp_path):
    """SIGKILL after random times, and as soon as a file is being written."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    flags = ["--epochs", "5"]
    assert ended(start(command, arguments(data, straight, *flags), output=tmp_path / "log")) == 0
    rng, in_writing = np.random.default_rng(0), 0
    for attempt in range(8):
        process = start(command, arguments(data, killed, *flags), output=tmp_path / "log")
        moment = time.monotonic() + (20 if attempt % 2 else rng.uniform(0.2, 3))
        while process.exitcode is None and time.monotonic() < moment and not (attempt % 2 and leftovers(killed)):
            time.sleep(0.001)
        process.kill()
        process.join()
        in_writing += bool(leftovers(killed))
        if process.exitcode == 0:
            break
    assert attempt >= 4, "it ended too soon"
    assert in_writing >= 2
    if process.exitcode != 0:
        assert ended(start(command, arguments(data, killed, *flags), output=tmp_path / "log")) == 0
    assert not leftovers(killed)
    same_result(straight, killed)


def test_a_signal_ends_the_step_and_the_run_goes_on_from_there(data, tmp_path):
    """Two of its three steps, then, resumed, the third and one of the next epoch, then the rest."""
    straight, stopped, flags = tmp_path / "straight", tmp_path / "stopped", ["--workers", "1", "--epochs", "2"]
    assert ended(start(command, arguments(data, straight, *flags), output=tmp_path / "log")) == 0
    for number, position in ((signal.SIGUSR1, (0, 2)), (signal.SIGTERM, (1, 1))):
        process = start(signaled, arguments(data, stopped, *flags), 2, number, output=tmp_path / "out")
        assert ended(process) == REQUEUE, (tmp_path / "out").read_text()
        assert f"stopped by {number.name} " in (tmp_path / "out").read_text()
        epoch = load_checkpoint(stopped / "last.pt")["epoch"]
        assert (epoch["number"], epoch["step"]) == position
    assert ended(start(command, arguments(data, stopped, *flags), output=tmp_path / "out")) == 0
    same_result(straight, stopped)


def test_a_signal_outside_of_training_ends_at_once():
    with pytest.raises(SystemExit) as ending, StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert ending.value.code == REQUEUE
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ---------------------------------------------------------------- storage


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own in `folder`, where this machine lets us make one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(data, tmp_path):
    """The second checkpoint does not fit. When there is room, the run goes on from the first one."""
    straight, disk = tmp_path / "straight", tmp_path / "disk"
    flags = ["--epochs", "2", "--steps", "1"]
    assert ended(start(command, arguments(data, straight, *flags), output=tmp_path / "log")) == 0
    size = (straight / "last.pt").stat().st_size + (straight / "best.pt").stat().st_size
    with small_disk(disk, f"{size + 2**23}"):
        assert ended(start(command, arguments(data, disk / "run", *flags), output=tmp_path / "out")) == 1
        message = (tmp_path / "out").read_text().splitlines()[-1]
        assert message.startswith("error: ")
        assert "writing failed" in message
        assert "free some space" in message
        assert "Traceback" not in (tmp_path / "out").read_text()
        assert not leftovers(disk / "run")
        assert load_checkpoint(disk / "run" / "last.pt")["epoch"]["number"] == 1
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(disk)], check=True)
        assert ended(start(command, arguments(data, disk / "run", *flags), output=tmp_path / "out")) == 0
        same_result(straight, disk / "run")


def test_read_only_folder(data, tmp_path):
    with small_disk(tmp_path / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        assert ended(start(command, arguments(data, tmp_path / "disk" / "run"), output=tmp_path / "out")) == 1
    message = (tmp_path / "out").read_text().splitlines()[-1]
    assert message.startswith("error: ")
    assert "Read-only file system" in message
    assert "Traceback" not in (tmp_path / "out").read_text()


def test_a_run_goes_on_with_the_same_slices_only(data, tmp_path):
    main(parse_config(arguments(data, tmp_path / "run", "--epochs", "1")))
    for kind in ("Img", "GT"):
        (data / "train" / kind / "Subj_1slice_3.png").unlink()
    with pytest.raises(InputError, match="other training slices"):
        main(parse_config(arguments(data, tmp_path / "run", "--epochs", "2")))
    assert (tmp_path / "run" / "test.json").exists()


def test_a_run_goes_on_with_the_same_evaluation_only(data, tmp_path):
    """Else its best epoch could be one that its new test subjects chose."""
    main(parse_config(arguments(data, tmp_path / "run", "--epochs", "1")))
    for source, target in (("val", "kept"), ("test", "val"), ("kept", "test")):
        (data / source).rename(data / target)
    with pytest.raises(InputError, match="other validation or test slices"):
        main(parse_config(arguments(data, tmp_path / "run", "--epochs", "2")))
    assert (tmp_path / "run" / "test.json").exists()


def test_a_run_goes_on_with_the_same_classes_only(data, tmp_path):
    """Names in another order number the classes anew; the refusal leaves the finished run as it is."""
    labels = {"background": 0, "liver": 63, "right": 126, "left": 189, "spleen": 252}
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    main(parse_config(arguments(data, tmp_path / "run", "--epochs", "1")))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    turned = {"background": 0, "liver": 63, "left": 189, "right": 126, "spleen": 252}
    wrong = {
        "other classes": {"labels": turned},
        "other preparation": {"labels": labels, "preparation": {"bits": 16}},
        "classes 5 -> 6": {"labels": labels | {"heart": 31}},
    }
    for message, content in wrong.items():
        (data / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            main(parse_config(arguments(data, tmp_path / "run", "--epochs", "2")))
    assert {path: path.read_bytes() for path in before} == before


def test_a_checkpoint_without_its_configuration_is_not_taken_for_another_run(data, tmp_path):
    main(parse_config(arguments(data, tmp_path / "run", "--epochs", "1")))
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=r"other settings \(lr 0\.001 -> 0\.01\)"):
        main(parse_config(arguments(data, tmp_path / "run", "--epochs", "2", "--lr", "0.01")))


# ---------------------------------------------------------------- numbers


class Spoiled(GuidedLoss):
    """A loss that is not finite, or whose gradient is not, at the steps in `bad`; it also ruins running statistics."""

    def __init__(self, model: nn.Module, bad: dict[int, str]) -> None:
        super().__init__()
        self.model, self.bad, self.step = [model], bad, 0

    def forward(self, output: Any, target: torch.Tensor, counted: bool = True) -> Any:
        terms = super().forward(output, target, counted)
        what = self.bad.get(self.step, "")
        self.step += 1
        if what:
            for buffer in self.model[0].buffers():
                buffer.data.fill_(7)  # without autograd noticing
        if what == "loss":
            return terms._replace(total=terms.total * float("nan"))
        if what == "gradient":  # the square root of 0 is finite, its derivative is not
            return terms._replace(total=terms.total + (terms.total * 0).sqrt())
        return terms


def train(data: Path, bad: dict[int, str], only: list[int] | None = None, max_skipped: int = 2):
    """One epoch of a tiny network; with `only`, of these steps alone."""
    torch.manual_seed(0)
    model = build_model(Config(backbone="resnet18", steps=1, guidance=False))
    dataset = open_data(data).dataset("train")
    batches = ShuffledBatches(dataset, 2, seed=0)
    if only is not None:
        batches.begin = lambda epoch, step: None
        batches.order = [index for step in only for index in batches.batch(step)]
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=batches)
    optimization = Optimization(model, Config(), len(batches))
    epoch, device = Epoch(0), torch.device("cpu")
    batches.slices = len(batches.order)
    criterion = Spoiled(model, bad)
    train_one_epoch(model, loader, criterion, optimization, device, False, epoch, max_skipped, StopSignal(), "")
    return model.state_dict(), epoch, batches


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(data, what, capsys):
    spoiled, epoch, batches = train(data, {1: what})
    without, _, _ = train(data, {}, only=[0, 2])
    floats = {key: value for key, value in spoiled.items() if value.is_floating_point()}
    torch.testing.assert_close(floats, {key: without[key] for key in floats}, rtol=0, atol=0)
    assert (epoch.skipped, epoch.step, epoch.slices) == (1, 3, 4)
    printed = capsys.readouterr().out
    assert "epoch 1, step 2: the loss or its gradient is not finite" in printed
    names = sorted(path.name for path in (data / "train" / "Img").iterdir())
    for index in batches.batch(1):
        assert names[index] in printed


def test_more_such_steps_than_allowed_stop_the_training(data):
    with pytest.raises(FloatingPointError, match=r"step 2.*after 1 others.*--lr.*slices: Subj_"):
        train(data, {0: "loss", 1: "loss"}, max_skipped=1)
    with pytest.raises(FloatingPointError, match="no step had a finite loss"):
        train(data, {0: "loss", 1: "loss", 2: "loss"}, max_skipped=3)


def test_a_diverged_run_keeps_its_last_good_checkpoint(data, tmp_path):
    out = tmp_path / "run"
    assert ended(start(command, arguments(data, out, "--epochs", "1"), output=tmp_path / "log")) == 0
    before = load_checkpoint(out / "last.pt")
    # The weights of the second epoch: after a rate that makes everything overflow.
    spoiled = load_checkpoint(out / "last.pt")
    spoiled["model"]["backbone.stem.0.weight"][:] = torch.inf
    torch.save(spoiled, out / "last.pt")
    flags = ["--epochs", "2", "--max_skipped", "1"]
    assert ended(start(command, arguments(data, out, *flags), output=tmp_path / "out")) == 1
    assert "error: epoch 2, step 2: the loss or its gradient is not finite" in (tmp_path / "out").read_text()
    assert load_checkpoint(out / "last.pt")["epoch"] == before["epoch"]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("options", "bfloat16"),
    [({"steps": 2}, False), ({"steps": 1}, True), ({"model": "unet"}, False), ({"steps": 2, "recompute": True}, False)],
)
def test_estimate_against_what_autograd_keeps(options, bfloat16):
    """Counted on a real step of three slices: the storages that the backward pass waits for, once each."""
    config = Config(backbone="resnet18", **options)
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
    if config.recompute:
        assert estimate.of(3) < 0.95 * counted
    else:
        assert estimate.of(3) == pytest.approx(counted, rel=0.05)


class Operations(LiveBytes):
    """Counts them, too."""

    count = 0

    def __torch_dispatch__(self, *call: Any) -> Any:
        Operations.count += 1
        return super().__torch_dispatch__(*call)


def test_estimate_takes_as_long_for_large_slices_as_for_small_ones(monkeypatch):
    """As many operations, where real attention goes through 3 and 41 blocks; and the bytes of a real step."""
    monkeypatch.setattr("memory.LiveBytes", Operations)
    monkeypatch.setattr(BlockedAttention, "BLOCK", 100 * 256)
    config, counts = Config(backbone="resnet18", steps=1), []
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


def test_estimate_waits_for_no_other_process(monkeypatch):
    """The Dice loss adds up over the processes, but not where there is nothing to add."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the estimate spoke to other processes")

    config = Config(backbone="resnet18", steps=1, guidance=False, dice=1.0)
    alone = step_memory(config, (48, 48), False)
    monkeypatch.setattr("distributed.world", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)
    assert step_memory(config, (48, 48), False) == alone


def test_estimate_of_a_transformer():
    """It is built from tensors with content, whose numbers it wants to know; counted on a real step."""
    pytest.importorskip("segmentation_models_pytorch")
    config, target = Config(model="smp.Segformer", backbone="mit_b0"), torch.zeros(1, 64, 64, dtype=torch.long)
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

    def limited(*arguments: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 300 * 2**20,) * 2)
        train_one_epoch(*arguments)

    main.train_one_epoch = limited
    command(arguments(data, out, "--batch_size", "6"))


def test_out_of_memory_says_what_to_change(make_data, tmp_path):
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3), size=(256, 256))
    assert ended(start(run_in_little_memory, data, tmp_path / "run", output=tmp_path / "out")) == 1
    message = (tmp_path / "out").read_text()
    assert "a training step takes about" in message
    assert "error: out of memory in a training step; " in message
    assert "Traceback" not in message


def test_advice_fits_the_memory():
    from memory import advice

    config, size = Config(backbone="resnet18"), (64, 64)
    plain = step_memory(config, size, False)
    text = advice(config, size, False, plain.of(3), processes=1)
    assert "--batch_size 3 (" in text
    (slices,) = re.findall(r"--batch_size (\d+) --recompute", text)
    recomputed = step_memory(replace(config, recompute=True), size, False)
    assert recomputed.of(int(slices)) <= plain.of(3)
    assert "--batch_size 6" in advice(config, size, False, plain.of(3), processes=2)
    assert "smaller" in advice(config, size, False, plain.fixed, processes=1)


def test_other_errors_are_not_called_out_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(lambda: ""):
        raise RuntimeError("shapes differ")
    with pytest.raises(MemoryError, match="fewer slices"), explain_out_of_memory(lambda: "fewer slices"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert 2**28 < available_bytes(torch.device("cpu")) < 2**50


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


# ---------------------------------------------------------------- security and long runs


def test_training_needs_no_network(data, tmp_path, monkeypatch):
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    main(parse_config(arguments(data, tmp_path / "run", "--epochs", "1")))


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    import pickle

    for protocol in (2, 4, 5):
        (tmp_path / "released.pkl").write_bytes(pickle.dumps({"net": [1]}, protocol))
        with pytest.raises(InputError, match=r"released\.pkl.*could run code.*docs/reliability\.md"):
            load_checkpoint(tmp_path / "released.pkl")
    torch.save({"model": pytest.approx(1)}, tmp_path / "objects.pt")
    with pytest.raises(InputError, match=r"objects\.pt.*could run code"):
        load_checkpoint(tmp_path / "objects.pt")


def test_soak(tmp_path):
    """A short form of python -m tests.soak: memory and open files stay where they are."""
    from tests.soak import soak

    report = soak(tmp_path, epochs=15)
    assert max(report["files"]) <= min(report["files"]) + 2  # one may be open for a moment
    assert report["growth_mib"] < 30
