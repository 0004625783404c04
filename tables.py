"""Tables of results: rows of runs, ours beside the paper's, with tests and intervals, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from metrics import summarize
from utils import InputError, duration, read_csv

PAPER = json.loads((Path(__file__).resolve().parent / "paper_tables.json").read_text())
PROPOSED = "MS-Dual-Guided"
MEAN = "mean"  # over the classes of a subject
METRICS = {"DSC": ("dsc", 100), "VS": ("vs", 100), "MSD": ("msd", 1), "HD95": ("hd95", 1)}
LOWER_IS_BETTER = ("MSD", "HD95")
RESAMPLES = 10_000
# Classes that BraTS and the Decathlon call otherwise. The paper's three do not overlap, so its "TC" is the rest.
IN_THE_PAPER = {
    "edema": "oedema",
    "enhancing tumour": "enhancing",
    "enhancing tumor": "enhancing",
    "necrotic and non-enhancing": "TC",
    "non-enhancing tumor": "TC",
    "non-enhancing tumour": "TC",
}

Column = tuple[str, str]  # class or MEAN, metric


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
    summaries, rows, curves = [], [], []
    for folder in folders:
        try:
            summaries.append(json.loads((folder / "test.json").read_text()))
            rows += read_csv(folder / "test.csv")
            log = read_csv(folder / "log.csv")
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"{folder}: not a finished run of main.py ({error})") from None
        seconds, dice = ([float(epoch[key]) for epoch in log] for key in ("seconds", "val_dsc"))
        curves.append((np.cumsum(seconds) / 3600, 100 * np.array(dice)))
    keys = [key for key, _ in METRICS.values()]
    scores = [{"subject": r["subject"], "class": r["class"]} | {k: float(r[k]) for k in keys} for r in rows]
    values: dict[Column, dict[str, float]] = {}
    for subject in dict.fromkeys(row["subject"] for row in scores):
        summary = summarize([row for row in scores if row["subject"] == subject])
        for label, statistics in (*summary["per_class"].items(), (MEAN, summary["overall"])):
            for metric, (key, scale) in METRICS.items():
                values.setdefault((label, metric), {})[subject] = scale * statistics[key]["mean"]
    return Result(
        name,
        values,
        list(dict.fromkeys(row["class"] for row in scores)),
        max(summary["parameters"] for summary in summaries),
        max(summary["epochs"] for summary in summaries),
        float(np.mean([summary["seconds"] for summary in summaries])),
        max(summary["memory_gib"] for summary in summaries),
        len(folders),
        curves,
    )


# ---------------------------------------------------------------- statistics


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), from 10,000 resamples of a fixed seed; NaN for n < 2."""
    values = np.asarray(values, float)
    if values.size < 2:
        return math.nan, math.nan
    means = np.random.default_rng(0).choice(values, (RESAMPLES, values.size)).mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_differences(values: dict[str, float], reference: dict[str, float]) -> np.ndarray:
    """values - reference, (n,), over the subjects that have both."""
    pairs = [(values[subject], reference[subject]) for subject in values if subject in reference]
    differences = np.array([a - b for a, b in pairs])
    return differences[np.isfinite(differences)]


