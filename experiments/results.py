"""What finished runs have come to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metrics import IN_VOXELS, METRICS, summarize
from utils import InputError, printable, read_csv, read_json

MEAN = None  # over the classes of a subject; no class can be called so

Column = tuple[str | None, str]  # class or MEAN, name of a metric


COST = ("parameters", "epochs", "seconds", "memory_gib")
LOG = ("epoch", "val_dsc", "seconds")
TEXTS = ("subject", "class")
SCORES = (*TEXTS, *(metric.key for metric in IN_VOXELS))
REMEDY = "it was changed; bring the old one back, or let main.py --resume write it again"


class Result(NamedTuple):
    """A row: the scores of its runs on all folds, and what they cost."""

    name: str
    values: dict[Column, dict[str, float]]
    """Of each column, test subject -> value; the mean over folds where a subject is tested in several."""
    classes: list[str]
    parameters: int
    epochs: int
    seconds: float
    """Of training with validation, the mean over runs."""
    memory: float
    """Peak in GiB, the largest of the runs."""
    runs: int
    curves: list[tuple[np.ndarray, np.ndarray]]
    """Of each run, the hours of training up to the end of each epoch, and its validation Dice in %."""


def read_result(name: str, folders: Sequence[Path]) -> Result:
    """The result of a row's finished runs. Raises InputError where one of them is not finished."""
    summaries, scores, curves = [], [], []
    for folder in folders:
        summary, of_subjects, log = _read_run(folder)
        summaries.append(summary)
        scores += of_subjects
        hours = np.cumsum([epoch["seconds"] for epoch in log]) / 3600
        dice = METRICS["dsc"].scale * np.array([epoch["val_dsc"] for epoch in log])
        curves.append((hours, dice))
    return Result(
        printable(name),
        _values(scores),
        list(dict.fromkeys(row["class"] for row in scores)),
        max(summary["parameters"] for summary in summaries),
        max(summary["epochs"] for summary in summaries),
        float(np.mean([summary["seconds"] for summary in summaries])),
        max(summary["memory_gib"] for summary in summaries),
        len(folders),
        curves,
    )


def _read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """test.json, the scores in test.csv, and log.csv."""
    for name in ("test.json", "test.csv", "log.csv"):
        if not (folder / name).exists():
            raise InputError(f"{folder}: not a finished run of main.py; it has no {name}")
    rows = read_table(folder / "test.csv", SCORES)
    if not rows:
        raise InputError(f"{folder / 'test.csv'}: has no rows; {REMEDY}")
    scores = [{name: row[name] for name in SCORES} for row in rows]
    return read_summary(folder / "test.json"), scores, read_table(folder / "log.csv", LOG)


def read_summary(path: Path) -> dict[str, Any]:
    """A run's test.json. Raises InputError where it is none."""
    summary = read_json(path)
    for name in COST:
        if not isinstance(summary, dict) or type(summary.get(name)) not in (int, float):
            raise InputError(f"{path}: gives no number for {name}; {REMEDY}")
    check_finite_json(summary, path)
    return summary


def check_finite_json(value: Any, path: Path) -> None:
    """Raises InputError for Infinity and NaN, which Python reads, but JSON does not know."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise InputError(f"{path}: holds Infinity or NaN, which are no JSON; {REMEDY}") from None


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A run's log.csv or test.csv: texts of subject and class, booleans, and numbers, NaN where a cell is empty.

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


def _values(scores: list[dict[str, Any]]) -> dict[Column, dict[str, float]]:
    """Column -> test subject -> value in the metric's unit."""
    values: dict[Column, dict[str, float]] = {}
    for subject in dict.fromkeys(row["subject"] for row in scores):
        summary = summarize([row for row in scores if row["subject"] == subject])
        for label, statistics in (*summary["per_class"].items(), (MEAN, summary["overall"])):
            for metric in IN_VOXELS:
                mean = statistics[metric.key]["mean"]
                values.setdefault((label, metric.name), {})[subject] = metric.scale * mean
    return values
