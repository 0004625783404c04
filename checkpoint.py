"""What lets a run survive its end: checkpoints that are whole or not there, the lock of its folder, signals to stop."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import pickle
import re
import signal
import sys
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import torch

from distributed import rank
from utils import InputError, atomic_path, make_folder, run_folders

REQUEUE = 75  # exit code EX_TEMPFAIL of sysexits.h: stopped by a signal, everything saved, start again with --resume


def save_checkpoint(path: Path, checkpoint: dict[str, Any], previous: Path | None = None) -> None:
    """Write `checkpoint` (tensors, numbers, strings, lists and dicts only) to `path` atomically.

    What `path` held before goes to `previous`. Raises OSError where it cannot be written; `path` is then as it was.
    """
    try:
        with atomic_path(path, previous) as temporary:
            torch.save(checkpoint, temporary)
    except RuntimeError as error:  # PyTorch's writer says that a write failed, but not why
        raise OSError(
            errno.EIO, f"writing failed ({str(error).splitlines()[0]}); is the disk full?", str(path)
        ) from None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote, without ever running code from it.

    Raises InputError where the file is missing, damaged (each part has a checksum), or holds anything but tensors and
    plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds for broken files; each means the same to the user
        if isinstance(error, pickle.UnpicklingError) or _is_pickle(path):
            raise InputError(
                f"{path}: holds Python objects, which could run code, and is not loaded; "
                "docs/reliability.md says how to take the weights out of it safely"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a checkpoint of this program, or damaged ({reason})") from None


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles of protocol 2 to 5 do: released checkpoints, saved with dill."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return re.match(rb"\x80[\x02-\x05]", file.read(2)) is not None
    return False


def load_newest(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """last.pt of a run, or previous.pt where that is damaged or missing; None where there is neither.

    Raises InputError where there is something, but nothing that can be read.
    """
    errors = []
    for path in (folder / "last.pt", folder / "previous.pt"):
        if path.exists():
            try:
                checkpoint = load_checkpoint(path, device)
            except InputError as error:
                errors.append(str(error))
                continue
            for error in errors:
                print(f"warning: {error}; going on from {path.name}, which is older")
            return checkpoint
    if errors:
        raise InputError(f"{'; '.join(errors)}; start again in another --out")
    return None


def claim_folder(folder: Path | None, preset: str) -> Path:
    """Make the folder of a run, by default the next free runs/NNN-PRESET, and lock it.

    Raises InputError where it is no folder, or another process is at work in it.
    """
    if folder is None:
        last = run_folders()[-1:]
        number = int(last[0].name.split("-")[0]) + 1 if last else 1
        folder = Path("runs") / f"{number:03d}-{preset}"
    make_folder(folder)
    lock_folder(folder)
    return folder


HELD: dict[Path, TextIO] = {}  # a lock lasts as long as its file is open


def lock_folder(folder: Path) -> None:
    """Keep other processes out of `folder` until `unlock_folder`, or until this process ends, however it ends.

    What a killed process has left half-written is removed. Raises InputError where another process is in it.
    """
    unlock_folder(folder)
    file = (folder / ".lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept alive by loader processes
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(f"{folder}: another process is at work in it; wait for it, or choose another --out") from None
    except OSError as error:  # file systems without locks
        print(f"note: {folder} cannot be locked ({error.strerror}); start no second run in it")
    HELD[folder] = file
    for leftover in (*folder.glob(".*.partial.*"), *folder.glob("predictions/.*.partial.*")):
        leftover.unlink()


def unlock_folder(folder: Path) -> None:
    """Let others into a folder that this process may have locked."""
    if folder in HELD:
        HELD.pop(folder).close()


class StopSignal:
    """SIGTERM and SIGUSR1, by which clusters announce the end of a job (SLURM: preemption, --signal).

    While the `with` block lasts, they end the program with the exit code REQUEUE: at once, or, after `defer` is set,
    when the program asks whether one was `received` and has saved its work.
    """

    def __init__(self) -> None:
        self.received = ""
        self.defer = False

    def __enter__(self) -> StopSignal:
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if not self.defer:
            self.end("outside of the training")

    def end(self, place: str) -> NoReturn:
        """End the program; `place` says where it was."""
        if rank() == 0:
            cause = self.received or "a signal to another process"
            print(f"stopped by {cause} {place}; the same command with --resume goes on", file=sys.stderr, flush=True)
        raise SystemExit(REQUEUE)
