"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.results import MEAN, Result, read_result
from experiments.tables import Table
from metrics import IN_VOXELS
from reporting.run_page import describe_metric, fill, read_tables
from reporting.viewer import finite
from utils import InputError, make_folder, printable, write_text


def read_results(folders: Sequence[Path]) -> Table:
    """The runs as a table of results, the first of them last, which is what the others are compared with."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same run is given twice")
    names = [printable(folder.resolve().name) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    results = [read_result(name, [folder]) for name, folder in zip(names, folders, strict=True)]
    for result, folder in zip(results, folders, strict=True):
        if result.classes != results[0].classes:
            raise InputError(f"{folder}: its classes are not those of {folders[0]}; compare runs on one data set")
    return Table("Comparison", [*results[1:], results[0]])


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write report.html, which compares finished runs, to the folder `out`; return its path."""
    table = read_results(folders)
    pages = [read_tables(folder) for folder in (*folders[1:], folders[0])]
    page = {
        "runs": [_describe_run(table, result, page) for result, page in zip(table.results, pages, strict=True)],
        "labels": [table.title(label) for label in labels(table)],
        "metrics": [describe_metric(metric) for metric in IN_VOXELS],
        "rows": [{key: finite(value) for key, value in row.items()} for row in table.rows()],
        "classes": _class_statistics(table),
        "reference": table.reference.name,
        "differences": _differences([page["config"] or {} for page in pages]),
    }
    make_folder(out)
    write_text(out / "report.html", fill("comparison.html", page))
    return out / "report.html"


def labels(table: Table) -> list[str | None]:
    """The classes, and the last, their mean."""
    return [*table.results[0].classes, MEAN]


def _describe_run(table: Table, result: Result, page: dict[str, Any]) -> dict[str, Any]:
    values = []
    for label in labels(table):
        of_metrics = {metric.name: result.values[label, metric.name] for metric in IN_VOXELS}
        values.append({name: {s: finite(value) for s, value in scores.items()} for name, scores in of_metrics.items()})
    return {
        "name": result.name,
        "log": page["log"],
        "parameters": result.parameters,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "values": values,
    }


def _class_statistics(table: Table) -> list[dict[str, Any]]:
    """Mean, deviation and number of subjects of each run, class and metric."""
    rows = []
    for result in table.results:
        for label in result.classes:
            for metric in IN_VOXELS:
                mean, std, n = table.statistics(result, (label, metric.name))
                row = {"row": result.name, "class": label, "metric": metric.name}
                rows.append(row | {"mean": finite(mean), "std": finite(std), "n": n})
    return rows


def _differences(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The hyperparameters in which the runs differ: name -> their values."""
    names = dict.fromkeys(name for config in configs for name in config if name not in ("out", "resume"))
    values = {name: [config.get(name) for config in configs] for name in names}
    return {name: of_runs for name, of_runs in values.items() if any(value != of_runs[0] for value in of_runs)}
