"""Checkpoints are whole or not there, and never run code."""

from __future__ import annotations

import copy
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.checkpoint import load_checkpoint, save_checkpoint
from utils import InputError


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_checkpoints_cannot_run_code(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"model": Malicious()}, tmp_path / "zip.pt")
    (tmp_path / "noise.pt").write_bytes(b"noise")
    for name in ("evil.pt", "zip.pt", "noise.pt", "missing.pt"):
        with pytest.raises(InputError, match=name):
            load_checkpoint(tmp_path / name)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(position=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_checkpoints_are_noticed(tmp_path_factory, position, bit, cut):
    """A flipped bit or a missing end is either refused or without any effect."""
    path = tmp_path_factory.mktemp("damage") / "last.pt"
    whole = {"model": {"weight": torch.arange(300.0)}, "epoch": 3, "log": [{"loss": 0.25}]}
    save_checkpoint(path, whole)
    content = bytearray(path.read_bytes())
    at = int(position * (len(content) - 1))
    if cut:
        content = content[:at]
    else:
        content[at] ^= 1 << bit
    path.write_bytes(content)
    try:
        read = load_checkpoint(path)
    except InputError as error:
        assert "last.pt" in str(error)
    else:
        torch.testing.assert_close(read, whole, rtol=0, atol=0)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"epoch": lambda: 2})
    assert load_checkpoint(path) == {"epoch": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    for protocol in (2, 4, 5):
        (tmp_path / "released.pkl").write_bytes(pickle.dumps({"net": [1]}, protocol))
        with pytest.raises(InputError, match=r"released\.pkl.*could run code.*docs/reliability\.md"):
            load_checkpoint(tmp_path / "released.pkl")
    torch.save({"model": pytest.approx(1)}, tmp_path / "objects.pt")
    with pytest.raises(InputError, match=r"objects\.pt.*could run code"):
        load_checkpoint(tmp_path / "objects.pt")


def archive(path: Path, entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries:  # two may have one name
            file.writestr(name, content)
    return path


def entries_of(checkpoint: dict, folder: Path) -> list[tuple[str, bytes]]:
    torch.save(checkpoint, folder / "whole.pt")
    with zipfile.ZipFile(folder / "whole.pt") as file:
        return [(name, file.read(name)) for name in file.namelist()]


def test_archives_are_checked_before_anything_is_unpacked(tmp_path):
    """What unpacks to more than the file has, by compression, by sharing bytes, or by name."""
    entries = entries_of({"weight": torch.zeros(2**18)}, tmp_path)
    torch.testing.assert_close(load_checkpoint(archive(tmp_path / "again.pt", entries))["weight"], torch.zeros(2**18))
    packed = archive(tmp_path / "packed.pt", entries, zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 2**14
    twice = archive(tmp_path / "twice.pt", entries + 40 * entries[-4:])
    shared = tmp_path / "shared.pt"
    with zipfile.ZipFile(shared, "w") as file:
        for name, content in entries:
            file.writestr(name, content)
        (large,) = [entry for entry in file.infolist() if entry.file_size == 2**20]
        for k in range(3000):
            entry = copy.copy(large)
            entry.filename = f"{large.filename}{k}"
            file.filelist.append(entry)
    for path in (packed, twice, shared):
        with pytest.raises(InputError, match=rf"{path.name}: not a checkpoint of this program, or damaged"):
            load_checkpoint(path)


BYTEARRAY = b"\x80\x02}U\x01ac__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85Rs."  # {"a": bytearray(2**31 - 2**24)}


@pytest.mark.parametrize("pickled", ["data.pkl", "DATA.PKL"])
def test_functions_that_take_memory_are_not_called(tmp_path, pickled):
    entries = [(name.replace("data.pkl", pickled), BYTEARRAY if name.endswith("data.pkl") else content)
               for name, content in entries_of({"epoch": 1}, tmp_path)]  # fmt: skip
    with pytest.raises(InputError, match=r"bomb\.pt: holds Python objects"):
        load_checkpoint(archive(tmp_path / "bomb.pt", entries))
