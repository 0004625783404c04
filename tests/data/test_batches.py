"""Batches: which slices are in them, and what loader processes say of files that have changed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import ShuffledBatches, SubjectBatches, collate, read_batches, slice_loader
from data.folder import open_data
from tests.helpers.errors import assert_clear
from tests.helpers.png import GREY, encode, flat, png, write_tree
from utils import InputError, printable

ROOT = Path(__file__).parents[2]


def test_batches_hold_one_subject_in_order(make_data):
    data = open_data(make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3, 4, 5)))
    train = data.dataset("train")
    assert list(SubjectBatches(train, ["1", "2"], 3)) == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]
    assert list(SubjectBatches(train, ["2"], 4)) == [[5, 6, 7, 8], [9]]


def test_collate_pads_slices_of_other_sizes():
    items = [(torch.rand(1, 4, 6), torch.ones(4, 6).long()), (torch.rand(1, 5, 3), torch.ones(5, 3).long())]
    images, targets = collate(items).tensors()
    assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert images.shape == (2, 1, 5, 6)
    assert torch.equal(images[0, :, :4], items[0][0])
    assert targets[0, 4].tolist() == [-100] * 6
    assert targets[1, :, 3:].unique().tolist() == [-100]
    assert (targets == 1).sum() == 4 * 6 + 5 * 3
    assert images[1, :, :, 3:].abs().sum() == 0


CHANGES = {
    "image vanishes": (lambda image, mask: image.unlink(), "Img", "no such file"),
    "mask vanishes": (lambda image, mask: mask.unlink(), "GT", "no such file"),
    "image is cut": (lambda image, mask: os.truncate(image, 60), "Img", "not a readable PNG"),
    "image of another size": (lambda image, mask: image.write_bytes(flat(0, 40, 32)), "Img", "40 x 32"),
    "pair of another size": (
        lambda image, mask: [path.write_bytes(flat(0, 40, 32)) for path in (image, mask)],
        "Img", "was 1 channels of 32",
    ),
    "image in colors": (
        lambda image, mask: image.write_bytes(png(encode(np.stack([GREY] * 3, 2), 8, 2))), "Img", "is 3 channels",
    ),
    "unknown mask value": (lambda image, mask: mask.write_bytes(flat(9)), "GT", "value 9"),
    "pipe": (lambda image, mask: [image.unlink(), os.mkfifo(image)], "Img", "pipe"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_changes_during_training_are_one_line_from_any_process(tmp_path, case):
    """The same line without loader processes and with two, which end, and from a folder whose name has a line break."""
    change, kind, expected = CHANGES[case]
    root = write_tree(tmp_path / "a\nutils.InputError: b", flat(0), flat(0), [0, 63])
    data = open_data(root)
    paths = [root / "train" / kind / "Subj_aslice_1.png" for kind in ("Img", "GT")]
    change(*paths)
    before, messages = set(multiprocessing.active_children()), []
    for workers in (0, 2):
        dataset = data.dataset("train")
        loader = slice_loader(dataset, ShuffledBatches(dataset, 2, seed=0), workers)
        with pytest.raises(InputError) as caught:
            list(read_batches(loader))
        assert_clear(caught.value, f"train/{kind}/Subj_aslice_1.png", expected)
        messages.append(str(caught.value))
        assert set(multiprocessing.active_children()) <= before
    assert messages[0] == messages[1]
    assert messages[0].startswith(printable(str(root)))


IN_SMALL_SHARED_MEMORY = """
import subprocess, sys
from pathlib import Path
from data.batches import ShuffledBatches, read_batches, slice_loader
from data.folder import open_data
from utils import OptionError
dataset = open_data(Path(sys.argv[1])).dataset("train")
loader = slice_loader(dataset, ShuffledBatches(dataset, 4, seed=0), workers=2)
print(sum(len(images) for images, _ in read_batches(loader)))
subprocess.run(["mount", "-o", "remount,size=4k", "/dev/shm"], check=True)
try:
    slice_loader(dataset, ShuffledBatches(dataset, 4, seed=0), workers=2)
except OptionError as error:
    print(error)
"""


@pytest.mark.slow
def test_batches_need_no_shared_memory(make_data):
    """Batches of 6 MB with a /dev/shm of 1 MB, as containers have a small one; in one of 4 kB not even locks fit."""
    data = make_data(numbers=tuple(range(1, 9)), size=(512, 512))
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm 2> /dev/null || exit 99; exec "$@"'
    python = [sys.executable, "-c", IN_SMALL_SHARED_MEMORY, str(data)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", *python], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if done.returncode in (1, 99) and not done.stdout and "Traceback" not in done.stderr:
        pytest.skip("this user may mount nothing")
    counted, error = done.stdout.splitlines()
    assert counted == "8"
    assert error.startswith("workers 2: /dev/shm has no room for their locks, 4 kB; use 0, or")


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9))
@settings(deadline=None)
def test_processes_share_the_batches(slices, batch, processes, epoch, skip):
    """Every slice counts once in an epoch and as much as any other, in the order of one process, from any step on."""
    batch = max(batch, processes)
    dataset = range(slices)
    alone = ShuffledBatches(dataset, batch, 3)
    alone.begin(epoch)
    steps = list(alone)
    assert sorted(index for step in steps for index in step) == list(dataset)
    assert [len(step) for step in steps[:-1]] == [batch] * (len(steps) - 1)
    shares = [ShuffledBatches(dataset, batch, 3, k, processes) for k in range(processes)]
    start = min(skip, len(steps))
    for part in shares:
        part.begin(epoch, start)
    parts = [list(part) for part in shares]
    assert [len(part) for part in parts] == [len(steps) - start] * processes
    for step in range(start, len(steps)):
        counted: dict[int, float] = {}
        for part, own in zip(shares, parts, strict=True):
            indices = own[step - start]
            for index in indices:  # DistributedDataParallel takes the mean over the processes of the means over slices
                counted[index] = counted.get(index, 0) + part.weight(step) / processes / len(indices)
        counted = {index: weight for index, weight in counted.items() if weight}
        assert counted == pytest.approx(dict.fromkeys(steps[step], 1 / len(steps[step])))


def test_order_differs_between_epochs_and_seeds():
    orders = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            batches = ShuffledBatches(range(50), 50, seed)
            batches.begin(epoch)
            orders.add(tuple(next(iter(batches))))
    assert len(orders) == 4
