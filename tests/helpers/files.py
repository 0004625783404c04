"""Files and folders of the tests."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def tree(folder: Path) -> set[str]:
    """What is below a folder, by relative paths."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # addresses of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


# What can lie where a file is expected: how to make it, and what the PNG reader says of it.
NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "folder": (Path.mkdir, "is a folder, pipe or device"),
    "pipe": (os.mkfifo, "is a folder, pipe or device"),
    "socket": (_socket, "is a folder, pipe or device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a folder, pipe or device"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "link to nothing": (lambda path: path.symlink_to("nowhere.png"), "no such file"),
}
