"""Real processes for the tests, forked from one that has loaded torch already, as a command line would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "tests.processes"])


def start(function: Callable[..., Any], *arguments: Any, output: Path, **environment: str) -> ForkServerProcess:
    """Call `function` in a process of its own; what it prints is appended to the file `output`."""
    process = CONTEXT.Process(target=_run, args=(function, arguments, output, environment))
    process.start()
    return process


def start_all(function: Callable[..., Any], *arguments: Any, output: Path, world: int = 2) -> list[ForkServerProcess]:
    """The same in `world` processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "test"}
    return [
        start(function, *arguments, output=output.with_suffix(f".{k}"), RANK=str(k), LOCAL_RANK=str(k), **shared)
        for k in range(world)
    ]


def command(arguments: Sequence[str]) -> None:
    """python main.py with these arguments."""
    from main import command

    sys.argv = ["main.py", *arguments]
    command()


def signaled(arguments: Sequence[str], step: int, number: int, rank: str = "0") -> None:
    """The same, but in the middle of its so many-th step this process, and its loader processes, get a signal.

    Clusters signal every process of a job. Of several processes with such a step, only that of `rank` is signaled.
    """
    import main

    class Signaling(main.GuidedLoss):
        steps = 0

        def forward(self, *values: Any, **named: Any) -> Any:
            Signaling.steps += 1
            if Signaling.steps == step and os.environ.get("RANK", "0") == rank:
                own = os.getpid()
                for pid in (*map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split()), own):
                    os.kill(pid, number)
            return super().forward(*values, **named)

    main.GuidedLoss = Signaling
    command(arguments)


def _run(function: Callable[..., Any], arguments: Sequence[Any], output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # Path.open("a") refuses terminals
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    function(*arguments)


def ended(process: ForkServerProcess, timeout: float = 120) -> int:
    """The exit code of a process; kills it, and fails, when it does not end."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the process did not end")
    return process.exitcode
