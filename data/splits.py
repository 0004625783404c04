"""Which subject is used for what: split files, random splits, folds, and the paper's protocols."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.dataset import natural
from data.folder import LONGEST_SUBJECT, SPLITS, SUBJECT
from utils import InputError, OptionError, read_json

Split = dict[str, list[str]]
PAPER_SEED = 2020  # the authors' lists were never published; ours follow from this seed and the subjects' names

# Train, validation and test subjects, and how many such splits, each with other test subjects.
PROTOCOLS = {"chaos-mr": ((13, 2, 5), 3), "hvsmr": ((6, 2, 2), 5), "msd": ((388, 48, 48), 1)}


def shuffled(subjects: Sequence[str], seed: int) -> list[str]:
    """The subjects in an order that follows from seed and names alone, in any version of any library."""

    def draw(subject: str) -> bytes:
        return hashlib.sha256(f"{seed}:{subject}".encode(errors="surrogateescape")).digest()

    return sorted(subjects, key=draw)


def split_counts(text: str) -> tuple[int, ...]:
    """ "13,2,5" -> (13, 2, 5). Raises InputError for anything but three numbers from 1 on."""
    counts = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if len(counts) != 3 or len(text.split(",")) != 3 or min(counts) < 1:
        raise OptionError(f"split {text}: must be three numbers of subjects from 1, such as 13,2,5")
    return counts


def random_splits(subjects: Sequence[str], counts: Sequence[int], repeats: int, seed: int) -> list[Split]:
    """`repeats` splits with so many train, val and test subjects; no two splits share a test subject.

    Raises InputError where there are not as many subjects.
    """
    train, val, test = counts
    wanted = f"split {train},{val},{test}"
    if len(subjects) != train + val + test:
        raise OptionError(f"{wanted}: needs {train + val + test} subjects; the source has {len(subjects)}")
    if repeats * test > len(subjects):
        raise OptionError(f"{wanted}: {len(subjects)} subjects allow {len(subjects) // test} repeats, not {repeats}")
    order = shuffled(subjects, seed)
    splits = []
    for repeat in range(repeats):
        turned = order[repeat * test :] + order[: repeat * test]
        splits.append(_named(turned[test + val :], turned[test : test + val], turned[:test]))
    return splits


def fold_split(subjects: Sequence[str], fold: int, folds: int, seed: int) -> Split:
    """Fold number `fold` (from 1) of `folds`: it is the test set, the next one the validation set, the rest trains."""
    if not 3 <= folds <= len(subjects):
        raise OptionError(f"folds {folds}: must be 3 to {len(subjects)}, the number of subjects")
    if not 1 <= fold <= folds:
        raise OptionError(f"fold {fold}: must be 1 to {folds}")
    order = shuffled(subjects, seed)
    test = order[fold - 1 :: folds]
    val = order[fold % folds :: folds]
    train = [subject for subject in order if subject not in {*test, *val}]
    return _named(train, val, test)


def _named(train: Sequence[str], val: Sequence[str], test: Sequence[str]) -> Split:
    parts = {"train": train, "val": val, "test": test}
    return {name: sorted(subjects, key=natural) for name, subjects in parts.items()}


def read_split(path: Path) -> Split:
    """A split file: train, val and test with a list of subjects each; the subjects as text.

    Raises InputError for another form, an empty list, a subject named twice, or a name that no file can carry.
    """
    return _check(read_json(path), path)


def _check(split: Any, path: Path) -> Split:
    example = '{"train": ["1", "2"], "val": ["3"], "test": ["4"]}'
    if not isinstance(split, dict) or set(split) != set(SPLITS):
        raise InputError(f"{path}: must be an object such as {example}")
    if not all(isinstance(split[name], list) and split[name] for name in SPLITS):
        raise InputError(f"{path}: train, val and test each need a list of subjects, such as {example}")
    checked = {name: [str(subject) for subject in split[name]] for name in SPLITS}
    counts = Counter(subject for name in SPLITS for subject in checked[name])
    for subject, count in counts.items():
        if count > 1:
            raise InputError(f"{path}: names subject {subject} twice; each belongs into one split, once")
        if not SUBJECT.fullmatch(subject):
            raise InputError(
                f"{path}: subject {subject!r} must be of letters, digits, underscores and dashes, of at most "
                f"{LONGEST_SUBJECT}"
            )
    return checked