def wilcoxon(differences: np.ndarray) -> float:
    """p of the two-sided Wilcoxon signed-rank test; exact for few pairs without ties. NaN without pairs, 1 if all 0."""
    if not differences.size:
        return math.nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of several p; NaN stay NaN and do not count."""
    p = np.asarray(p_values, float)
    adjusted, running, tests = np.full(p.size, math.nan), 0.0, int(np.isfinite(p).sum())
    for rank, k in enumerate(np.argsort(p)[:tests]):
        running = max(running, min(1.0, (tests - rank) * p[k]))
        adjusted[k] = running
    return adjusted.tolist()


class Comparison(NamedTuple):
    """A row against the reference row, in one column."""

    n: int
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float


def compare(results: Sequence[Result], reference: Result, column: Column) -> dict[str, Comparison]:
    """Paired tests of all other rows against `reference`, corrected over these rows."""
    others = [result for result in results if result is not reference]
    pairs = [paired_differences(result.values[column], reference.values[column]) for result in others]
    p = [wilcoxon(differences) for differences in pairs]
    return {
        result.name: Comparison(
            differences.size,
            float(differences.mean()) if differences.size else math.nan,
            bootstrap_interval(differences),
            raw,
            corrected,
        )
        for result, differences, raw, corrected in zip(others, pairs, p, holm(p), strict=True)
    }


# ---------------------------------------------------------------- one table


class Table:
    """Results under the columns of a table, each beside the paper's value where it has one.

    `name` is a table of the paper, or any title. `columns` are the metrics of the paper's table, for the classes that
    there are where it has classes. The reference of the tests is the paper's own network, under another title the last.
    """

    def __init__(self, name: str, results: Sequence[Result]) -> None:
        self.name, self.results = name, list(results)
        printed = PAPER["tables"].get(name, {"rows": {}})
        self.caption = printed.get("caption", name)
        self.paper = printed["rows"]
        self.columns = self._columns()
        names = [result.name for result in results]
        self.reference = self.results[names.index(PROPOSED) if self.paper and PROPOSED in names else -1]
        self.comparisons = {
            column: compare(self.results, self.reference, column) for column in self.columns if column[0] == MEAN
        }
        self.best = {column: self._best(column) for column in self.columns}

    def _columns(self) -> list[Column]:
        if not self.paper:
            return [(MEAN, metric) for metric in METRICS]
        printed = list(dict.fromkeys((c, m) for row in self.paper.values() for c, ms in row.items() for m in ms))
        metrics = list(dict.fromkeys(metric for _, metric in printed))
        by_class = any(label != MEAN for label, _ in printed)
        labels = [*self.results[0].classes, MEAN] if by_class else [MEAN]
        return [(label, metric) for metric in metrics for label in labels]

    def statistics(self, result: Result, column: Column) -> tuple[float, float, int]:
        """Mean, sample standard deviation and number of the test subjects with a value."""
        values = np.array(list(result.values.get(column, {}).values()))
        values = values[np.isfinite(values)]
        mean = float(values.mean()) if values.size else math.nan
        return mean, float(values.std(ddof=1)) if values.size > 1 else math.nan, values.size

    def printed(self, row: str, column: Column) -> tuple[float, float] | None:
        """The paper's mean and standard deviation."""
        label = IN_THE_PAPER.get(column[0], column[0])
        values = self.paper.get(row, {}).get(label, {}).get(column[1])
        return values and (values[0], values[1])

    def _best(self, column: Column) -> set[str]:
        """The rows with the best mean, to the two decimals that are shown."""
        means = {result.name: round(self.statistics(result, column)[0], 2) for result in self.results}
        known = [mean for mean in means.values() if math.isfinite(mean)]
        best = known and (min if column[1] in LOWER_IS_BETTER else max)(known)
        return {name for name, mean in means.items() if mean == best}

    def footnotes(self) -> list[tuple[str | None, Column | None, str]]:
        """Of the rows and columns that are shown: row (None: the whole table), column, text."""
        names = {result.name for result in self.results}
        notes = []
        for note in PAPER["footnotes"]:
            row, column = note.get("row"), (note.get("class"), note.get("metric"))
            if note["table"] == self.name and (row is None or (row in names and column in self.columns)):
                notes.append((row, column if row else None, note["note"]))
        return notes

    def mark(self, row: str, column: Column) -> str:
        """The number of the footnote of a cell, or nothing."""
        places = [(name, place) for name, place, _ in self.footnotes()]
        return str(places.index((row, column)) + 1) if (row, column) in places else ""

    def rows(self) -> list[dict[str, Any]]:
        """All numbers, a dictionary for each row and column: what the CSV holds."""
        rows = []
        for result in self.results:
            for column in self.columns:
                mean, std, n = self.statistics(result, column)
                low, high = bootstrap_interval([v for v in result.values[column].values() if math.isfinite(v)])
                row = {"row": result.name, "class": column[0], "metric": column[1], "mean": mean, "std": std, "n": n}
                row |= {"ci95_low": low, "ci95_high": high}
                if printed := self.printed(result.name, column):
                    row |= {"paper_mean": printed[0], "paper_std": printed[1], "difference": mean - printed[0]}
                if test := self.comparisons.get(column, {}).get(result.name):
                    row |= {"against": self.reference.name, "pairs": test.n, "paired_difference": test.difference}
                    row |= {"p_wilcoxon": test.p, "p_holm": test.p_holm}
                cost = {"parameters": result.parameters, "epochs": result.epochs, "runs": result.runs}
                rows.append(row | cost | {"seconds": result.seconds, "memory_gib": result.memory})
        return rows


