"""What the finished runs of a row have come to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from config import GROUP_OF, Config, changeable, differences, read_run
from metrics import METRICS, mean_std
from utils import InputError, printable, read_csv, read_json

MEAN = None  # over the classes of a subject; no class can be called so

Column = tuple[str | None, str]  # class, region or MEAN; key of a metric
Values = dict[Column, dict[str, float]]  # column -> test subject -> value in the metric's unit

COST = ("parameters", "epochs", "seconds", "memory_gib")
LOG = ("epoch", "val_dsc", "seconds")
TEXTS = ("subject", "group", "class")
IN_MM = tuple(key for key in METRICS if key.endswith("_mm"))
SCORES = ("subject", "class", "missed", "spurious", *(key for key in METRICS if key not in IN_MM))
# What the runs of a row may have of their own: folds and seeds, and what may change when a run resumes, not its epochs.
MAY_DIFFER = {"preset", "seed", "split_file", "init"} | (changeable(Config()) - {"epochs"})
REMEDY = "it was changed; bring the old one back, or let main.py --resume write it again"


@dataclass(frozen=True)
class Result:
    """A row: the scores of its runs on all folds with all seeds, and what they cost."""

    name: str
    values: Values
    """The mean over folds and seeds where a subject is tested in several."""
    by_seed: dict[int | None, Values]
    """Of each seed that tests all subjects, its values; one entry (None) where no seed does, or seeds are not known."""
    left_out: list[int]
    """Seeds whose runs do not count, because they do not test all subjects that other seeds test."""
    classes: list[str]
    regions: list[str]
    groups: dict[str, str]
    """Of the subjects that have one; each other subject is a group of its own."""
    missed: dict[str, int]
    """Of each class and region, how often it was only in the truth, over all runs."""
    spurious: dict[str, int]
    """How often it was only in the prediction."""
    in_mm: bool
    """Whether the spacing of all subjects is known."""
    per_image: bool
    tolerances: dict[str, float]
    """Class or region -> tolerance of NSD in mm."""
    parameters: int | None
    """The costs are None where they are not known, as of predictions that were only scored."""
    epochs: int | None
    seconds: float | None
    """Of training with validation, the mean over runs."""
    memory: float | None
    """Peak in GiB, the largest of the runs."""
    runs: int
    folds: int
    curves: list[tuple[np.ndarray, np.ndarray]]
    """Of each run with a log, the hours of training up to the end of each epoch, and its validation Dice in %."""
    slices: dict[str, str]
    """Test subject -> fingerprint of its slices, where runs know it."""
    code: set[str]
    """Commits that the runs were trained with, where they are known."""

    @property
    def labels(self) -> list[str]:
        """The classes, then the regions."""
        return [*self.classes, *self.regions]

    @property
    def seeds(self) -> list[int]:
        """Those whose values are apart in `by_seed`."""
        return [seed for seed in self.by_seed if seed is not None]

    @property
    def missing(self) -> bool:
        """Whether a class or region was missed or spurious in any subject."""
        return any([*self.missed.values(), *self.spurious.values()])


@dataclass(frozen=True)
class _Run:
    """A finished run as its files have it."""

    folder: Path
    config: Config | None
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    log: list[dict[str, Any]]
    values: Values

    @property
    def seed(self) -> int | None:
        """Where it is known."""
        return None if self.config is None else self.config.machine.seed

    def labels(self, region: bool) -> list[str]:
        """The classes, or the regions."""
        return list(dict.fromkeys(row["class"] for row in self.rows if row.get("region", False) == region))

    def in_mm(self) -> bool:
        """Whether all subjects have values in mm. The worst case is known wherever there is anything to score."""
        if not all(key in self.rows[0] for key in IN_MM):
            return False
        return all(math.isnan(row["msd_worst_mm"]) == math.isnan(row["msd_worst"]) for row in self.rows)

    def subjects(self) -> frozenset[str]:
        """Those that it tests."""
        return frozenset(row["subject"] for row in self.rows)

    def groups(self) -> dict[str, str]:
        """Subject -> group."""
        return {row["subject"]: row["group"] for row in self.rows if row.get("group")}

    def tolerances(self) -> dict[str, float]:
        """Class or region -> tolerance in mm."""
        return self.summary.get("tolerances_mm", {})

    def slices(self) -> dict[str, str]:
        """Test subject -> fingerprint of its slices; nothing where it is not known."""
        return self.summary.get("slices", {})

    def code(self) -> set[str]:
        """The commit that it was last trained with, where it is known."""
        environment = self.summary.get("environment", {})
        commit, changed = environment.get("commit"), environment.get("changed since")
        if self.config is None or not isinstance(commit, str) or commit == "unknown":
            return set()
        return {f"{commit[:9]} with changes" if changed == "yes" else commit[:9]}


def read_result(name: str, folders: Sequence[Path]) -> Result:
    """The result of a row's finished runs.

    Raises InputError where one of them is not finished, has other classes, groups, tolerances or settings than the
    others, repeats one of them, or has another subject of the same name.
    """
    runs = [_read_run(folder) for folder in folders]
    for k, run in enumerate(runs):
        for other in runs[:k]:
            _check_alike(run, other)
    by_seed, left_out = _whole_seeds(runs)
    runs = list(chain.from_iterable(by_seed.values()))
    of_seeds = {seed: _mean_values([run.values for run in of_one]) for seed, of_one in by_seed.items()}
    labels = [*runs[0].labels(False), *runs[0].labels(True)]
    counts = {kind: dict.fromkeys(labels, 0) for kind in ("missed", "spurious")}
    for row in chain.from_iterable(run.rows for run in runs):
        for kind, of_kind in counts.items():
            of_kind[row["class"]] += bool(row[kind])
    costs = {key: [run.summary[key] for run in runs] for key in COST}
    known = {key: values for key, values in costs.items() if None not in values}
    return Result(
        name=printable(name),
        values=_mean_values(list(of_seeds.values())),
        by_seed=of_seeds,
        left_out=left_out,
        classes=runs[0].labels(False),
        regions=runs[0].labels(True),
        groups=merged_groups([run.groups() for run in runs]),
        **counts,
        in_mm=all(run.in_mm() for run in runs),
        per_image=all(run.summary.get("per_image", False) for run in runs),
        tolerances=runs[0].tolerances(),
        parameters=max(known.get("parameters", []), default=None),
        epochs=max(known.get("epochs", []), default=None),
        seconds=float(np.mean(known["seconds"])) if "seconds" in known else None,
        memory=max(known.get("memory_gib", []), default=None),
        runs=len(runs),
        folds=len({run.subjects() for run in runs}) if None in by_seed else max(map(len, by_seed.values())),
        curves=[_curve(run.log) for run in runs if run.log],
        slices=dict(chain.from_iterable(run.slices().items() for run in runs)),
        code=set().union(*(run.code() for run in runs)),
    )


def _check_alike(run: _Run, first: _Run) -> None:
    for region, kind in ((False, "classes"), (True, "regions")):
        if set(run.labels(region)) != set(first.labels(region)):
            raise InputError(f"{run.folder}: has other {kind} than {first.folder}; they cannot be one row")
    if run.tolerances() != first.tolerances():
        raise InputError(f"{run.folder}: its NSD has other tolerances than that of {first.folder}; score it again")
    parameters = {run.summary["parameters"], first.summary["parameters"]}
    if len(parameters - {None}) > 1:
        raise InputError(f"{run.folder}: is of another network than {first.folder}; give each network its own row")
    if run.config and first.config:
        changed = differences(first.config, run.config, GROUP_OF.keys() - MAY_DIFFER)
        if changed:
            raise InputError(
                f"{run.folder}: was trained otherwise than {first.folder} ({changed}); give it a row of its own"
            )
        if _made_from(run.config) == _made_from(first.config) and run.subjects() == first.subjects():
            raise InputError(f"{run.folder}: repeats {first.folder}, with its seed; train it with another --seed")
    for subject, slices in run.slices().items():
        if first.slices().get(subject, slices) != slices:
            raise InputError(
                f"{run.folder}: its subject {subject} has other slices than that of {first.folder}; give different "
                "people different names, and each preparation a row of its own"
            )


def _made_from(config: Config) -> tuple[Any, ...]:
    """What makes runs of one row and with one set of test subjects different."""
    paths = config.data, config.split_file, config.optimization.init
    return config.machine.seed, *(path and path.resolve() for path in paths)


def _whole_seeds(runs: Sequence[_Run]) -> tuple[dict[int | None, list[_Run]], list[int]]:
    """Seed -> its runs, of the seeds that test all subjects, and the other seeds.

    All runs are of one seed (None) where some seeds are not known, and where none tests all subjects.
    """
    of_seed: dict[int | None, list[_Run]] = {}
    for run in runs:
        of_seed.setdefault(run.seed, []).append(run)
    tested = {seed: frozenset().union(*(run.subjects() for run in of_one)) for seed, of_one in of_seed.items()}
    subjects = frozenset().union(*tested.values())
    whole = {seed: of_one for seed, of_one in of_seed.items() if tested[seed] == subjects}
    if None in of_seed or not whole:
        return {None: list(runs)}, []
    return whole, sorted(of_seed.keys() - whole.keys())


def merged_groups(parts: Sequence[dict[str, str]]) -> dict[str, str]:
    """Subject -> group, of several places together. A group that is called as the subject gives way to another.

    Raises InputError where two places differ.
    """
    groups: dict[str, str] = {}
    for subject, group in (pair for part in parts for pair in part.items()):
        before = groups.get(subject, subject)
        if before == subject:
            groups[subject] = group
        elif group not in (before, subject):
            raise InputError(
                f"subject {subject}: is of group {before!r} in one place, {group!r} in another; correct one"
            )
    return groups


def _read_run(folder: Path) -> _Run:
    """config.json where it is, test.json, the scores in test.csv, and log.csv."""
    evaluated = (folder / "evaluation.json").exists()
    for name in ("test.json", "test.csv", *(() if evaluated else ("log.csv",))):
        if not (folder / name).exists():
            raise InputError(f"{folder}: not a finished run of main.py or evaluate.py; it has no {name}")
    rows = read_table(folder / "test.csv", SCORES)
    _check_rows(rows, folder / "test.csv")
    config = read_run(folder / "config.json")
    log = read_table(folder / "log.csv", LOG) if (folder / "log.csv").exists() else []
    return _Run(folder, config, read_summary(folder / "test.json"), rows, log, _values(rows))


def _check_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Each subject has a row for each class and region, once."""
    pairs = {(row["subject"], row["class"]) for row in rows}
    subjects, labels = {subject for subject, _ in pairs}, {label for _, label in pairs}
    if not rows:
        raise InputError(f"{path}: has no rows; {REMEDY}")
    if not len(rows) == len(pairs) == len(subjects) * len(labels):
        raise InputError(f"{path}: must have one row for each subject and class; {REMEDY}")
    for key, metric in METRICS.items():
        most = math.inf if metric.lower_is_better else 1.0
        wrong = [row[key] for row in rows if key in row and not (math.isnan(row[key]) or 0 <= row[key] <= most)]
        if wrong:
            raise InputError(f"{path}: {key} cannot be {wrong[0]}; {REMEDY}")


