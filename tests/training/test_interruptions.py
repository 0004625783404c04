"""Runs that are killed, stopped by a signal, or without room on the disk: they go on to the same result."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import command, killed, run_to_end, signaled
from tests.helpers.runs import arguments, same_result
from training.checkpoint import load_checkpoint
from training.signals import INTERRUPTED, REQUEUE, StopSignal

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(make_data) -> Path:
    """Three iterations in an epoch."""
    return make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))


def leftovers(out: Path) -> list[Path]:
    """Checkpoints that are, or were, being written."""
    return list(out.glob(".*.partial.*.pt"))


def test_killed_at_any_moment_it_ends_with_the_same_result(data, tmp_path):
    """SIGKILL in an iteration, in the middle of writing a checkpoint, between two renames, before the log is written.

    After half-written checkpoints and between renames only previous.pt, or last.pt and no best.pt, may be there.
    """
    straight, broken = tmp_path / "straight", tmp_path / "killed"
    flags = ["--epochs", "5"]
    assert run_to_end(command, arguments(data, straight, *flags), output=tmp_path / "log") == 0
    moments = [("iteration", 2), ("writing", 1), ("writing", 2), ("renaming", 1), ("iteration", 4), ("renaming", 2)]
    moments += [("log", 1), ("writing", 1), ("iteration", 1)]
    for moment, count in moments:
        code = run_to_end(killed, arguments(data, broken, *flags), moment, count, output=tmp_path / "out")
        assert code == -signal.SIGKILL, (moment, count, (tmp_path / "out").read_text())
        assert bool(leftovers(broken)) == (moment in ("writing", "renaming"))
    assert run_to_end(command, arguments(data, broken, *flags), output=tmp_path / "out") == 0
    assert "resumed after epoch" in (tmp_path / "out").read_text()
    assert not leftovers(broken)
    same_result(straight, broken)


def test_a_signal_ends_the_iteration_and_the_run_goes_on_from_there(data, tmp_path):
    """Two of its three iterations, then, resumed, the third and one of the next epoch, then another, then the rest."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    flags = ["--workers", "1", "--epochs", "2"]
    assert run_to_end(command, arguments(data, straight, *flags), output=tmp_path / "log") == 0
    ways = ((signal.SIGUSR1, 2, (0, 2)), (signal.SIGTERM, 2, (1, 1)), (signal.SIGINT, 1, (1, 2)))
    for number, count, position in ways:
        code = run_to_end(signaled, arguments(data, stopped, *flags), count, number, output=tmp_path / "out")
        expected = INTERRUPTED if number == signal.SIGINT else REQUEUE
        assert code == expected, (tmp_path / "out").read_text()
        assert f"stopped by {number.name} " in (tmp_path / "out").read_text()
        epoch = load_checkpoint(stopped / "last.pt")["progress"]["epoch"]
        assert (epoch["number"], epoch["iteration"]) == position
    assert run_to_end(command, arguments(data, stopped, *flags), output=tmp_path / "out") == 0
    same_result(straight, stopped)


def test_a_signal_outside_of_training_ends_at_once():
    with pytest.raises(SystemExit) as ending, StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert ending.value.code == REQUEUE
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def heeded():
    """SIGINT, which shells let their background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_wait(heeded, capfd):
    with pytest.raises(SystemExit) as ending, StopSignal() as stop:
        stop.defer = True
        for number in (signal.SIGINT, signal.SIGTERM):  # the latter is torchrun's
            os.kill(os.getpid(), number)
        assert stop.received == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert ending.value.code == INTERRUPTED
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored():
    """As of trainings that reproduce.py has started, which ends them by SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.received
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, REQUEUE), (signal.SIGTERM, REQUEUE), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_while_the_program_loads(heeded, data, tmp_path, number, code):
    """It is requeued, although PyTorch is not there yet."""
    with subprocess.Popen(
        [sys.executable, "main.py", *arguments(data, tmp_path / "run")], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        while True:
            caught = re.search(r"SigCgt:\t([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())[1]
            if int(caught, 16) >> (signal.SIGUSR1 - 1) & 1 and int(caught, 16) >> (number - 1) & 1:
                break
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == code
        assert len(process.stderr.read().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_diverged_run_keeps_its_last_good_checkpoint(data, tmp_path):
    out = tmp_path / "run"
    assert run_to_end(command, arguments(data, out, "--epochs", "1"), output=tmp_path / "log") == 0
    before = load_checkpoint(out / "last.pt")
    # The weights of the second epoch: after a rate that makes everything overflow.
    spoiled = load_checkpoint(out / "last.pt")
    spoiled["model"]["layers.0.weight"][:] = 3e38
    torch.save(spoiled, out / "last.pt")
    flags = ["--epochs", "2", "--max_skipped", "1"]
    assert run_to_end(command, arguments(data, out, *flags), output=tmp_path / "out") == 1
    assert "error: epoch 2, batch 2: the loss or its gradient is not finite" in (tmp_path / "out").read_text()
    assert load_checkpoint(out / "last.pt")["progress"] == before["progress"]


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
    flags = ["--model", "bulky", "--epochs", "2"]
    assert run_to_end(command, arguments(data, straight, *flags), output=tmp_path / "log") == 0
    size = (straight / "last.pt").stat().st_size + (straight / "best.pt").stat().st_size
    with small_disk(disk, f"{size + 2**21}"):
        assert run_to_end(command, arguments(data, disk / "run", *flags), output=tmp_path / "out") == 1
        message = (tmp_path / "out").read_text().splitlines()[-1]
        assert message.startswith("error: ")
        assert "writing failed" in message
        assert "free some space" in message
        assert "Traceback" not in (tmp_path / "out").read_text()
        assert not leftovers(disk / "run")
        assert load_checkpoint(disk / "run" / "last.pt")["progress"]["epoch"]["number"] == 1
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(disk)], check=True)
        assert run_to_end(command, arguments(data, disk / "run", *flags), output=tmp_path / "out") == 0
        same_result(straight, disk / "run")


def test_read_only_folder(data, tmp_path):
    with small_disk(tmp_path / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        assert run_to_end(command, arguments(data, tmp_path / "disk" / "run"), output=tmp_path / "out") == 1
    message = (tmp_path / "out").read_text().splitlines()[-1]
    assert message.startswith("error: ")
    assert "Read-only file system" in message
    assert "Traceback" not in (tmp_path / "out").read_text()
