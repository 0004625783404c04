"""Tables of results: rows of runs, ours beside the paper's, with tests and intervals."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.results import MEAN, Column, Result, merged_groups
from experiments.statistics import Comparison, compare, result_interval
from metrics import TOLERANCE_MM, Metric, mean_std, mean_title, metrics_in
from utils import InputError, OptionError, some

PAPER = json.loads((Path(__file__).resolve().parent / "paper_tables.json").read_text())
PAPER_MEAN = "mean"  # as paper_tables.json calls the mean over classes
PAPER_METRICS = {"dsc": "DSC", "vs": "VS", "msd": "MSD"}  # key -> as paper_tables.json calls it; MSD is in voxels
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
# Both policies on structures that one of truth and prediction lacks.
NOT_MISSING = "No structure was missed or spurious, so that the mean over those found and the worst case agree"
MISSING = "Where a structure was missed or spurious, DSC, VS and NSD are 0"
MISSING_DISTANCES = (
    "; distances are means over the structures that were found, and in the columns "
    '"worst case" means with the diagonal of the image for the others'
)


class Statistics(NamedTuple):
    """Of the values of a row in a column, each subject with its mean over folds and seeds."""

    mean: float
    std: float
    """Sample standard deviation over subjects; NaN for n < 2."""
    n: int
    """Subjects with a value."""
    seed_std: float
    """Sample standard deviation over seeds of the mean over subjects; NaN for fewer than two seeds."""


class Table:
    """Results under the columns of a table, each beside the paper's value where it has one.

    `name` is a table of the paper, or any title. Columns are all classes, regions, and the mean over classes, in a
    table of the paper its classes and metrics. `against` names the row that the others are tested against: by default
    the first, in a table of the paper its own network, else the last. `flags` of main.py were given to all rows that
    were trained for the table.
    Raises InputError for rows that cannot share a table.
    """

    def __init__(
        self, name: str, results: Sequence[Result], against: str | None = None, flags: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.flags = shlex.join(flags)
        groups = merged_groups([result.groups for result in results])
        self.results = [replace(result, groups=groups) for result in results]
        printed = PAPER["tables"].get(name, {"rows": {}})
        self.caption = printed.get("caption", name)
        self.paper = printed["rows"]
        self.in_mm = all(result.in_mm for result in results)
        self.missing = any(result.missing for result in results)
        self._check()
        self._flat = "pixels" if all(result.per_image for result in results) else "voxels"
        self.metrics = self._metrics()
        self.of_key = {metric.key: metric for metric in self.metrics}
        self.labels = self._labels()
        self.columns = [(label, metric.key) for metric in self.metrics for label in self.labels]
        self.reference = self._reference(against)
        subjects = self._subjects(self.reference)
        self.disjoint = [result.name for result in self.results if not self._subjects(result) & subjects]
        self.comparisons = {column: self._compare(column) for column in self.columns}
        self.best = {column: self._best(column) for column in self.columns}
        self._intervals: dict[tuple[str, Column], tuple[float, float]] = {}

    def _check(self) -> None:
        first = self.results[0]
        if len({result.name for result in self.results}) < len(self.results):
            raise InputError(f"{self.name}: two of its rows have the same name")
        for result in self.results[1:]:
            if (set(result.classes), set(result.regions)) != (set(first.classes), set(first.regions)):
                raise InputError(f"{result.name}: has other classes or regions than {first.name}; compare one data set")
            if self.in_mm and result.tolerances != first.tolerances:
                raise InputError(f"{result.name}: its NSD has other tolerances than that of {first.name}")

    def _metrics(self) -> list[Metric]:
        """Of one's own tables in mm where all rows know it; of the paper's in voxels, and in mm beside it."""
        if not self.paper:
            return metrics_in("mm" if self.in_mm else self._flat, self.missing)
        names = {name for row in self.paper.values() for values in row.values() for name in values}
        units = [self._flat, "mm"] if self.in_mm else [self._flat]
        known = {metric.key: metric for unit in units for metric in metrics_in(unit, self.missing)}
        of_paper = [key for key, name in PAPER_METRICS.items() if name in names]
        keys = [f"{key}{ending}" for key in of_paper for ending in ("", "_mm", "_worst", "_worst_mm")]
        return [known[key] for key in keys if key in known]

    def _labels(self) -> list[str | None]:
        """The classes and regions that columns are of, and the mean over classes."""
        if self.paper and all(row.keys() == {PAPER_MEAN} for row in self.paper.values()):
            return [MEAN]
        return [*self.results[0].labels, MEAN]

    def _reference(self, against: str | None) -> Result:
        names = [result.name for result in self.results]
        if against is None and self.paper:
            against = PROPOSED if PROPOSED in names else names[-1]
        if against is None:
            against = names[0]
        if against not in names:
            raise OptionError(f"against {against}: no row has this name; there are {', '.join(names)}")
        return self.results[names.index(against)]

    def _subjects(self, result: Result) -> set[str]:
        return set(result.values[MEAN, self.metrics[0].key])

    def _compare(self, column: Column) -> dict[str, Comparison]:
        tested = [result for result in self.results if result.name not in self.disjoint]
        return compare(tested, self.reference, column)

    def title(self, label: str | None) -> str:
        """What a class, a region, or the mean over classes is called."""
        return mean_title(self.results[0].labels) if label is MEAN else label

    def header(self, column: Column) -> str:
        """What a column is called: class, metric, unit."""
        return f"{self.title(column[0])} {self.of_key[column[1]].title}"

    def statistics(self, result: Result, column: Column) -> Statistics:
        """Mean, deviations and number of the test subjects with a value."""
        of_seeds = [mean_std(values[column].values())["mean"] for values in result.by_seed.values()]
        return Statistics(**mean_std(result.values[column].values()), seed_std=mean_std(of_seeds)["std"])

    def interval(self, result: Result, column: Column) -> tuple[float, float]:
        """The 95 % interval of a mean."""
        key = result.name, column
        if key not in self._intervals:
            self._intervals[key] = result_interval(result, column)
        return self._intervals[key]

    def counts(self, result: Result, label: str | None) -> tuple[int, int]:
        """How often a class or region was missed and spurious, over all runs; of the mean: all classes together."""
        labels = result.classes if label is MEAN else [label]
        return sum(result.missed[name] for name in labels), sum(result.spurious[name] for name in labels)

    @property
    def note(self) -> str:
        """What the numbers are, and which policy is printed on structures that were missed or spurious."""
        images = "test images in 2D" if self._flat == "pixels" else "test subjects in 3D"
        parts = [f"Mean ± standard deviation over {images}"]
        if any(len(result.seeds) > 1 for result in self.results):
            parts[0] += ", each with its mean over seeds; in brackets the standard deviation over seeds"
        parts += self._about_distances()
        if len({frozenset(self._subjects(result)) for result in self.results}) > 1:
            parts.append("Rows have different test subjects, so that their means are of different subjects")
        for result in self.results:
            if result.left_out:
                seeds = ", ".join(map(str, result.left_out))
                parts.append(f"{result.name} is without seed {seeds}, of which a test subject is missing")
        parts += self._about_runs()
        counts = {"epochs": {result.epochs for result in self.results}, "folds": {row.folds for row in self.results}}
        counts["seeds"] = {len(result.seeds) or None for result in self.results}
        for name, numbers in counts.items():
            if known := sorted(numbers - {None}):
                parts.append(f"{name.capitalize()}: {' or '.join(map(str, known))}")
        if self.flags:
            parts.append(f"Flags of all trained rows: {self.flags}")
        return ". ".join(parts) + "."

    def _about_runs(self) -> list[str]:
        """What makes rows less alike than they should be: other slices of a subject, other code."""
        slices: dict[str, set[str]] = {}
        for subject, fingerprint in (pair for result in self.results for pair in result.slices.items()):
            slices.setdefault(subject, set()).add(fingerprint)
        others = [subject for subject, fingerprints in slices.items() if len(fingerprints) > 1]
        parts = []
        if others:
            parts.append(
                f"Subjects {some(others)} have other slices in some rows than in others: they are other people, or "
                "prepared otherwise"
            )
        code = sorted(set().union(*(result.code for result in self.results)))
        if len(code) > 1:
            parts.append(f"Commits of the code: {', '.join(code)}")
        return parts

    def _about_distances(self) -> list[str]:
        """What missing structures count, and the units and tolerances of distances."""
        if all(metric.unit == "%" for metric in self.metrics) and self.paper:
            return [MISSING] if self.missing else []
        parts = [MISSING + MISSING_DISTANCES if self.missing else NOT_MISSING]
        if self.paper:
            return [*parts, "The paper's distances are in voxels"]
        if not self.in_mm:
            return [*parts, f"NSD with a tolerance of one {self._flat.removesuffix('s')}"]
        others = {name: mm for name, mm in self.results[0].tolerances.items() if mm != TOLERANCE_MM}
        of_others = ", ".join(f"{name}: {mm:g} mm" for name, mm in others.items())
        return [*parts, f"NSD with a tolerance of {TOLERANCE_MM:g} mm" + (f" ({of_others})" if others else "")]

    def printed(self, row: str, column: Column) -> tuple[float, float] | None:
        """The paper's mean and standard deviation."""
        label = self._in_the_paper(column[0])
        values = self.paper.get(row, {}).get(label, {}).get(PAPER_METRICS.get(column[1]))
        return values and (values[0], values[1])

    def _in_the_paper(self, label: str | None) -> str | None:
        """What the paper calls a class or the mean over classes; None for a region, and for a class called "mean"."""
        if label is MEAN:
            return PAPER_MEAN
        if label in self.results[0].regions or label == PAPER_MEAN:
            return None
        return IN_THE_PAPER.get(label, label)

    def _best(self, column: Column) -> set[str]:
        """The rows with the best mean, to the two decimals that are shown."""
        means = {result.name: round(self.statistics(result, column).mean, 2) for result in self.results}
        known = [mean for mean in means.values() if not math.isnan(mean)]
        if not known:
            return set()
        best = min(known) if self.of_key[column[1]].lower_is_better else max(known)
        return {name for name, mean in means.items() if mean == best}

    def footnotes(self) -> list[tuple[str | None, Column | None, str]]:
        """Of the rows and columns that are shown: row (None: the whole table), column, text."""
        names = {result.name for result in self.results}
        notes = []
        for note in PAPER["footnotes"]:
            keys = [key for key, name in PAPER_METRICS.items() if name == note.get("metric")]
            row = note.get("row")
            cells = [
                column
                for column in self.columns
                if (self._in_the_paper(column[0]), column[1]) == (note.get("class"), *keys)
            ]
            if note["table"] == self.name and (row is None or (row in names and cells)):
                notes.append((row, cells[0] if row else None, note["note"]))
        return notes

    def mark(self, row: str, column: Column) -> str:
        """The number of the footnote of a cell, or nothing."""
        marked = [(name, of_name) for name, of_name, _ in self.footnotes()]
        return str(marked.index((row, column)) + 1) if (row, column) in marked else ""

    def rows(self) -> list[dict[str, Any]]:
        """All numbers, a dictionary for each row and column: what the CSV holds."""
        return [self._cell(result, column) for result in self.results for column in self.columns]

    def _cell(self, result: Result, column: Column) -> dict[str, Any]:
        metric, numbers = self.of_key[column[1]], self.statistics(result, column)
        low, high = self.interval(result, column)
        missed, spurious = self.counts(result, column[0])
        cell = {"row": result.name, "class": self.title(column[0]), "metric": metric.name, "unit": metric.unit}
        cell |= {"mean": numbers.mean, "std": numbers.std, "std_over_seeds": numbers.seed_std, "n": numbers.n}
        cell |= {"missed": missed, "spurious": spurious, "ci95_low": low, "ci95_high": high}
        if printed := self.printed(result.name, column):
            cell |= {"paper_mean": printed[0], "paper_std": printed[1], "difference": numbers.mean - printed[0]}
        if test := self.comparisons[column].get(result.name):
            cell |= {"against": self.reference.name, "pairs": test.pairs, "paired_difference": test.difference}
            cell |= {"difference_low": test.interval[0], "difference_high": test.interval[1]}
            cell |= {"p_wilcoxon": test.p, "p_holm": test.p_holm}
        cell |= {"parameters": result.parameters, "epochs": result.epochs, "runs": result.runs}
        return cell | {"seconds": result.seconds, "memory_gib": result.memory}
