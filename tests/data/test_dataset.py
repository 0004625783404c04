"""One slice as tensors: their order, and what is drawn for each."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import AugmentationConfig
from data.batches import SubjectBatches, read_batches, slice_loader
from data.dataset import Slice, SliceDataset
from data.description import Labels
from data.folder import open_data
from tests.helpers.scans import REAL, needs_real_data
from utils import natural


@given(st.lists(st.text("019a-", max_size=5), max_size=6))
def test_natural_order_is_that_of_numbers(texts):
    def reference(text: str) -> list[tuple[int, int | str]]:
        return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", text)]

    assert [reference(text) for text in sorted(texts, key=natural)] == sorted(map(reference, texts))
    assert natural("9" * 5000) < natural("1" + "0" * 5000)
    assert natural("a²٣")


def test_augmentation_is_a_function_of_seed_epoch_and_index(make_data):
    data = open_data(make_data(numbers=tuple(range(1, 9))))

    def batches(seed: int, epoch: int, workers: int) -> torch.Tensor:
        dataset = data.dataset("train", AugmentationConfig(), seed)
        dataset.epoch = epoch
        loader = slice_loader(dataset, SubjectBatches(dataset, ["1"], 3), workers)
        return torch.cat([image for image, _ in read_batches(loader)])

    first = batches(0, 1, 0)
    assert torch.equal(first, batches(0, 1, 2))
    assert not torch.equal(first, batches(0, 2, 0))
    assert not torch.equal(first, batches(1, 1, 0))


def test_a_slice_counted_from_the_end_is_augmented_alike(make_data):
    dataset = open_data(str(make_data(numbers=(1, 2, 3)))).dataset("train", AugmentationConfig())
    for index in range(len(dataset)):
        for same in (index - len(dataset), np.int64(index), torch.tensor(index)):
            assert all(map(torch.equal, dataset[same], dataset[index]))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@needs_real_data
def test_real_pair():
    folder, name = REAL / "chaos_sample_pair" / "train", "Subj_21slice_22.png"
    item = Slice("21", 22, (folder / "Img" / name,), folder / "GT" / name)
    labels = Labels.indexed(tuple("abcde"), (0, 63, 126, 189, 252))
    image, target = SliceDataset([item], labels)[0]
    assert image.shape[-2:] == target.shape
    assert target.unique().tolist() == [0, 1, 2, 3]
