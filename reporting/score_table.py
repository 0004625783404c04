"""Scores as a table for a terminal."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from metrics import SHOWN_WORST_CASE, Metric, mean_title, parts_of, shown_metrics
from utils import aligned_columns, counted


def format_heading(summary: dict[str, Any]) -> str:
    """What the numbers of `format_table` are."""
    number = summary["subjects"]
    units = counted(number, "image") if summary["per_image"] else f"{counted(number, 'subject')} in 3D"
    return f"{units}, mean ± std"


def format_table(summary: dict[str, Any], width: int = 80) -> str:
    """`summary` as text: a line per class, one of the means over classes, and one per region, in the metrics' units.

    The blocks are overlaps; distances with the number of subjects where the class was found, missed and spurious; and
    where a class was, distances in the worst case.
    """
    shown = shown_metrics(summary)
    overlaps = [metric for metric in shown if metric.unit == "%"]
    worst = [metric for metric in shown if metric.key.startswith(SHOWN_WORST_CASE)]
    distances = [metric for metric in shown if metric not in overlaps and metric not in worst]
    lines = _format_block(summary, overlaps, {"n": "dsc"}, width)
    lines += [
        "",
        *_format_block(summary, distances, {"found": "msd", "missed": "missed", "spurious": "spurious"}, width),
    ]
    if worst:
        lines += ["", *_format_block(summary, worst, {"n": worst[0].key}, width)]
        note = "Worst case: where truth or prediction lacks a class, its distance is the diagonal of the image."
        lines += textwrap.wrap(note, width)
    return "\n".join(lines)


def _format_block(summary: dict[str, Any], metrics: list[Metric], counts: dict[str, str], width: int) -> list[str]:
    """A table of metrics as lines. `counts` are columns before them: title -> key of what is counted."""
    rows = [["class", *counts, *(metric.title for metric in metrics)]]
    mean = {mean_title(parts_of(summary)): summary["overall"]}
    for name, statistics in (summary["per_class"] | mean | summary.get("per_region", {})).items():
        cells = [_format_count(statistics.get(key, "")) for key in counts.values()]
        rows.append([name, *cells, *(_format_cell(statistics[metric.key], metric.scale) for metric in metrics)])
    return _align(rows, width)


def _align(rows: list[list[str]], width: int) -> list[str]:
    """Rows of cells as lines of at most `width` columns, with a rule below the first; long names are shortened."""
    sizes = [max(map(len, column)) for column in zip(*(cells for _, *cells in rows), strict=True)]
    room = width - sum(sizes) - len(sizes)
    lines = aligned_columns([[_shorten(name, room), *cells] for name, *cells in rows], gap=" ")
    lines.insert(1, "-" * len(lines[0]))
    return [line.rstrip() for line in lines]


def _format_count(counted: dict[str, float] | int | str) -> str:
    """A number, or the n of a metric's statistics."""
    return str(counted["n"] if isinstance(counted, dict) else counted)


def _format_cell(statistics: dict[str, float], scale: float) -> str:
    mean, std = scale * statistics["mean"], scale * statistics["std"]
    left = "     -" if math.isnan(mean) else f"{mean:6.2f}"
    return left + (" " * 8 if math.isnan(std) else f" ± {std:5.2f}")


def _shorten(name: str, length: int) -> str:
    """`name` with its middle left out: names of structures differ at either end (left kidney, lung upper lobe)."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"
