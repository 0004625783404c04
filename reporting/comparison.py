"""The page that compares several runs, or rows of runs: folds and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config import read_run
from experiments.given_rows import Row
from experiments.results import Column, Result, read_result
from experiments.tables import Table
from reporting.figures import Curve, mean_curve
from reporting.run_page import fill
from utils import make_folder, printable, write_text


def read_rows(rows: Sequence[Row], against: str | None = None) -> Table:
    """Rows of finished runs as a table, tested against the row of that name, or against the first."""
    return Table("Comparison", [read_result(row.name, row.folders) for row in rows], against)


def write_comparison(rows: Sequence[Row], out: Path, against: str | None = None) -> Path:
    """Write report.html, which compares rows of finished runs, to the folder `out`; return its path."""
    table = read_rows(rows, against)
    page = {
        "runs": [_describe_row(table, result, row) for result, row in zip(table.results, rows, strict=True)],
        "labels": [table.title(label) for label in table.labels],
        "metrics": [asdict(metric) for metric in table.metrics],
        "note": table.note,
        "reference": table.reference.name,
        "disjoint": table.disjoint,
        "missing": table.missing,
        "differences": _differences(rows),
    }
    make_folder(out)
    write_text(out / "report.html", fill("comparison.html", page))
    return out / "report.html"


def _describe_row(table: Table, result: Result, row: Row) -> dict[str, Any]:
    return {
        "name": result.name,
        "folders": [printable(str(folder)) for folder in row.folders],
        "cells": [[_cell(table, result, (label, metric.key)) for metric in table.metrics] for label in table.labels],
        "counts": [table.counts(result, label) for label in table.labels[:-1]],
        "runs": result.runs,
        "folds": result.folds,
        "seeds": result.seeds,
        "parameters": result.parameters,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "curves": [_describe_curve(curve) for curve in result.curves],
        "curve": _describe_curve(mean_curve(result.curves)) if result.curves else None,
    }


def _cell(table: Table, result: Result, column: Column) -> dict[str, Any]:
    """A row's statistics in a column, its test against the reference, and its values by subject."""
    low, high = table.interval(result, column)
    cell = table.statistics(result, column)._asdict() | {"low": low, "high": high}
    if test := table.comparisons[column].get(result.name):
        cell |= {"subjects": test.subjects, "pairs": test.pairs, "difference": test.difference}
        cell |= {"difference_low": test.interval[0], "difference_high": test.interval[1]}
        cell |= {"p": test.p, "p_holm": test.p_holm}
    return cell | {"best": result.name in table.best[column], "values": result.values[column]}


def _describe_curve(curve: Curve) -> dict[str, Any]:
    hours, dice = curve
    return {"hours": hours.tolist(), "dice": dice.tolist()}


def _differences(rows: Sequence[Row]) -> dict[str, list[str | None]]:
    """The hyperparameters in which rows differ: name -> the values of each row; None where they are not known."""
    known = [_configurations(row) for row in rows]
    names = dict.fromkeys(name for of_row in known for config in of_row for name in config)
    found = {}
    for name in names:
        if name in ("out", "resume"):
            continue
        texts = [", ".join(dict.fromkeys(str(config.get(name)) for config in of_row)) for of_row in known]
        if len({text for text in texts if text}) > 1:
            found[name] = [text or None for text in texts]
    return found


def _configurations(row: Row) -> list[dict[str, Any]]:
    """Those of a row's runs; none of predictions that were only scored."""
    configs = [read_run(folder / "config.json") for folder in row.folders]
    return [config.to_dict() for config in configs if config]
