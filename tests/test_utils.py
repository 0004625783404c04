"""Files that are whole or not there, what killed processes leave, and output that nobody reads."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.errors import assert_clear
from tests.helpers.files import tree
from utils import (
    LONGEST_NAME,
    InputError,
    atomic_path,
    one_at_a_time,
    read_csv,
    read_json,
    remove_leftovers,
    user_errors,
    write_csv,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[1]


def python(script: str, *arguments: str, **options: object) -> subprocess.Popen:
    """A process that runs a script of its own, which finds the modules here."""
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, **options)


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """No file becomes longer than `size` bytes in the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_picture(path: Path) -> None:
    """A PNG of noise by Pillow."""
    with atomic_path(path) as temporary:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)).save(temporary)


WRITERS: dict[str, Callable[[Path], None]] = {
    "table.csv": lambda path: write_csv(path, [{"a": k} for k in range(9999)]),
    "text.json": lambda path: write_json(path, list(range(9999))),
    "text.txt": lambda path: write_text(path, "a" * 9999),
    "picture.png": save_picture,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_does_not_fit_leaves_what_was_there_and_names_the_file(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_text("before")
    with pytest.raises(SystemExit) as ending, user_errors(), limited(5000):
        WRITERS[name](path)
    assert ending.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: {path}: File too large; free some space") and line.count("\n") == 1
    assert tree(tmp_path) == {name} and path.read_text() == "before"


def test_an_error_of_a_disk_without_a_name_is_a_line(capsys):
    with pytest.raises(SystemExit) as ending, user_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert ending.value.code == 1
    assert capsys.readouterr().err.startswith("error: a file: No space left on device; free some space")


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '[{"x": {"a": 1, "a": 1}}]'])
def test_a_key_that_stands_twice_in_a_table_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "a.json")
    assert_clear(caught.value, "a.json: not readable as JSON ('a' stands twice in one table)")


def test_files_have_the_usual_rights_and_the_longest_names(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / ("x" * LONGEST_NAME), "text")
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.read_text() == "text" and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OSError, match="name too long"):
        write_text(tmp_path / ("x" * (LONGEST_NAME + 1)), "text")


def test_temporary_names_are_new_each_time_and_links_are_replaced(tmp_path):
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "a.csv").symlink_to("victim")
    names = set()
    for _ in range(3):
        with atomic_path(tmp_path / "a.csv") as temporary:
            names.add(temporary.name)
            assert temporary.name.endswith(".a.csv") and temporary.is_file() and not temporary.is_symlink()
            temporary.write_text("new")
    assert len(names) == 3
    assert (tmp_path / "victim").read_text() == "kept"
    assert not (tmp_path / "a.csv").is_symlink() and (tmp_path / "a.csv").read_text() == "new"


def test_leftovers_are_those_of_killed_processes_alone(tmp_path):
    """Files of the user, links, folders, and what a process at work is writing stay."""
    script = (
        "import sys, time; from pathlib import Path; from utils import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as path: path.write_text('half'); print(flush=True); time.sleep(60)"
    )
    token = "0123456789abcdef"
    (tmp_path / "mine").write_text("kept")
    (tmp_path / ".notes.partial.txt").write_text("kept")
    (tmp_path / f".{token}.partial.link").symlink_to("mine")
    (tmp_path / f".{token}.partial.folder").mkdir()
    kept = tree(tmp_path)
    with python(script, str(tmp_path / "a.csv"), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        half = tree(tmp_path) - kept
        assert len(half) == 1
        remove_leftovers(tmp_path)
        assert tree(tmp_path) == kept | half
        process.send_signal(signal.SIGKILL)
    remove_leftovers(tmp_path)
    assert tree(tmp_path) == kept
    assert (tmp_path / "mine").read_text() == "kept"


def test_processes_that_change_one_table_lose_no_rows(tmp_path):
    """Each of three adds ten rows, one at a time."""
    script = (
        "import sys; from pathlib import Path; from utils import one_at_a_time, read_csv, write_csv\n"
        "folder = Path(sys.argv[1])\n"
        "for k in range(10):\n"
        "    with one_at_a_time(folder):\n"
        "        write_csv(folder / 't.csv', [*read_csv(folder / 't.csv'), {'who': sys.argv[2], 'k': k}])\n"
    )
    write_csv(tmp_path / "t.csv", [{"who": "first", "k": 0}])
    processes = [python(script, str(tmp_path), str(number)) for number in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    assert len(read_csv(tmp_path / "t.csv")) == 1 + 3 * 10
    with one_at_a_time(tmp_path):
        pass


# ---------------------------------------------------------------- output


PRINTING = (
    "import sys; from pathlib import Path; from utils import InputError, user_errors\n"
    "with user_errors():\n"
    "    for k in range(2000): print('a line', flush=k % 7 == 0); print('a line', file=sys.stderr)\n"
    "    Path(sys.argv[1]).write_text('done')\n"
    "    if sys.argv[2] == 'error': raise InputError('wrong')\n"
)


@pytest.mark.parametrize(
    ("streams", "ending", "code"),
    [
        (">&-", "error", 2),
        ("2>&-", "error", 2),
        (">&- 2>&-", "well", 0),
        ("<&- >&- 2>&-", "well", 0),
        ("| head -1", "error", 2),
        ("2>&1 | head -1", "well", 0),
    ],
)
def test_output_that_nobody_takes_ends_no_work(tmp_path, streams, ending, code):
    redirect, pipe, reader = streams.partition("|")
    command = f'"$@" {redirect} {pipe}{reader}; exit ${{PIPESTATUS[0]}}'
    arguments = [sys.executable, "-c", PRINTING, str(tmp_path / "file"), ending]
    done = subprocess.run(["bash", "-c", command, "-", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert (tmp_path / "file").read_text() == "done", "the file is not what was printed"
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if ending == "error" and "2>" not in streams:
        assert done.stderr.splitlines()[-1] == "error: wrong"


def test_output_onto_a_full_device_ends_no_work(tmp_path):
    with Path("/dev/full").open("w") as full:
        assert python(PRINTING, str(tmp_path / "file"), "well", stdout=full, stderr=full).wait() == 0
    assert (tmp_path / "file").read_text() == "done"