def read_summary(path: Path) -> dict[str, Any]:
    """A run's test.json. Raises InputError where it is none; costs are null only in a folder of evaluate.py."""
    summary = read_json(path)
    evaluated = (path.parent / "evaluation.json").exists()
    kinds = (int, float, type(None)) if evaluated else (int, float)
    for name in COST:
        if not isinstance(summary, dict) or name not in summary or type(summary[name]) not in kinds:
            raise InputError(f"{path}: gives no number for {name}; {REMEDY}")
    for name in ("slices", "environment"):
        if not isinstance(summary.get(name, {}), dict):
            raise InputError(f"{path}: {name} must be an object; {REMEDY}")
    tolerances = summary.get("tolerances_mm", {})
    if not isinstance(tolerances, dict) or any(type(value) not in (int, float) for value in tolerances.values()):
        raise InputError(f"{path}: tolerances_mm must be numbers; {REMEDY}")
    check_finite_json(summary, path)
    return summary


def check_finite_json(value: Any, path: Path) -> None:
    """Raises InputError for Infinity and NaN, which Python reads, but JSON does not know."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise InputError(f"{path}: holds Infinity or NaN, which are no JSON; {REMEDY}") from None


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A run's log.csv or test.csv: texts, booleans, and numbers, NaN where a cell is empty.

    Raises InputError for a column that is not there, and for a cell of another kind.
    """
    rows = read_csv(path)
    for name in needed:
        if rows and name not in rows[0]:
            raise InputError(f"{path}: has no column {name}; {REMEDY}")
    try:
        return [{key: cell if key in TEXTS else _value(cell) for key, cell in row.items()} for row in rows]
    except ValueError as error:
        raise InputError(f"{path}: {error}; {REMEDY}") from None


