"""Splits are disjoint, and follow from subjects and seed alone."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.folder import check_groups
from data.splits import PAPER_SEED, PROTOCOLS, fold_splits, random_splits, read_groups, shuffled
from tests.helpers.errors import assert_clear
from utils import InputError, OptionError

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


@pytest.mark.parametrize("classes", [{}, {str(k): {"a", "b"} for k in range(1, 24)}], ids=["unknown", "alike"])
@pytest.mark.parametrize("folds", [3, 5, 23])
def test_folds_without_groups_are_every_nth_subject_of_the_shuffled_list(folds, classes):
    subjects = [str(k) for k in range(1, 24)]
    order = shuffled(subjects, 7)
    for k, split in enumerate(fold_splits(subjects, folds, 7, classes=classes)):
        test, val = order[k::folds], order[(k + 1) % folds :: folds]
        train = set(subjects) - {*test, *val}
        assert split == {name: sorted(part, key=int) for name, part in zip(split, (train, val, test), strict=True)}


def test_numbers_of_folds():
    groups = {"1": "a", "2": "a"}
    for folds in (2, 4):
        with pytest.raises(OptionError, match="must be 3 to 3, the number of groups"):
            fold_splits(["1", "2", "3", "4"], folds, 0, groups)
    with pytest.raises(OptionError, match="must be 3 to 4, the number of subjects"):
        fold_splits(["1", "2", "3", "4"], 5, 0)


SUBJECTS = st.lists(
    st.tuples(st.integers(0, 9), st.frozensets(st.integers(1, 4))), min_size=6, max_size=25
)  # of each: group, where 0 is none, and classes


def named(drawn: list[tuple[int, frozenset[int]]]) -> tuple[dict[str, str], dict[str, frozenset[int]]]:
    """Subject -> group, of those that have one; and subject -> classes."""
    groups = {f"s{k}": f"g{group}" for k, (group, _) in enumerate(drawn) if group}
    return groups, {f"s{k}": classes for k, (_, classes) in enumerate(drawn)}


@settings(max_examples=150, deadline=None)
@given(SUBJECTS, st.integers(3, 5), st.integers(0, 99))
def test_folds_keep_groups_whole_and_have_like_sizes(drawn, folds, seed):
    groups, classes = named(drawn)
    subjects = list(classes)
    sizes = Counter(groups.get(subject, subject) for subject in subjects)
    if len(sizes) < folds:
        return
    splits = fold_splits(subjects, folds, seed, groups, classes)
    assert splits == fold_splits(subjects[::-1], folds, seed, groups, classes)
    assert sorted(chain(*(split["test"] for split in splits))) == sorted(subjects)
    for k, split in enumerate(splits):
        assert sorted(chain(*split.values())) == sorted(subjects)
        assert split["val"] == splits[(k + 1) % folds]["test"]
        homes = [{groups.get(subject, subject) for subject in part} for part in split.values()]
        assert sum(map(len, homes)) == len(set().union(*homes)) == len(sizes)
    in_fold = [len(split["test"]) for split in splits]
    assert max(in_fold) - min(in_fold) <= max(sizes.values())


def lacking(folds: list[list[str]], held: dict[str, set[int]], count: int) -> int:
    """How many folds lack a class that at least `count` of the groups, of which the folds are made, hold."""
    holders = Counter(chain(*held.values()))
    found = [set().union(*(held[group] for group in fold)) for fold in folds]
    return sum(name not in fold for fold in found for name in holders if holders[name] >= count)


def can_be_balanced(sizes: dict[str, int], held: dict[str, set[int]]) -> bool:
    """Whether any way to deal the groups into three folds of like sizes gives each fold each class; by trying all."""
    for places in product(range(3), repeat=len(sizes)):
        folds = [[group for group, place in zip(sizes, places, strict=True) if place == k] for k in range(3)]
        in_fold = [sum(sizes[group] for group in fold) for fold in folds]
        if max(in_fold) - min(in_fold) <= max(sizes.values()) and not lacking(folds, held, 3):
            return True
    return False


@pytest.mark.parametrize("largest", [1, 2, 3])
def test_each_fold_has_each_class_where_that_is_possible(largest):
    rng = np.random.default_rng(largest)
    outcomes = []
    while len(outcomes) < 100:
        sizes = {f"g{k}": int(rng.integers(1, largest + 1)) for k in range(rng.integers(4, 8))}
        often = rng.uniform(0.2, 0.8)
        held = {group: {name for name in range(4) if rng.random() < often} for group in sizes}
        if can_be_balanced(sizes, held):
            groups = {f"{group}-{k}": group for group in sizes for k in range(sizes[group])}
            splits = fold_splits(list(groups), 3, 0, groups, {subject: held[groups[subject]] for subject in groups})
            outcomes.append(not lacking([[groups[subject] for subject in split["test"]] for split in splits], held, 3))
    assert np.mean(outcomes) >= 0.95


def test_a_rare_class_is_in_each_fold():
    subjects = [f"s{k}" for k in range(60)]
    classes = {subject: {1, 2} if k % 20 == 0 else {1} for k, subject in enumerate(subjects)}
    for split in fold_splits(subjects, 3, 0, classes=classes):
        assert sum(2 in classes[subject] for subject in split["test"]) == 1
        assert len(split["test"]) == 20


# ---------------------------------------------------------------- groups


@settings(max_examples=100, deadline=None)
@given(SUBJECTS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_random_splits_keep_groups_whole(drawn, val, test, repeats):
    groups, classes = named(drawn)
    subjects = list(classes)
    counts = (len(subjects) - val - test, val, test)
    if counts[0] < 1:
        return
    try:
        splits = random_splits(subjects, counts, repeats, 0, groups)
    except OptionError:
        assert any(count > 1 for count in Counter(groups.values()).values()) or repeats * test > len(subjects)
        return
    tested = list(chain(*(split["test"] for split in splits)))
    assert len(set(tested)) == repeats * test
    for split in splits:
        assert tuple(len(split[name]) for name in ("train", "val", "test")) == counts
        assert sorted(chain(*split.values())) == sorted(subjects)
        check_groups(split, groups)


def test_numbers_that_groups_do_not_have():
    pairs = {str(k): str(k // 2) for k in range(12)}
    with pytest.raises(OptionError, match=r"split 7,2,3: the 3 test subjects cannot be whole groups; .* such as [24]$"):
        random_splits(list(pairs), (7, 2, 3), 1, 0, pairs)
    with pytest.raises(OptionError, match="the 1 validation subjects"):
        random_splits(list(pairs), (7, 1, 4), 1, 0, pairs)
    assert len(random_splits(list(pairs), (4, 2, 6), 2, 0, pairs)) == 2


def test_a_group_on_two_sides_is_refused():
    with pytest.raises(InputError) as caught:
        check_groups({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, {"2": "Ann", "4": "Ann"})
    assert_clear(caught.value, "group 'Ann'", "subject 2 in train", "subject 4 in test")
    check_groups({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, {"1": "Ann", "2": "Ann", "5": "Ann"})
    with pytest.raises(InputError):  # a subject that is not named is a group of its own, called as itself
        check_groups({"train": ["1"], "val": ["2"]}, {"2": "1"})


def test_groups_from_a_file_or_an_expression(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text('{"p1_left": "1", "p1_right": "1"}')
    subjects = ["p1_left", "p1_right", "p2_left"]
    assert read_groups(str(path), subjects) == {"p1_left": "1", "p1_right": "1"}
    assert read_groups("(p[0-9]+)_(?:left|right)", subjects) == dict(zip(subjects, ("p1", "p1", "p2"), strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p[0-9]+_.*", "one pair of parentheses"),
        ("(p)([0-9])_.*", "one pair of parentheses"),
        ("(p[0-9]+", "regular expression"),
        ("(p[0-9]+)", "must match the whole name of each subject, also of p1_left"),
        ("p1_left|(p[0-9]+)_.*", "also of p1_left"),
    ],
)
def test_expressions_that_do_not_fit(text, said):
    with pytest.raises(OptionError) as caught:
        read_groups(text, ["p1_left", "p2_left"])
    assert str(caught.value).startswith(f"groups {text}: ")
    assert_clear(caught.value, said)


@pytest.mark.parametrize(
    "content", ['{"p1": "1", "p3": "1"}', '{"p1": 1}', '["p1"]', '{"p1": " "}', "{", '{"p1": "a\\n"}']
)
def test_files_of_groups_that_do_not_fit(tmp_path, content):
    path = tmp_path / "groups.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_groups(str(path), ["p1", "p2"])
    assert_clear(caught.value, str(path))


# ---------------------------------------------------------------- the paper's


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


@pytest.mark.parametrize(("name", "people"), [("chaos", 15), ("acdc", 74), ("hippocampus", 108)])
def test_the_folds_of_the_replication_test_each_person_once(name, people):
    """Those of a person, hippocampus 2k - 1 and 2k, are on one side."""

    def person_of(subject: str) -> str | int:
        return (int(subject.split("_")[1]) + 1) // 2 if name == "hippocampus" else subject

    splits = [json.loads((PUBLISHED / "replication" / f"{name}-{k}.json").read_text()) for k in range(1, 6)]
    subjects = sorted(chain(*splits[0].values()))
    assert len(set(subjects)) == len(subjects)
    assert sorted(chain(*(split["test"] for split in splits))) == subjects
    assert len(set(map(person_of, subjects))) == people
    for split in splits:
        assert sorted(chain(*split.values())) == subjects
        sides = [set(map(person_of, part)) for part in split.values()]
        assert sum(map(len, sides)) == people
