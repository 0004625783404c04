"""Tables of results: rows of runs, ours beside the paper's, with tests and intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results import MEAN, Column, Result
from experiments.statistics import bootstrap_interval, compare
from metrics import BY_NAME, IN_VOXELS, mean_title
from utils import InputError

PAPER = json.loads((Path(__file__).resolve().parent / "paper_tables.json").read_text())
PAPER_MEAN = "mean"  # as paper_tables.json calls the mean over classes
PROPOSED = "MS-Dual-Guided"
# Classes that BraTS and the Decathlon call otherwise. The paper's three do not overlap, so its "TC" is the rest.
IN_THE_PAPER = {
    "edema": "oedema",
    "enhancing tumour": "enhancing",
    "enhancing tumor": "enhancing",
    "necrotic and non-enhancing": "TC",
    "non-enhancing tumor": "TC",
    "non-enhancing tumour": "TC",
}


class Table:
    """Results under the columns of a table, each beside the paper's value where it has one.

    `name` is a table of the paper, or any title. `columns` are the metrics of the paper's table, for the classes that
    there are where it has classes. The reference of the tests is the paper's own network, under another title the last.
    """

    def __init__(self, name: str, results: Sequence[Result]) -> None:
        self.name, self.results = name, list(results)
        if len({result.name for result in results}) < len(results):
            raise InputError(f"{name}: two of its rows have the same name; give each run once")
        printed = PAPER["tables"].get(name, {"rows": {}})
        self.caption = printed.get("caption", name)
        self.paper = printed["rows"]
        self.columns = self._columns()
        names = [result.name for result in results]
        self.reference = self.results[names.index(PROPOSED) if self.paper and PROPOSED in names else -1]
        self.comparisons = {
            column: compare(self.results, self.reference, column) for column in self.columns if column[0] is MEAN
        }
        self.best = {column: self._best(column) for column in self.columns}

    def _columns(self) -> list[Column]:
        if not self.paper:
            return [(MEAN, metric.name) for metric in IN_VOXELS]
        labels = {label for row in self.paper.values() for label in row}
        metrics = list(dict.fromkeys(name for row in self.paper.values() for values in row.values() for name in values))
        by_class = labels != {PAPER_MEAN}
        labels = [*self.results[0].classes, MEAN] if by_class else [MEAN]
        return [(label, metric) for metric in metrics for label in labels]

    def title(self, label: str | None) -> str:
        """What a class, or the mean over them, is called."""
        return mean_title(self.results[0].classes) if label is MEAN else label

    def statistics(self, result: Result, column: Column) -> tuple[float, float, int]:
        """Mean, sample standard deviation and number of the test subjects with a value."""
        values = np.array(list(result.values.get(column, {}).values()))
        values = values[np.isfinite(values)]
        mean = float(values.mean()) if values.size else math.nan
        return mean, float(values.std(ddof=1)) if values.size > 1 else math.nan, values.size

    def printed(self, row: str, column: Column) -> tuple[float, float] | None:
        """The paper's mean and standard deviation."""
        label = PAPER_MEAN if column[0] is MEAN else IN_THE_PAPER.get(column[0], column[0])
        if label == PAPER_MEAN and column[0] is not MEAN:
            return None  # a class of that name
        values = self.paper.get(row, {}).get(label, {}).get(column[1])
        return values and (values[0], values[1])

    def _best(self, column: Column) -> set[str]:
        """The rows with the best mean, to the two decimals that are shown."""
        means = {result.name: round(self.statistics(result, column)[0], 2) for result in self.results}
        known = [mean for mean in means.values() if math.isfinite(mean)]
        if not known:
            return set()
        best = min(known) if BY_NAME[column[1]].lower_is_better else max(known)
        return {name for name, mean in means.items() if mean == best}

    def footnotes(self) -> list[tuple[str | None, Column | None, str]]:
        """Of the rows and columns that are shown: row (None: the whole table), column, text."""
        names = {result.name for result in self.results}
        notes = []
        for note in PAPER["footnotes"]:
            label = note.get("class")
            row, column = note.get("row"), (MEAN if label == PAPER_MEAN else label, note.get("metric"))
            if note["table"] == self.name and (row is None or (row in names and column in self.columns)):
                notes.append((row, column if row else None, note["note"]))
        return notes

    def mark(self, row: str, column: Column) -> str:
        """The number of the footnote of a cell, or nothing."""
        marked = [(name, of_name) for name, of_name, _ in self.footnotes()]
        return str(marked.index((row, column)) + 1) if (row, column) in marked else ""

    def rows(self) -> list[dict[str, Any]]:
        """All numbers, a dictionary for each row and column: what the CSV holds."""
        rows = []
        for result in self.results:
            for column in self.columns:
                mean, std, n = self.statistics(result, column)
                low, high = bootstrap_interval([v for v in result.values[column].values() if math.isfinite(v)])
                row = {"row": result.name, "class": self.title(column[0]), "metric": column[1]}
                row |= {"mean": mean, "std": std, "n": n, "ci95_low": low, "ci95_high": high}
                if printed := self.printed(result.name, column):
                    row |= {"paper_mean": printed[0], "paper_std": printed[1], "difference": mean - printed[0]}
                if test := self.comparisons.get(column, {}).get(result.name):
                    row |= {"against": self.reference.name, "pairs": test.n, "paired_difference": test.difference}
                    row |= {"p_wilcoxon": test.p, "p_holm": test.p_holm}
                cost = {"parameters": result.parameters, "epochs": result.epochs, "runs": result.runs}
                rows.append(row | cost | {"seconds": result.seconds, "memory_gib": result.memory})
        return rows
