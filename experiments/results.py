"""What finished runs have come to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metrics import IN_VOXELS, METRICS, summarize
from utils import InputError, read_csv

MEAN = "mean"  # over the classes of a subject

Column = tuple[str, str]  # class or MEAN, name of a metric


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
        hours = np.cumsum([float(epoch["seconds"]) for epoch in log]) / 3600
        dice = METRICS["dsc"].scale * np.array([float(epoch["val_dsc"]) for epoch in log])
        curves.append((hours, dice))
    return Result(
        name,
        _values(scores),
        list(dict.fromkeys(row["class"] for row in scores)),
        max(summary["parameters"] for summary in summaries),
        max(summary["epochs"] for summary in summaries),
        float(np.mean([summary["seconds"] for summary in summaries])),
        max(summary["memory_gib"] for summary in summaries),
        len(folders),
        curves,
    )


def _read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, str]]]:
    """test.json, the scores in test.csv, and log.csv."""
    try:
        summary = json.loads((folder / "test.json").read_text())
        rows = read_csv(folder / "test.csv")
        log = read_csv(folder / "log.csv")
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: not a finished run of main.py ({error})") from None
    scores = []
    for row in rows:
        values = {metric.key: float(row[metric.key]) for metric in IN_VOXELS}
        scores.append({"subject": row["subject"], "class": row["class"]} | values)
    return summary, scores, log


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
