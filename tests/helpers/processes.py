"""Real processes for the tests, forked from one that has loaded torch already, as a command line would start them."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

import models
from tests.helpers.networks import BulkyNetwork, TinyNetwork

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "tests.helpers.processes"])


def start(function: Callable[..., Any], *arguments: Any, output: Path, **environment: str) -> ForkServerProcess:
    """Call `function` in a process of its own; what it prints is appended to the file `output`."""
    process = CONTEXT.Process(target=_run, args=(function, arguments, output, environment))
    process.start()
    return process


def start_all(
    function: Callable[..., Any], *arguments: Any, output: Path, world_size: int = 2
) -> list[ForkServerProcess]:
    """The same in `world_size` processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    shared |= {"TORCHELASTIC_RUN_ID": "test"}
    return [
        start(function, *arguments, output=output.with_suffix(f".{k}"), RANK=str(k), LOCAL_RANK=str(k), **shared)
        for k in range(world_size)
    ]


def ended(process: ForkServerProcess, timeout: float = 120) -> int:
    """The exit code of a process; kills it, and fails, when it does not end."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the process did not end")
    return process.exitcode


def run_to_end(function: Callable[..., Any], *arguments: Any, output: Path) -> int:
    """The exit code of `function` in a process of its own."""
    return ended(start(function, *arguments, output=output))


# ---------------------------------------------------------------- what the processes do


def command(arguments: Sequence[str]) -> None:
    """python main.py with these arguments."""
    import main
    from config import parse_config
    from utils import first_process_speaks, user_errors

    with first_process_speaks(), user_errors():
        config = parse_config(list(arguments))
    main.command(config)


def signaled(arguments: Sequence[str], iteration: int, number: int, rank: str = "0") -> None:
    """The same, but in the middle of its so many-th iteration this process, and its loader processes, get a signal.

    Clusters signal every process of a job. Of several processes with such an iteration, only that of `rank` is
    signaled.
    """

    def send() -> None:
        if os.environ.get("RANK", "0") != rank:
            return
        own = os.getpid()
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        for pid in (*map(int, children), own):
            os.kill(pid, number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let their background jobs ignore it
    _at_iteration(iteration, send)
    command(arguments)


def killed(arguments: Sequence[str], moment: str, count: int) -> None:
    """The same, but the process is killed when a moment comes for the so many-th time.

    Moments: "iteration", in the middle of one; "writing", when half of a checkpoint is written; "renaming", when
    last.pt has become previous.pt, and the new one is not yet last.pt; "log", when the checkpoints of an epoch are
    written and its row of log.csv is not.
    """
    if moment == "iteration":
        _at_iteration(count, _kill)
    elif moment == "writing":
        _patch(torch, "save", count, _write_half)
    elif moment == "renaming":
        _patch(Path, "replace", count, _kill, only=lambda path, target: target.name == "last.pt")
    elif moment == "log":
        import training.run

        _patch(training.run, "write_csv", count, _kill, only=lambda path, rows: bool(rows))
    command(arguments)


def _kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_half(checkpoint: Any, path: Path) -> None:
    buffer = io.BytesIO()
    torch.serialization.save(checkpoint, buffer)
    content = buffer.getvalue()
    path.write_bytes(content[: len(content) // 2])
    _kill()


def _at_iteration(count: int, act: Callable[[], None]) -> None:
    """Call `act` in the middle of the so many-th iteration of training."""
    import training.setup

    class Watched(training.setup.GuidedLoss):
        def forward(self, *values: Any, **named: Any) -> Any:
            Watched.iterations = getattr(Watched, "iterations", 0) + 1
            if Watched.iterations == count:
                act()
            return super().forward(*values, **named)

    training.setup.GuidedLoss = Watched


def _patch(
    owner: Any,
    name: str,
    count: int,
    act: Callable[..., Any],
    only: Callable[..., bool] = lambda *_: True,
) -> None:
    """Let the so many-th call of a function be one of `act`; calls that are not of the `only` kind do not count."""
    original, calls = getattr(owner, name), []

    def counted(*values: Any, **named: Any) -> Any:
        if only(*values):
            calls.append(None)
            if len(calls) == count:
                return act(*values, **named)
        return original(*values, **named)

    setattr(owner, name, counted)


def _run(function: Callable[..., Any], arguments: Sequence[Any], output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as a command line starts them
    torch.set_num_threads(1)
    models.NETWORKS |= {"tiny": TinyNetwork, "bulky": BulkyNetwork}
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # Path.open("a") refuses terminals
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    function(*arguments)
