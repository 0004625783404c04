"""What every command needs: errors for users, seeds, the device, checkpoints, files written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import random
import resource
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch


class InputError(ValueError):
    """A mistake in what the user gave. Its message is one line: the file, what is wrong with it, what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """`text` in one line: line breaks, control characters and bytes that are no text, as names may hold, escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an InputError into one line on stderr and exit code 2, a FloatingPointError into one and exit code 1.

    So does a loader process that was killed, of which PyTorch tells by a RuntimeError wherever the program is.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no text
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except FloatingPointError as error:
        raise SystemExit(f"error: {error}") from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise SystemExit(f"error: {reason}; it may have run out of memory: use --workers 0, or free memory") from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; rename it to `path` when the block ends well, else remove it.

    The temporary name keeps the suffixes of `path`, for writers that choose a format by them.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically. NaN, which JSON lacks, becomes null."""
    write_text(path, json.dumps(_nan_to_none(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError for a file that is missing, no JSON, or a pipe or device."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also numbers too long, brackets too deep
        raise InputError(f"{path}: not readable as JSON ({error}); correct it") from None


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` to `path` as CSV with a header line, atomically; a key that a row lacks is an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from NumPy's global state
    torch.manual_seed(seed)


def select_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first visible GPU, or the CPU with one line that says so."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        print("No GPU is visible: running on the CPU.")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: cannot be used ({reason}); choose auto, cpu or cuda:N") from None
    return device


def use_bfloat16(amp: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16: `amp` is "on", "off" or "auto", where the device has instructions for it."""
    if amp != "auto":
        return amp == "on"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def loader_workers(workers: int | str, device: torch.device) -> int:
    """Processes that load data: `workers`, or for "auto" 2 beside a GPU and none on the CPU, which they would slow."""
    if workers != "auto":
        return int(workers)
    return 2 if device.type == "cuda" else 0


def peak_memory(device: torch.device) -> float:
    """The most memory so far in GiB: that PyTorch has taken on a GPU, else that this process has taken."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def lock_folder(folder: Path) -> TextIO:
    """Keep other processes out of `folder` until the returned file is closed or this process ends, however it ends.

    Raises InputError where another process is in it.
    """
    file = (folder / ".lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept alive by loader processes
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(f"{folder}: another process is at work in it; wait for it, or choose another --out") from None
    return file


def run_folders(root: Path = Path("runs")) -> list[Path]:
    """The numbered run folders in `root`, oldest first."""
    return sorted(path for path in root.glob("[0-9]*-*") if path.is_dir())


def new_run_folder(preset: str, root: Path = Path("runs")) -> Path:
    """Make and return the next free runs/NNN-PRESET."""
    last = run_folders(root)[-1:]
    number = int(last[0].name.split("-")[0]) + 1 if last else 1
    folder = root / f"{number:03d}-{preset}"
    folder.mkdir(parents=True)
    return folder


def save_checkpoint(path: Path, checkpoint: dict[str, Any], previous: Path | None = None) -> None:
    """Write `checkpoint` (tensors, numbers, strings, lists and dicts only) to `path` atomically.

    What `path` held before goes to `previous`.
    """
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)
        if previous and path.exists():
            path.replace(previous)


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a checkpoint of this program, or damaged ({reason})") from None
