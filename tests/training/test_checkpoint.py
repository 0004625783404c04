"""Checkpoints are whole or not there, and never run code."""

from __future__ import annotations

import pickle

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