# ---------------------------------------------------------------- text


def markdown(table: Table) -> str:
    """The table, the tests and the footnotes as Markdown."""
    titles = [f"{label} {_title(metric)}" for label, metric in table.columns]
    header = ["row", *titles, "subjects", "parameters", "time", "peak memory"]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for result in table.results:
        cells = []
        for column in table.columns:
            mean, std, n = table.statistics(result, column)
            ours = f"**{_number(mean, std)}**" if result.name in table.best[column] else _number(mean, std)
            if n < len(result.values[column]):
                ours += f" (n = {n})"
            if printed := table.printed(result.name, column):
                mark = table.mark(result.name, column)
                ours += f"<br>{_number(*printed)}{f' [{mark}]' if mark else ''}<br>{_difference(mean - printed[0])}"
            cells.append(ours)
        n = len(result.values[table.columns[0]])
        cost = [f"{result.parameters:,}", duration(result.seconds), f"{result.memory:.1f} GiB"]
        lines.append(_line([result.name, *cells, str(n), *cost]))
    text = f"## {_heading(table)}\n\n" + "\n".join(lines) + "\n\n" + _explanation(table) + "\n"
    if table.comparisons and len(table.results) > 1:
        text += f"\nPaired tests against {table.reference.name}, means over classes:\n\n" + _tests(table)
    if notes := [f"{k}. {text}" for k, (_, _, text) in enumerate(table.footnotes(), 1)]:
        text += "\nFootnotes on the paper's values:\n\n" + "\n".join(notes) + "\n"
    return text


