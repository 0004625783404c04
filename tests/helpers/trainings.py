"""The trainings of reproduce.py: main.py with tiny networks, by copies of a process that has loaded torch already."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TextIO

import torch

import models
from tests.helpers.networks import TinyNetwork
from tests.helpers.processes import CONTEXT, command
from utils import user_errors

CONTEXT.set_forkserver_preload(["main", "reproduce", "tests.helpers.processes"])
POPEN = subprocess.Popen
FORK = multiprocessing.get_context("fork")
TINY_NETWORKS = str(Path(__file__).parent / "tiny_networks")  # for the PYTHONPATH of jobs; see what lies there


def start_reproduce(arguments: list[str], output: Path, stop_after: str = "") -> ForkServerProcess:
    """python reproduce.py with these arguments, in a process of its own; what it prints is appended to `output`.

    With `stop_after`, its trainings stand still as soon as they have written a file of that name.
    """
    process = CONTEXT.Process(target=_reproduce, args=(arguments, output, stop_after))
    process.start()
    return process


def _reproduce(arguments: list[str], output: Path, stop_after: str) -> None:
    import reproduce

    with output.open("a") as file:
        _print_to(file)
    train_by_forks(stop_after)
    with user_errors():
        reproduce.main(arguments)


def train_by_forks(stop_after: str = "") -> None:
    """Let this process train tiny networks by copies of itself where it would start python main.py.

    It must not have computed anything with torch, whose threads do not survive a fork.
    """
    subprocess.Popen = partial(Fork, stop_after)


class Fork:
    """What `experiments.launching` needs of subprocess.Popen."""

    def __init__(
        self,
        stop_after: str,
        arguments: list[str],
        stdin: int,
        stdout: TextIO,
        stderr: TextIO,
        env: dict[str, str],
        preexec_fn: Callable[[], None],
    ) -> None:
        self.process = FORK.Process(target=_train, args=(stop_after, arguments[2:], stdout, env, preexec_fn))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it goes on."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.process.exitcode

    def wait(self) -> int | None:
        """The exit code, when it has ended."""
        self.process.join()
        return self.process.exitcode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()


def _train(
    stop_after: str, arguments: list[str], output: TextIO, environment: dict[str, str], prepare: Callable[[], None]
) -> None:
    prepare()
    subprocess.Popen = POPEN  # main.py asks git for the commit
    os.environ.update(environment)
    _print_to(output)
    torch.set_num_threads(1)
    for k, name in enumerate([*models.NETWORKS, "tiny"], 1):
        models.NETWORKS[name] = partial(_network, k)
    if stop_after:
        _stop_after(stop_after)
    command(arguments)


def _print_to(file: TextIO) -> None:
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdout.reconfigure(line_buffering=True)


def _network(scale: int, channels: int, classes: int) -> TinyNetwork:
    """Tiny, with initial weights that differ by the scale."""
    network = TinyNetwork(channels, classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network


def _stop_after(name: str) -> None:
    replace = Path.replace

    def replace_and_stop(path: Path, target: Path) -> Path:
        """`Path.replace`, by which files are written whole."""
        replace(path, target)
        if target.name == name:
            time.sleep(300)
        return target

    Path.replace = replace_and_stop


def wait_for(folder: Path, pattern: str, process: ForkServerProcess, seconds: float = 120) -> None:
    """Wait until a file of that pattern is in the folder; fails where the process ends before, or time is over."""
    end = time.monotonic() + seconds
    while not any(folder.glob(pattern)):
        assert process.exitcode is None, "it ended too soon"
        assert time.monotonic() < end, f"no {pattern} after {seconds} s"
        time.sleep(0.01)
