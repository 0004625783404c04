"""Which subject is used for what: split files, random splits, folds, and the paper's protocols."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from data.description import parse_groups
from data.listing import SPLITS, check_subject
from utils import InputError, OptionError, errors_begin, natural, read_json, some

Split = dict[str, list[str]]
NOTHING: Mapping[str, Any] = MappingProxyType({})
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


def random_splits(
    subjects: Sequence[str], counts: Sequence[int], repeats: int, seed: int, groups: Mapping[str, str] = NOTHING
) -> list[Split]:
    """`repeats` splits with so many train, val and test subjects; no two splits share a test subject.

    `groups`, subject -> group, stay whole. Raises OptionError where there are not as many subjects, or where groups,
    drawn one after the other, do not add up to these numbers.
    """
    train, val, test = counts
    wanted = f"split {train},{val},{test}"
    if len(subjects) != train + val + test:
        raise OptionError(f"{wanted}: needs {train + val + test} subjects; the source has {len(subjects)}")
    if repeats * test > len(subjects):
        raise OptionError(f"{wanted}: {len(subjects)} subjects allow {len(subjects) // test} repeats, not {repeats}")
    untested = _grouped(shuffled(subjects, seed), groups, {})
    tested: list[_Group] = []
    splits = []
    for _ in range(repeats):
        for_test, untested = _take(untested, test, f"{wanted}: the {test} test subjects")
        for_val, for_train = _take(untested + tested, val, f"{wanted}: the {val} validation subjects")
        splits.append(_named(_subjects_of(for_train), _subjects_of(for_val), _subjects_of(for_test)))
        tested += for_test
    return splits


def fold_splits(
    subjects: Sequence[str],
    folds: int,
    seed: int,
    groups: Mapping[str, str] = NOTHING,
    classes: Mapping[str, Collection[Any]] = NOTHING,
) -> list[Split]:
    """The splits of a cross-validation: split k tests on fold k, validates on the next one and trains on the others.

    `groups`, subject -> group, stay whole; the sizes of folds differ by no more than the largest group has subjects.
    `classes`, subject -> the classes that it has, are spread so that as many folds as possible hold each of them. The
    search is not exhaustive: with groups of different sizes it may leave a fold without a class that it could have.
    Raises OptionError where there are fewer groups than folds.
    """
    whole = _grouped(shuffled(subjects, seed), groups, classes)
    if not 3 <= folds <= len(whole):
        unit = "groups" if len(whole) < len(subjects) else "subjects"
        raise OptionError(f"folds {folds}: must be 3 to {len(whole)}, the number of {unit}")
    tests = [_subjects_of(fold.groups) for fold in _deal(whole, folds)]
    splits = []
    for k, test in enumerate(tests):
        val = tests[(k + 1) % folds]
        kept = {*test, *val}
        splits.append(_named([subject for subject in subjects if subject not in kept], val, test))
    return splits


class _Group(NamedTuple):
    """Subjects that stay together."""

    subjects: Sequence[str]
    classes: Counter[Any]
    """Class -> number of them that have it."""


def _grouped(
    subjects: Sequence[str], groups: Mapping[str, str], classes: Mapping[str, Collection[Any]]
) -> list[_Group]:
    """Whole groups in the order of their first subjects; a subject without a group is one of its own."""
    members: dict[str, list[str]] = {}
    for subject in subjects:
        members.setdefault(groups.get(subject, subject), []).append(subject)
    whole = []
    for together in members.values():
        held = Counter(name for subject in together for name in set(classes.get(subject, ())))
        whole.append(_Group(together, held))
    return whole


def _subjects_of(groups: Sequence[_Group]) -> list[str]:
    return [subject for group in groups for subject in group.subjects]


def _take(groups: Sequence[_Group], count: int, what: str) -> tuple[list[_Group], list[_Group]]:
    """Whole groups, the first ones that have `count` subjects in all, and the rest. Raises OptionError for none."""
    sums = [1]  # bit n: whether some of the last 0, 1, 2, ... groups have n subjects in all
    for group in reversed(groups):
        sums.append(sums[-1] | sums[-1] << len(group.subjects))
    possible = sums.pop()
    if not possible >> count & 1:
        numbers = [number for number in range(1, possible.bit_length() - 1) if possible >> number & 1]
        hint = f", such as {min(numbers, key=lambda number: abs(number - count))}" if numbers else ""
        raise OptionError(f"{what} cannot be whole groups; choose another seed, or other numbers{hint}")
    taken, rest = [], []
    for group, sums_of_later in zip(groups, reversed(sums), strict=True):
        left = count - len(group.subjects)
        if left >= 0 and sums_of_later >> left & 1:
            taken.append(group)
            count = left
        else:
            rest.append(group)
    return taken, rest


# ---------------------------------------------------------------- folds


class _Fold:
    """The groups of a fold."""

    def __init__(self) -> None:
        self.groups: list[_Group] = []
        self.size = 0
        self.holders: Counter[Any] = Counter()
        """Class -> number of subjects that have it."""

    def replace(self, old: _Group, new: _Group) -> None:
        """Let `new` join and `old` leave."""
        self.groups = [group for group in (*self.groups, new) if group is not old and group is not NOBODY]
        self.size += len(new.subjects) - len(old.subjects)
        self.holders.update(new.classes)
        self.holders.subtract(old.classes)

    def gain(self, old: _Group, new: _Group) -> int:
        """How many more classes it has with `new` in the place of `old`."""
        come = sum(not self.holders[name] for name in new.classes.keys() - old.classes.keys())
        go = sum(self.holders[name] == old.classes[name] for name in old.classes.keys() - new.classes.keys())
        return come - go


NOBODY = _Group((), Counter())


def _deal(groups: Sequence[_Group], folds: int) -> list[_Fold]:
    """Deal the groups class by class, the rarest first, each to the fold that holds the class least often.

    The fold stays within a largest group of the smallest fold. Then groups are exchanged while folds lack a class.
    """
    dealt = [_Fold() for _ in range(folds)]
    largest = max(len(group.subjects) for group in groups)
    counts = Counter(name for group in groups for name in group.classes)
    left = sorted(groups, key=lambda group: -len(group.subjects))
    for rarest in (*sorted(counts, key=lambda name: (counts[name], str(name))), None):
        for group in left:
            if rarest in group.classes or rarest is None:
                room = min(fold.size for fold in dealt) + largest - len(group.subjects)
                open_folds = [fold for fold in dealt if fold.size <= room]
                min(open_folds, key=partial(_reluctance, group, rarest)).replace(NOBODY, group)
        left = [group for group in left if rarest not in group.classes]
    while _exchange(dealt, largest):
        pass
    return dealt


def _reluctance(group: _Group, rarest: Any, fold: _Fold) -> tuple[int, int, int]:
    """The fold of the smallest value needs the group most."""
    return fold.holders[rarest], -fold.gain(NOBODY, group), fold.size


def _exchange(folds: Sequence[_Fold], largest: int) -> bool:
    """Exchange two groups between folds, or move one, so that fewer folds lack a class; whether there are such."""
    names = set().union(*(fold.holders for fold in folds))
    for poor, rich in permutations(folds, 2):
        wanted = {name for name in names if not poor.holders[name]}
        for new in [group for group in rich.groups if wanted.intersection(group.classes)]:
            for old in (*poor.groups, NOBODY):
                change = len(new.subjects) - len(old.subjects)
                others = [fold.size for fold in folds if fold is not poor and fold is not rich]
                sizes = [*others, poor.size + change, rich.size - change]
                if max(sizes) - min(sizes) <= largest and poor.gain(old, new) + rich.gain(new, old) > 0:
                    poor.replace(old, new)
                    rich.replace(new, old)
                    return True
    return False


def _named(train: Sequence[str], val: Sequence[str], test: Sequence[str]) -> Split:
    parts = {"train": train, "val": val, "test": test}
    return {name: sorted(subjects, key=natural) for name, subjects in parts.items()}


def read_split(path: Path) -> Split:
    """A split file: train, val and test with a list of subjects each; the subjects as text.

    Raises InputError for another form, an empty list, a subject named twice, or a name that no file can carry.
    """
    return _check(read_json(path), path)


def read_groups(text: str, subjects: Sequence[str], of_others: bool = False) -> dict[str, str]:
    """Subject -> group, from a .json file that holds this, or by a regular expression.

    The expression matches the whole name of each subject; what is in its one pair of parentheses names the group.
    Raises InputError for a file of another form or, unless it may be `of_others`, with a subject that is not among
    `subjects`, and OptionError for an expression that does not fit.
    """
    if text.endswith(".json"):
        content = read_json(Path(text))
        with errors_begin(text):
            groups = parse_groups(content)
            for subject in groups:
                if subject not in subjects and not of_others:
                    raise InputError(f"has no subject {subject!r} to group, only {some(subjects)}; correct the name")
        return groups
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise OptionError(f"groups {text}: must be a .json file or a regular expression ({error})") from None
    if pattern.groups != 1:
        raise OptionError(
            f"groups {text}: must be a .json file, or a regular expression with one pair of parentheses around the "
            r"name of the group, such as '(patient\d+)_.*'"
        )
    matches = {subject: pattern.fullmatch(subject) for subject in subjects}
    for subject, match in matches.items():
        if match is None or not match[1]:
            raise OptionError(f"groups {text}: must match the whole name of each subject, also of {subject}")
    return {subject: match[1] for subject, match in matches.items()}


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
        with errors_begin(path):
            check_subject(subject)
    return checked
