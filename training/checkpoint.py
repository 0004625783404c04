"""Checkpoints that are whole or not there, that never run code, and whose content is checked before it is used."""

from __future__ import annotations

import contextlib
import errno
import os
import pickletools
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from config import LONGEST_TEXT
from utils import InputError, atomic_path, is_out_of_memory

CHECKPOINT = "checkpoint of this version of main.py"
LONGEST_NUMBER = 64  # bits
# What the pickle in a checkpoint names besides the storages of its tensors.
GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
# The same of files of other programs, which may hold more kinds of plain values.
FOREIGN = re.compile(
    GLOBALS.pattern + r"|torch\._utils _rebuild_(tensor|parameter)|torch\.cuda \w+Storage|torch (Size|device)|"
    r"torch (b?float\d+|u?int\d+|bool)|collections Counter|__builtin__ set"
)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # with which files of torch.save before version 1.6 begin


class Damaged(InputError):
    """A checkpoint of which something is missing or has changed since it was written."""


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


# ---------------------------------------------------------------- the file


def load_checkpoint(path: Path, device: torch.device | str = "cpu", foreign: bool = False) -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote, without ever running code from it.

    With `foreign`, any dictionary of tensors and plain values that torch.save wrote. Raises Damaged where its checksums
    say so; InputError where there is none, or it holds anything but tensors and plain values; OSError and what
    `is_out_of_memory` knows where the machine is at fault.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device has no end
            raise InputError(f"{path}: is no file; name a checkpoint, such as best.pt of a run")
        with path.open("rb") as file:
            most = _check_pickles(path, file, foreign)
            with content_of(path, "file of weights that torch.save wrote" if foreign else CHECKPOINT):
                content = torch.load(file, map_location=device, weights_only=True)
                _check_plain(content, most, foreign)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; correct the name, such as best.pt of a run") from None
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    return content


def _check_pickles(path: Path, file: BinaryIO, foreign: bool) -> int:
    """The size of the pickle in a file, in bytes.

    Raises InputError for anything but a file as torch.save writes it: whole, not packed, of tensors.
    """
    unsafe = InputError(
        f"{path}: holds Python objects, which could run code, and is not loaded; "
        "docs/reliability.md says how to take the weights out of it safely"
    )
    broken = (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, IndexError, OverflowError, struct.error)
    try:
        if foreign and file.read(len(LEGACY)) == LEGACY:
            named = [name for _ in range(4) for name in _globals(file)]  # of version, machine, content, storages
            size = file.tell()
        else:
            pickles = _pickles_of_archive(file)
            named = [name for pickled in pickles for name in _globals(pickled)]
            size = sum(map(len, pickles))
    except (*broken, OSError) as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise  # EINVAL: the archive says that an entry begins before the file
        file.seek(0)
        if re.match(rb"\x80[\x02-\x05]", file.read(2)):  # as pickles of protocol 2 to 5 begin
            raise unsafe from None
        raise Damaged(f"{path}: not a checkpoint of this program, or damaged ({_reason(error)})") from None
    if not all(map((FOREIGN if foreign else GLOBALS).fullmatch, named)):
        raise unsafe
    file.seek(0)
    return size


def _pickles_of_archive(file: BinaryIO) -> list[bytes]:
    """Raises BadZipFile where the archive is not as `_check_entries` wants it."""
    with zipfile.ZipFile(file) as archive:
        _check_entries(archive, os.fstat(file.fileno()).st_size)
        return [archive.read(name) for name in archive.namelist() if name.lower().endswith("data.pkl")]


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Raises BadZipFile where an entry is packed, shares its bytes or its name with another, or has changed."""
    entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size or len({*archive.namelist()}) < len(entries):
        raise zipfile.BadZipFile("it is packed otherwise than by PyTorch")
    damaged = archive.testzip()  # torch.load does not look at the checksums
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")


def _globals(pickled: bytes | BinaryIO) -> list[str]:
    """The names of functions and classes in a pickle; of a file, in the one that begins where it stands."""
    return [str(name) for opcode, name, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"]


def _check_plain(content: Any, most: int, foreign: bool) -> None:
    """Raises ValueError for anything but tensors and plain values, unless `foreign`, and for more than `most` of them.

    A pickle has a byte or more for each, but where it names a list in a list often, as many as would take for ever.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no dictionary")
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        parts = [part for pair in dict.items(value) for part in pair] if isinstance(value, dict) else value
        if isinstance(value, dict | list | tuple):
            count += len(parts)
            if count > most:
                raise ValueError("it has more values than bytes")
            waiting += parts
        elif isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor has more values than its file")
        elif not (foreign or _is_plain(value)):
            raise ValueError(f"it holds a {type(value).__name__}, or one that is too long")


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT
    if isinstance(value, int):
        return value.bit_length() <= LONGEST_NUMBER
    return value is None or isinstance(value, float)


def load_newest(folder: Path, device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any]] | None:
    """last.pt of a run, or previous.pt where that is damaged or missing, with its path; None where there is neither.

    Raises what `load_checkpoint` does where there is something, but nothing that can be read.
    """
    errors = []
    for path in (folder / "last.pt", folder / "previous.pt"):
        try:
            path.stat()
            checkpoint = load_checkpoint(path, device)
        except FileNotFoundError:
            continue
        except Damaged as error:
            errors.append(str(error))
            continue
        for error in errors:
            print(f"warning: {error}; going on from {path.name}, which is older")
        return path, checkpoint
    if errors:
        raise InputError(f"{'; '.join(errors)}; start again in another folder")
    return None


# ---------------------------------------------------------------- the content


@contextlib.contextmanager
def content_of(path: Path, kind: str = CHECKPOINT) -> Iterator[None]:
    """Raises InputError, naming the file, for what goes wrong in the block because of a checkpoint's content."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # torch and dataclasses raise many kinds for values of other kinds
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path}: no {kind} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"it lacks {text}" if isinstance(error, KeyError) else text


def check_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises ValueError, or what comes of values of other kinds, for weights that are not a network's.

    Names, shapes and types must be those of `network`, which may lie on the meta device, and all values finite.
    """
    expected = network.state_dict()
    other = sorted(expected.keys() ^ weights.keys())
    if other:
        raise ValueError(f"another network's weights: {len(other)} tensors too many or too few, such as {other[0]}")
    for name, tensor in expected.items():
        check_tensor(name, weights[name], tensor)
        if name.endswith("running_var") and (weights[name] < 0).any():
            raise ValueError(f"{name} holds variances below 0")


def check_tensor(name: str, value: Tensor, expected: Tensor) -> None:
    """Raises ValueError, or what comes of values of other kinds, for another shape or type, NaN and infinity."""
    if (value.shape, value.dtype) != (expected.shape, expected.dtype):
        raise ValueError(f"{name} is {_describe(value)}, and should be {_describe(expected)}")
    if not value.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite")


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
