"""What every command needs: errors for users, seeds, the device, files written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    """Turn errors that no code can mend into one line on stderr: InputError ends with code 2, the others with 1.

    The others are FloatingPointError, ConnectionError (to the other processes of a training), errors of files and
    disks, memory that does not suffice, and a loader process that was killed.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no text
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        raise SystemExit(f"error: {message}") from None


def _explain(error: Exception) -> str | None:
    """What went wrong and what to do, in a line; None for what is a mistake of this program."""
    reason = printable(str(error))
    if isinstance(error, FloatingPointError | ConnectionError):
        return reason
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "free some space, or check that the folder can be written, and start again"
        return printable(f"{error.filename}: {error.strerror}; {remedy}")
    if is_out_of_memory(error):
        return (
            reason if type(error) is MemoryError and reason else "out of memory; free some, or choose smaller batches"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in reason:
        reason = str(error).splitlines()[0].rstrip(". ")
        return f"{reason}; it may have run out of memory: use --workers 0, or free memory"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a GPU does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch's, oneDNN's and ITK's on the CPU.
    words = ("can't allocate memory", "could not create a primitive", "Failed to allocate memory")
    return isinstance(error, RuntimeError) and any(part in str(error) for part in words)


def make_folder(folder: Path) -> None:
    """Make the folder of --out and those that it lies in. Raises InputError where one of them is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {folder}: is a file, or would lie in one; choose another folder") from None


@contextlib.contextmanager
def atomic_path(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; rename it to `path` when the block ends well, else remove it.

    What `path` held before goes to `previous`. The temporary name keeps the suffixes of `path`, for writers that choose
    a format by them.
    """
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous and path.exists():
            path.replace(previous)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def seed_everything(seed: int, *position: int) -> None:
    """Seed Python, NumPy and torch (all devices); with a position (epoch, step, ...), by a number that mixes them."""
    if position:
        seed = int(np.random.SeedSequence([seed, *position]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from NumPy's global state
    torch.manual_seed(seed)


def select_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first visible GPU, or the CPU with one line that says so."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # torchrun counts the processes of a node
        print("No GPU is visible: running on the CPU.")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: cannot be used ({reason}); choose auto, cpu or cuda:N") from None
    return device


def use_deterministic_kernels() -> None:
    """Let GPUs compute the same result every time; PyTorch warns of kernels for which it has no such variant."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS wants it for that
    torch.use_deterministic_algorithms(True, warn_only=True)


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


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def run_folders(root: Path = Path("runs")) -> list[Path]:
    """The numbered run folders in `root`, oldest first."""
    numbered = [path for path in root.glob("[0-9]*-*") if path.is_dir() and path.name.partition("-")[0].isdigit()]
    return sorted(numbered, key=lambda path: (int(path.name.partition("-")[0]), path.name))
