"""Runs that are killed, stopped, starved or fed with numbers that are not finite: nothing is lost, and all is said."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from checkpoint import REQUEUE, StopSignal, load_checkpoint
from config import Config, parse_config
from data.folder import open_data
from data.slices import ShuffledBatches
from engine import Epoch, train_one_epoch
from losses import GuidedLoss
from main import main
from memory import StepMemory, available_bytes, explain_out_of_memory, step_memory
from models import build_model
from tests.processes import command, ended, start
from tests.test_main import read_csv
from utils import InputError

TINY = ["--backbone", "resnet18", "--steps", "1", "--device", "cpu", "--amp", "off", "--batch_size", "2", "--no-guidance"]


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
    for part in ("model", "optimizer"):
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0)
    for part in ("scheduler", "epoch", "best", "log", "slices"):
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
    assert ended(start(command, arguments(data, straight), output=tmp_path / "log")) == 0
    rng, in_writing, kills = np.random.default_rng(0), 0, 0
    for attempt in range(60):
        process = start(command, arguments(data, killed), output=tmp_path / "log")
        moment = time.monotonic() + rng.uniform(0.2, 5)
        waits_for_writing = attempt % 2 == 0
        while process.exitcode is None and time.monotonic() < moment:
            if waits_for_writing and leftovers(killed):
                break
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        in_writing += bool(leftovers(killed))
        if process.exitcode == 0:
            break
    else:
        assert ended(start(command, arguments(data, killed), output=tmp_path / "log")) == 0
    assert kills >= 4
    assert in_writing >= 2
    assert not leftovers(killed)
    same_result(straight, killed)


@pytest.mark.parametrize(("number", "model"), [(signal.SIGTERM, "ms_dual_guided"), (signal.SIGUSR1, "smp.PSPNet")])
def test_a_signal_ends_the_step_and_the_run_goes_on_from_there(data, tmp_path, number, model):
    """PSPNet has dropout: its random numbers too go on as they would have."""
    flags = ["--model", model, "--workers", "1"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert ended(start(command, arguments(data, straight, *flags), output=tmp_path / "log")) == 0
    rng, steps = np.random.default_rng(0), []
    for _ in range(4):
        process = start(command, arguments(data, stopped, *flags), output=tmp_path / "out")
        while process.exitcode is None and not list(stopped.glob("tensorboard/*")):
            time.sleep(0.01)  # until the training begins
        time.sleep(rng.uniform(0, 0.8))
        os.kill(process.pid, number)
        assert ended(process) == REQUEUE, (tmp_path / "out").read_text()
        shutil.rmtree(stopped / "tensorboard")
        steps.append(load_checkpoint(stopped / "last.pt")["epoch"]["step"])
    assert ended(start(command, arguments(data, stopped, *flags), output=tmp_path / "out")) == 0
    assert f"stopped by {signal.Signals(number).name} " in (tmp_path / "out").read_text()
    assert any(steps), "no signal came within an epoch"
    same_result(straight, stopped)
