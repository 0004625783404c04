"""Checkpoints that are whole or not there, and that never run code."""

from __future__ import annotations

import contextlib
import errno
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils import InputError, atomic_path


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
        raise InputError(f"{'; '.join(errors)}; start again in another folder")
    return None
