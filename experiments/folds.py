"""The folds of a table: which subjects train, validate and test each row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.folder import DataFolder, open_data
from data.splits import Split, fold_splits, random_splits, read_groups, read_split, split_counts
from experiments.results import merged_groups
from training.scores import tolerances_of
from utils import InputError, errors_begin, natural, read_json, write_json


@dataclass(frozen=True)
class Splitting:
    """What each row of a table is trained and tested on."""

    data: tuple[Path, ...] = ()
    """Prepared data set; or several, one for each fold."""
    folds: int = 0
    """Split all subjects of --data anew into so many folds, each the test set once; 0: the split of its folders."""
    split: str = ""
    """TRAIN,VAL,TEST: split all subjects of --data at random into so many, such as 13,2,5."""
    repeats: int = 1
    """So many splits by --split, each with other test subjects."""
    split_seed: int = 0
    """Seed of --folds and --split."""
    split_files: str = ""
    """Folds of your own: split files, separated by commas."""
    groups: str = ""
    """Subjects that --folds and --split keep together, such as those of a patient, beside the groups of dataset.json: a
    JSON file {"subject": "group"}, or a regular expression whose one pair of brackets holds the group in each subject's
    name."""


@dataclass(frozen=True)
class Fold:
    """A data set and how its subjects are split: by its folders (None), or by a split file."""

    name: str
    data: Path
    split_file: Path | None
    groups: dict[str, str]
    """Subject -> group, by which the fold was split."""
    opened: DataFolder


def folds(options: Splitting, folder: Path) -> list[Fold]:
    """What each row is trained on. Writes the split files that it needs to the folder.

    Raises InputError for data sets whose scores cannot share a row, and for what splits none of them.
    """
    anew = bool(options.folds or options.split)
    if sum(map(bool, (options.folds, options.split, options.split_files))) > 1:
        raise InputError("--folds, --split and --split_files: choose one of them")
    if options.folds < 0 or options.repeats < 1:
        raise InputError(f"--folds {options.folds}, --repeats {options.repeats}: must be at least 0 and 1")
    if options.groups and not anew:
        raise InputError('--groups: needs --folds or --split; other splits follow the "groups" of dataset.json')
    if len({data.resolve() for data in options.data}) < len(options.data):
        raise InputError(f"--data {' '.join(map(str, options.data))}: names a data set twice")
    several = len(options.data) > 1
    if several and options.split_files:
        raise InputError("--split_files: needs one data set")
    found = []
    for number, data in enumerate(options.data, 1):
        name = f"{number}-{data.resolve().name}" if several else data.resolve().name
        if options.split_files:
            found += _own_folds(options, data, name)
            continue
        opened = open_data(data, whole_groups=not anew)  # any mistake in the data shows here, not in every run
        if anew:
            found += _split_folds(options, data, name, opened, folder)
        else:
            found.append(Fold(name, data, None, opened.groups, opened))
    _check_folds(found)
    return found


def _own_folds(options: Splitting, data: Path, name: str) -> list[Fold]:
    """A fold for each of --split_files, named after it. Raises InputError for one that is none of this data set."""
    paths = [Path(part.strip()) for part in options.split_files.split(",")]
    found = []
    for path in paths:
        if [other.stem for other in paths].count(path.stem) > 1:
            raise InputError(f"--split_files {path}: two of them have this name; runs are named after it, rename one")
        split = read_split(path)
        with errors_begin(path):
            opened = open_data(data, subjects=split)
        found.append(Fold(f"{name}-{path.stem}", data, path, opened.groups, opened))
    return found


def _split_folds(options: Splitting, data: Path, name: str, opened: DataFolder, folder: Path) -> list[Fold]:
    """The folds of a data set by --folds or --split, each with its split file. Raises InputError."""
    subjects = sorted({item.subject for split in opened.splits.values() for item in split}, key=natural)
    groups = opened.groups
    if options.groups:
        more = read_groups(options.groups, subjects)
        with errors_begin(f"--groups {options.groups}"):
            groups = merged_groups([groups, more])
    kind, splits = _splits(options, subjects, groups, opened.classes_of())
    found = []
    for k, split in enumerate(splits, 1):
        of_fold = f"{name}-{kind}-{k}-of-{len(splits)}-seed-{options.split_seed}"
        path = folder / f"{of_fold}.json"
        if path.exists() and read_json(path) != split:
            raise InputError(f"{path}: was split from other subjects or groups than {data} has; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, split)
        found.append(Fold(of_fold, data, path, groups, opened))
    return found


def _splits(
    options: Splitting, subjects: list[str], groups: dict[str, str], classes: dict[str, set[int]]
) -> tuple[str, list[Split]]:
    """What kind of splits it is, for names, and the splits."""
    seed = options.split_seed
    if options.folds:
        return "fold", fold_splits(subjects, options.folds, seed, groups, classes)
    counts = split_counts(options.split)
    return f"split-{'-'.join(map(str, counts))}", random_splits(subjects, counts, options.repeats, seed, groups)


def _check_folds(each: list[Fold]) -> None:
    """Raises InputError for data sets whose scores cannot share a row, or that have different slices of a subject."""
    ours = each[0].opened
    known: dict[str, tuple[str, Path]] = {}
    for fold in each:
        for split in fold.opened.splits:
            for subject, slices in fold.opened.dataset(split).fingerprints().items():
                first, data = known.setdefault(subject, (slices, fold.data))
                if first != slices:
                    raise InputError(
                        f"{fold.data}: its subject {subject} has other slices than that of {data}; give different "
                        "people different names, and make a table of each preparation"
                    )
    for fold in each[1:]:
        theirs = fold.opened
        pairs = {
            "classes": (set(theirs.labels.names), set(ours.labels.names)),
            "regions": (theirs.labels.regions, ours.labels.regions),
            "tolerances": (tolerances_of(theirs.labels), tolerances_of(ours.labels)),
            "numbers of channels": (theirs.channels, ours.channels),
        }
        for what, (one, other) in pairs.items():
            if one != other:
                raise InputError(
                    f"{fold.data}: has other {what} than {each[0].data}; leave it out, or make a table of each"
                )
