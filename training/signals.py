"""Signals by which clusters announce the end of a job."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from training.distributed import rank

REQUEUE = 75  # exit code EX_TEMPFAIL of sysexits.h: stopped by a signal, everything saved, start again with --resume
ENDING = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """SIGTERM and SIGUSR1 (SLURM: preemption, --signal).

    While the `with` block lasts, they end the program with the exit code REQUEUE: at once, or, after `defer` is set,
    when the program asks whether one was `received` and has saved its work.
    """

    def __init__(self) -> None:
        self.received = ""
        self.defer = False

    def __enter__(self) -> StopSignal:
        self.before = {number: signal.signal(number, self._handle) for number in ENDING}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if not self.defer:
            self.end("outside of the training")

    def end(self, moment: str) -> NoReturn:
        """End the program; `moment` says at which point of the training."""
        if rank() == 0:
            cause = self.received or "a signal to another process"
            print(f"stopped by {cause} {moment}; the same command with --resume goes on", file=sys.stderr, flush=True)
        raise SystemExit(REQUEUE)