def plain(table: Table) -> str:
    """The means over classes for a terminal: ours, and the paper's mean in brackets."""
    columns = [column for column in table.columns if column[0] == MEAN]
    lines = [["row", *(_title(metric) for _, metric in columns)]]
    for result in table.results:
        cells = []
        for column in columns:
            printed = table.printed(result.name, column)
            ours = _number(*table.statistics(result, column)[:2])
            cells.append(f"{ours} ({printed[0]:.2f})" if printed else ours)
        lines.append([result.name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
        for name, *cells in lines
    ]
    return "\n".join([_heading(table), "", *text])


def _tests(table: Table) -> str:
    header = ["row", "metric", "mean [95 % CI]", "pairs", "difference [95 % CI]", "p (Wilcoxon)", "p (Holm)"]
    lines = [_line(header), _line(["---", "---", *["---:"] * 5])]
    for column, tests in table.comparisons.items():
        for result in table.results:
            values = [v for v in result.values[column].values() if math.isfinite(v)]
            mean = table.statistics(result, column)[0]
            cells = [result.name, column[1], f"{_number(mean, math.nan)} {_interval(bootstrap_interval(values))}"]
            if test := tests.get(result.name):
                cells += [str(test.n), f"{_difference(test.difference)} {_interval(test.interval)}"]
                cells += [_p(test.p), _p(test.p_holm)]
            lines.append(_line(cells + [""] * (7 - len(cells))))
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table as LaTeX, for the package booktabs: ours in one line, the paper's below it."""
    titles = [_escape(f"{label} {_title(metric)}") for label, metric in table.columns]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(_heading(table))}. {_escape(_explanation(table))}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(titles)}rr}}",
        r"\toprule",
        " & ".join(["", "", *titles, r"\#", "parameters"]) + r" \\",
        r"\midrule",
    ]
    for result in table.results:
        cells = []
        for column in table.columns:
            mean, std, _ = table.statistics(result, column)
            number = _number(mean, std).replace("±", r"$\pm$")
            cells.append(rf"\textbf{{{number}}}" if result.name in table.best[column] else number)
        n = len(result.values[table.columns[0]])
        lines.append(" & ".join([_escape(result.name), "ours", *cells, str(n), f"{result.parameters:,}"]) + r" \\")
        if result.name in table.paper:
            cells = []
            for column in table.columns:
                printed, mark = table.printed(result.name, column), table.mark(result.name, column)
                number = _number(*printed).replace("±", r"$\pm$") if printed else "--"
                cells.append(number + (rf"\textsuperscript{{{mark}}}" if mark else ""))
            lines.append(" & ".join(["", "paper", *cells, "", ""]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {k}. {_escape(text)}" for k, (_, _, text) in enumerate(table.footnotes(), 1)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def parameters_table(ours: dict[str, int]) -> list[dict[str, Any]]:
    """Table VIII: row, ours, the paper's, difference, and the note that explains it."""
    notes = {note["row"]: note["note"] for note in PAPER["footnotes"] if note["table"] == "VIII"}
    return [
        {"row": row, "parameters": ours[row], "paper": paper, "difference": ours[row] - paper,
         "note": notes.get(row, "")}
        for row, paper in PAPER["parameters"].items() if row in ours
    ]  # fmt: skip


def parameters_markdown(rows: list[dict[str, Any]]) -> str:
    """Table VIII as Markdown."""
    lines = [_line(["row", "parameters", "paper", "difference", "note"]), _line(["---", *["---:"] * 3, "---"])]
    for row in rows:
        numbers = [f"{row[key]:,}" for key in ("parameters", "paper", "difference")]
        lines.append(_line([row["row"], *numbers, row["note"]]))
    return "## Table VIII: parameters, one channel, five classes\n\n" + "\n".join(lines) + "\n"


def parameters_latex(rows: list[dict[str, Any]]) -> str:
    """Table VIII as LaTeX, for the package booktabs."""
    lines = [r"\begin{tabular}{lrrr}", r"\toprule", r"row & parameters & paper & difference \\", r"\midrule"]
    lines += [f"{_escape(r['row'])} & {r['parameters']:,} & {r['paper']:,} & {r['difference']:,} " r"\\" for r in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _heading(table: Table) -> str:
    return f"Table {table.name}: {table.caption}" if table.paper else table.name


def _explanation(table: Table) -> str:
    text = "Mean ± standard deviation over test subjects in 3D; distances in voxels, without classes that were missed. "
    if table.paper:
        text += "In each cell: ours, the paper's, the difference. "
    epochs, runs = ({getattr(result, name) for result in table.results} for name in ("epochs", "runs"))
    return text + f"Epochs: {' or '.join(map(str, sorted(epochs)))}; folds: {' or '.join(map(str, sorted(runs)))}."


def _title(metric: str) -> str:
    return f"{metric} %" if METRICS[metric][1] == 100 else metric


def _number(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "n/a"
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def _difference(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.2f}"


def _interval(interval: tuple[float, float]) -> str:
    return "" if math.isnan(interval[0]) else f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _p(p: float) -> str:
    return "n/a" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    for character in "&%#_$":
        text = text.replace(character, f"\\{character}")
    return re.sub(r"\bn/a\b", "--", text.replace("±", r"$\pm$"))
