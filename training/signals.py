"""Signals by which clusters announce the end of a job, and Ctrl-C. Imports no PyTorch, so that it listens early."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from utils import is_first_process

REQUEUE = 75  # exit code EX_TEMPFAIL of sysexits.h: stopped by a signal, everything saved, start again with --resume
INTERRUPTED = 130  # exit code of shells for Ctrl-C
ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignal:
    """SIGTERM and SIGUSR1 (SLURM: preemption, --signal), and SIGINT (Ctrl-C).

    While the `with` block lasts, or from `listen` on, they end the program with the exit code REQUEUE, or INTERRUPTED
    for SIGINT: at once, or, after `defer` is set, when the program asks whether one was `received` and has saved its
    work. A SIGINT after another signal ends it at once.
    """

    def __init__(self) -> None:
        self.received = ""
        self.defer = False

    def listen(self) -> None:
        """Handle the signals from now on. SIGINT stays ignored where it was, as in a job of `nohup` or reproduce.py."""
        ignored = {signal.SIGINT} if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else set()
        self.before = {number: signal.signal(number, self._handle) for number in ENDING if number not in ignored}

    def __enter__(self) -> StopSignal:
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.received or not self.defer):
            self._say("interrupted")
            raise SystemExit(INTERRUPTED)
        self.received = self.received or signal.Signals(number).name
        if not self.defer:
            self.end("outside of the training")
        if number == signal.SIGINT:
            self._say("\ninterrupted; saves first, Ctrl-C once more does not wait for it")

    def _say(self, text: str) -> None:
        if is_first_process():
            print(text, file=sys.stderr, flush=True)

    def end(self, moment: str) -> NoReturn:
        """End the program; `moment` says at which point of the training."""
        cause = self.received or "a signal to another process"
        self._say(f"stopped by {cause} {moment}; the same command with --resume goes on")
        raise SystemExit(INTERRUPTED if self.received == "SIGINT" else REQUEUE)
