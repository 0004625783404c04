"""What every part needs: errors for users, files written whole or not at all, locks, seeds. Loads no PyTorch."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import json
import os
import random
import re
import secrets
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

IGNORED = 255  # in class indices: pixels that nobody annotated
UNCOUNTED = -100  # in targets of training: such pixels and those that pad a batch; no segmentation loss has them
MOST_NOTES = 3  # of one kind
NOTED: defaultdict[str, set[tuple[Path, str]]] = defaultdict(set)  # kind of note -> files and notes


class InputError(ValueError):
    """A mistake in what the user gave. Its message is one line: the file, what is wrong with it, what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


class OptionError(InputError):
    """A value that an option cannot have. Its message begins with the option's name; `user_errors` makes it a flag."""


@contextlib.contextmanager
def errors_begin(where: object, remedy: str = "") -> Iterator[None]:
    """Let the message of an InputError in the block begin with `where`, such as a file, and end with `remedy`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}{remedy}") from None


# Errors of disks: full, over a quota or a limit of size, damaged, read-only.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def printable(text: str) -> str:
    """`text` in one line: line breaks, control characters and bytes that are no text, as names may hold, escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def note(path: Path, text: str) -> None:
    """Print a note on a file, once; of notes that differ in numbers alone, the first."""
    notes = NOTED[re.sub(r"[0-9.]+", "", text)]
    if (path, text) in notes:
        return
    notes.add((path, text))
    if len(notes) <= MOST_NOTES:
        tqdm.write(printable(f"note: {path}: {text}"))
    elif len(notes) == MOST_NOTES + 1:
        tqdm.write(printable(f"note: {path} and others: the same"))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that no code can mend into one line on stderr: InputError ends with code 2, the others with 1.

    The others are FloatingPointError, ConnectionError (to the other processes of a training), errors of files and
    disks, memory that does not suffice, and a loader process that was killed. What is printed in the block is dropped
    where it cannot be written: the work goes on.
    """
    threading.excepthook = _report_thread
    with _lasting_streams():
        try:
            yield
        except InputError as error:
            dashes = "--" if isinstance(error, OptionError) else ""
            print(f"error: {dashes}{error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            message = _explain(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(1) from None


def _explain(error: Exception) -> str | None:
    """What went wrong and what to do, in a line; None for what is a mistake of this program."""
    reason = printable(str(error))
    if isinstance(error, FloatingPointError | ConnectionError):
        return reason
    if isinstance(error, OSError) and (error.filename is not None or error.errno in STORAGE):
        remedy = "free some space, or check that the folder can be written, and start again"
        return printable(f"{error.filename or 'a file'}: {error.strerror or reason}; {remedy}")
    if type(error) is MemoryError and reason:
        return reason
    if is_out_of_memory(error):
        return "out of memory; free some, or choose smaller batches"
    if isinstance(error, RuntimeError) and "DataLoader worker" in reason:
        reason = str(error).splitlines()[0].rstrip(". ")
        return f"{reason}; it may have run out of memory: use --workers 0, or free memory"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a GPU does not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is PyTorch's
        return True
    # PyTorch's, oneDNN's and ITK's on the CPU.
    words = ("can't allocate memory", "could not create a primitive", "Failed to allocate memory")
    return isinstance(error, RuntimeError) and any(part in str(error) for part in words)


@contextlib.contextmanager
def harmless(path: Path) -> Iterator[None]:
    """Turn what fails while the picture or page `path` is written into a warning."""
    try:
        yield
    except Exception as error:
        reason = printable(str(error)) or type(error).__name__
        print(f"warning: {path}: could not be written ({reason}); all else goes on", flush=True)


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun starts, or alone."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


@contextlib.contextmanager
def first_process_speaks() -> Iterator[None]:
    """Of the processes that torchrun starts, let only the first one print in the block."""
    if is_first_process():
        yield
        return
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


class _LastingStream:
    """An output stream whose text is dropped as soon as it cannot be written: its reader is gone, or the disk full."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        try:
            return self.stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Write what waits, or drop it."""
        try:
            self.stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Send what waits, and all that follows, nowhere."""
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())
        self.stream.flush()


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Say in a line what a thread of a library, such as TensorBoard's, could not write."""
    if isinstance(failed.exc_value, OSError):
        print(f"warning: {failed.thread.name}: {printable(str(failed.exc_value))}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


@contextlib.contextmanager
def _lasting_streams() -> Iterator[None]:
    """Let no error of stdout and stderr, which may be closed, end the block."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed; the next file that is opened would take its place
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w" if number else "r"))  # noqa: SIM115 - stays open
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no text
    output, errors = _LastingStream(sys.stdout), _LastingStream(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            output.flush()
            errors.flush()


# ---------------------------------------------------------------- files


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in. Raises InputError where one of them is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: is a file, or would lie in one; choose another folder") from None


LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.partial\..+", re.DOTALL)
LONGEST_NAME = 255 - len(".0123456789abcdef.partial.")  # bytes of a name that `atomic_path` can write to


@contextlib.contextmanager
def atomic_path(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; rename it to `path` when the block ends well, else remove it.

    What `path` held before goes to `previous`. The temporary name keeps the suffixes of `path`, for writers that choose
    a format by them; nobody can know it before, and a link never lies under it. OSErrors of the block name `path`.
    """
    with errors_name(path), _temporary_file(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous and path.exists():
            path.replace(previous)
        temporary.replace(path)


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let OSErrors of the block that name no file, as those of writing and closing, or a temporary one, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or LEFTOVER.fullmatch(Path(str(error.filename)).name):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, which is gone when the block ends; `remove_leftovers` of others leaves it."""
    while True:
        temporary = path.with_name(f".{secrets.token_hex(8)}.partial.{path.name}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink == 0:  # taken for a leftover before it was locked
                continue
            yield temporary
            return
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left half-written in `folder`, and nothing that is being written."""
    for path in folder.glob(".*.partial.*"):
        if not LEFTOVER.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError), locked(path) as free:  # OSError: of somebody else
            if free:
                path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Try to lock a file or folder for the block; yield whether it worked: no other process has it, and locks exist."""
    descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block, of all that enter it for `folder`; the others wait."""
    with (folder / ".turn").open("a") as file:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def exists(path: Path) -> bool:
    """Whether a path exists; several that a comma joins may together be too long for one."""
    try:
        return path.exists()
    except OSError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically. NaN, which JSON lacks, becomes null."""
    write_text(path, json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError for a file that is missing, no JSON, or a pipe or device."""
    if not path.exists():
        raise InputError(f"{path}: no such file; correct the name")
    try:
        if not path.is_file():
            raise OSError("it is no file")
        return json.loads(path.read_text("utf-8"), object_pairs_hook=_table)
    except (OSError, ValueError, RecursionError) as error:  # also numbers too long, brackets too deep
        raise InputError(f"{path}: not readable as JSON ({error}); correct it") from None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that stands twice, since one of its values would be lost."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for k, key in enumerate(keys) if key in keys[:k])
        raise ValueError(f"{twice!r} stands twice in one table")
    return dict(pairs)


def without_nan(value: Any) -> Any:
    """Lists and dictionaries as JSON can hold them: with None for NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how texts begin that spreadsheets compute, and those that end up as these


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` to `path` as CSV with a header line, atomically; a key that a row lacks is an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, which `read_csv` takes away.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows({key: _inert(cell) for key, cell in row.items()} for row in rows)


def _inert(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that `write_csv` wrote. Raises InputError for a file that is no such table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as CSV in UTF-8 ({error}); bring the old one back") from None
    if any(None in row or None in row.values() for row in rows):
        raise InputError(f"{path}: has rows that are longer or shorter than its header; bring the old one back")
    return [{key: _written(cell) for key, cell in row.items()} for row in rows]


def _written(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def run_folders(root: Path = Path("runs")) -> list[Path]:
    """The numbered run folders in `root`, oldest first."""
    numbered = [path for path in root.glob("[0-9]*-*") if path.is_dir() and path.name.partition("-")[0].isdigit()]
    return sorted(numbered, key=lambda path: (int(path.name.partition("-")[0]), path.name))


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
        raise InputError(f"{folder}: another process is at work in it; wait for it, or choose another folder") from None
    except OSError as error:  # file systems without locks
        print(f"note: {folder} cannot be locked ({error.strerror}); start no second run in it")
    HELD[folder] = file
    for place in (folder, folder / "predictions"):
        if not place.is_symlink():
            remove_leftovers(place)


def unlock_folder(folder: Path) -> None:
    """Let others into a folder that this process may have locked."""
    if folder in HELD:
        HELD.pop(folder).close()


# ---------------------------------------------------------------- numbers and texts


def seed_everything(seed: int, *position: int) -> None:
    """Seed Python, NumPy and torch (all devices); with a position (epoch, step, ...), by a number that mixes them."""
    import torch

    if position:
        seed = int(np.random.SeedSequence([seed, *position]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from NumPy's global state
    torch.manual_seed(seed)


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts 2 before 10, also where a number has more digits than Python converts."""
    parts = re.findall(r"0*([0-9]+)|([^0-9]+)", text)
    return [(not number, len(number), number or sign) for number, sign in parts]


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up; b above 0."""
    return (a + b - 1) // b  # not -(-a // b): ONNX rounds quotients below 0 up


def aligned_columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """Rows of as many cells each as lines of text: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(gap.join([name.ljust(widths[0]), *padded]))
    return lines


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between values of the same names, as "lr 0.001 -> 0.01, ..."; an empty text where nothing does."""
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


def counted(number: int, noun: str) -> str:
    """ "1 subject", "2 subjects"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(values: Sequence[object], most: int = 8) -> str:
    """The first values in words, separated by commas, and how many more there are."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