def _value(cell: str) -> float | bool:
    if cell in ("True", "False"):
        return cell == "True"
    value = float(cell or "nan")
    if math.isinf(value):
        raise ValueError(f"a cell is {cell}")
    return value


def _values(rows: Sequence[dict[str, Any]]) -> Values:
    """The values of a run, in the metrics' units."""
    values: Values = {}
    of_subjects: dict[str, list[dict[str, Any]]] = {}
    keys = [key for key in METRICS if key in rows[0]]
    for row in rows:
        for key in keys:
            values.setdefault((row["class"], key), {})[row["subject"]] = METRICS[key].scale * row[key]
        if not row.get("region", False):
            of_subjects.setdefault(row["subject"], []).append(row)
    for subject, of_subject in of_subjects.items():
        for key in keys:
            mean = mean_std(row[key] for row in of_subject)["mean"]
            values.setdefault((MEAN, key), {})[subject] = METRICS[key].scale * mean
    return values


def _mean_values(parts: Sequence[Values]) -> Values:
    """Of each subject, the mean over the parts that know it."""
    known: dict[Column, dict[str, list[float]]] = {}
    for part in parts:
        for column, of_column in part.items():
            for subject, value in of_column.items():
                known.setdefault(column, {}).setdefault(subject, []).append(value)
    return {
        column: {subject: mean_std(values)["mean"] for subject, values in of_column.items()}
        for column, of_column in known.items()
    }  # fmt: skip


def _curve(log: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    hours = np.cumsum([epoch["seconds"] for epoch in log]) / 3600
    return hours, METRICS["dsc"].scale * np.array([epoch["val_dsc"] for epoch in log])
