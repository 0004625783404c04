"""Data that goes bad during a training, or has nothing in it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from data.batches import ShuffledBatches, slice_loader
from data.folder import open_data
from losses import GuidedLoss
from models import build_model
from tests.helpers.png import flat, write_tree
from tests.helpers.processes import command, ended, start
from tests.helpers.runs import arguments
from training.device import Machine
from training.epoch import Epoch, Training, train_one_epoch
from training.optimization import Optimization
from training.signals import StopSignal
from utils import InputError, user_errors


def errors_alone(arguments: Sequence[str]) -> None:
    """python main.py with these arguments, without its standard output."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        command(arguments)


class Trainings:
    """Trainings in processes of their own, each with its run folder and the file of its errors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, BaseProcess] = {}

    def start(self, name: str, data: Path, workers: int) -> None:
        """Train the tiny network for so many epochs that it ends only by a fault."""
        flags = arguments(data, self.run(name), "--workers", str(workers), "--epochs", "10000")
        self.processes[name] = start(errors_alone, flags, output=self.folder / f"{name}.log")

    def run(self, name: str) -> Path:
        """The run folder."""
        return self.folder / "runs" / name

    def wait_for_begin(self, name: str) -> None:
        """Wait until the data has been checked."""
        path, end = self.run(name) / "config.json", time.monotonic() + 180
        while not path.exists() and self.processes[name].exitcode is None and time.monotonic() < end:
            time.sleep(0.02)
        assert path.exists(), self.errors(name)

    def errors(self, name: str) -> str:
        """What the process has printed so far."""
        return (self.folder / f"{name}.log").read_text()

    def error(self, name: str, code: int) -> str:
        """The only line that a process has printed, which has ended with this exit code."""
        assert ended(self.processes[name]) == code, self.errors(name)
        lines = self.errors(name).splitlines()
        assert len(lines) == 1, self.errors(name)
        return lines[0]


@pytest.fixture
def trainings(tmp_path) -> Iterator[Trainings]:
    trainings = Trainings(tmp_path)
    yield trainings
    for process in trainings.processes.values():
        process.kill()
        process.join()


@pytest.mark.slow
def test_main_ends_in_one_line_when_images_vanish(trainings, make_data):
    """Without loader processes, and with two."""
    root = make_data(numbers=tuple(range(1, 13)))
    for name, workers in (("alone", 0), ("two", 2)):
        trainings.start(name, root, workers)
    for name in ("alone", "two"):
        trainings.wait_for_begin(name)
    for path in (root / "train" / "Img").iterdir():
        path.unlink()
    gone = rf"error: {re.escape(str(root))}/train/Img/Subj_1slice_\d+\.png: no such file; put it back, .*"
    for name in ("alone", "two"):
        assert re.fullmatch(gone, trainings.error(name, code=2))
        assert not list(trainings.run(name).glob(".[0-9]*"))  # nothing half-written


@pytest.mark.slow
def test_main_ends_in_one_line_when_loader_processes_are_killed(trainings, make_data):
    trainings.start("killed", make_data(numbers=tuple(range(1, 13))), workers=2)
    trainings.wait_for_begin("killed")
    process = trainings.processes["killed"]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 120
    while process.exitcode is None and time.monotonic() < end:
        with contextlib.suppress(OSError):  # the process, or one of its children, has just ended
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        time.sleep(0.01)
    error = trainings.error("killed", code=1)
    assert re.fullmatch(r"error: DataLoader worker .*use --workers 0.*", error)


def test_names_that_are_no_text_can_be_printed(capsys):
    with pytest.raises(SystemExit) as caught, user_errors():
        raise InputError(f"{Path(os.fsdecode(b'a' + bytes([255]) + b'b'))}\n: wrong\x1b[2J; remove it")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: a\\udcffb\\n: wrong\\x1b[2J; remove it\n"


@pytest.mark.slow
def test_training_on_constant_images_stays_finite(tmp_path):
    """Slices alone in their batch, as small as slices may be, with one value each in image and mask."""
    root = write_tree(tmp_path, flat(255), flat(0), [0, 63])
    for kind, value in (("Img", 0), ("GT", 63)):
        (root / "train" / kind / "Subj_aslice_2.png").write_bytes(flat(value))
    config = Config.of(backbone="resnet18", steps=1, classes=2, max_skipped=0)
    model = build_model(config)
    dataset = open_data(root).dataset("train")
    loader = slice_loader(dataset, ShuffledBatches(dataset, 1, seed=0))
    optimization = Optimization(model, config.optimization, len(loader))
    machine = Machine(torch.device("cpu"), dtype=torch.float32, workers=0)
    training = Training(model, loader, GuidedLoss(), optimization, machine, StopSignal())
    for number in range(2):
        epoch = Epoch(number)
        train_one_epoch(training, epoch, "train")
        assert all(map(np.isfinite, epoch.losses().values()))
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
