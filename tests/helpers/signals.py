"""Signals that come at a chosen moment of a training."""

from __future__ import annotations

from training.signals import StopSignal


class StopAfter(StopSignal):
    """A signal that has come when it is asked for so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    @property
    def received(self) -> str:
        self.times -= 1
        return "SIGTERM" if self.times < 0 else ""

    @received.setter
    def received(self, value: str) -> None:
        pass
