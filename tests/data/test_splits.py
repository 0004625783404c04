"""Splits are disjoint, and follow from subjects and seed alone."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from data.splits import PAPER_SEED, PROTOCOLS, fold_split, random_splits
from utils import InputError

PUBLISHED = Path(__file__).parents[2] / "experiments" / "splits"
CHAOS = [1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39]


def test_splits_are_disjoint_and_repeatable():
    subjects = [str(k) for k in range(1, 21)]
    splits = random_splits(subjects, (13, 2, 5), 3, seed=2020)
    assert splits == random_splits(subjects[::-1], (13, 2, 5), 3, seed=2020)
    assert splits != random_splits(subjects, (13, 2, 5), 3, seed=1)
    for split in splits:
        assert [len(split[name]) for name in ("train", "val", "test")] == [13, 2, 5]
        assert sorted(chain(*split.values()), key=int) == subjects
    assert len({subject for split in splits for subject in split["test"]}) == 15
    with pytest.raises(InputError, match="15 subjects allow 3 repeats, not 4"):
        random_splits(subjects[:15], (8, 2, 5), 4, seed=0)
    with pytest.raises(InputError, match="needs 20 subjects; the source has 19"):
        random_splits(subjects[1:], (13, 2, 5), 3, seed=0)


def test_each_subject_is_in_one_fold():
    subjects = [str(k) for k in range(1, 21)]
    folds = [fold_split(subjects, k, 6, seed=0) for k in range(1, 7)]
    assert sorted(chain(*(fold["test"] for fold in folds)), key=int) == subjects
    assert all(sorted(chain(*fold.values()), key=int) == subjects for fold in folds)
    for bad in ((0, 5), (6, 5), (1, 2), (1, 21)):
        with pytest.raises(InputError):
            fold_split(subjects, *bad, seed=0)


@pytest.mark.parametrize(
    ("file", "protocol", "subjects"),
    [
        ("chaos-mr", "chaos-mr", [str(k) for k in CHAOS]),
        ("hvsmr", "hvsmr", [str(k) for k in range(10)]),
        ("brats-msd", "msd", [f"BRATS_{k:03d}" for k in range(1, 485)]),
    ],
)
def test_published_splits_follow_from_the_seed(file, protocol, subjects):
    counts, repeats = PROTOCOLS[protocol]
    published = json.loads((PUBLISHED / f"{file}.json").read_text())
    assert published == random_splits(subjects, counts, repeats, PAPER_SEED)
    assert len(published) == repeats
