"""A table as Markdown, as LaTeX, and for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from experiments.results import MEAN
from experiments.statistics import bootstrap_interval
from experiments.tables import PAPER, Table
from metrics import BY_NAME
from utils import aligned_columns, duration, printable


def markdown(table: Table) -> str:
    """The table, the tests and the footnotes as Markdown."""
    titles = [_text(f"{table.title(label)} {BY_NAME[metric].title}") for label, metric in table.columns]
    header = ["row", *titles, "subjects", "parameters", "time", "peak memory"]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for result in table.results:
        cells = []
        for column in table.columns:
            mean, std, n = table.statistics(result, column)
            cell = _number(mean, std)
            if result.name in table.best[column]:
                cell = f"**{cell}**"
            if n < len(result.values[column]):
                cell += f" (n = {n})"
            if printed := table.printed(result.name, column):
                mark = table.mark(result.name, column)
                footnote = f" [{mark}]" if mark else ""
                cell += f"<br>{_number(*printed)}{footnote}<br>{_difference(mean - printed[0])}"
            cells.append(cell)
        n = len(result.values[table.columns[0]])
        cost = [f"{result.parameters:,}", duration(result.seconds), f"{result.memory:.1f} GiB"]
        lines.append(_line([_text(result.name), *cells, str(n), *cost]))
    text = f"## {_heading(table)}\n\n" + "\n".join(lines) + "\n\n" + _explanation(table) + "\n"
    if table.comparisons and len(table.results) > 1:
        text += f"\nPaired tests against {_text(table.reference.name)}, means over classes:\n\n" + _tests(table)
    if notes := [f"{k}. {text}" for k, (_, _, text) in enumerate(table.footnotes(), 1)]:
        text += "\nFootnotes on the paper's values:\n\n" + "\n".join(notes) + "\n"
    return text


def plain(table: Table) -> str:
    """The means over classes for a terminal: ours, and the paper's mean in brackets."""
    columns = [column for column in table.columns if column[0] is MEAN]
    lines = [["row", *(BY_NAME[metric].title for _, metric in columns)]]
    for result in table.results:
        cells = []
        for column in columns:
            printed = table.printed(result.name, column)
            ours = _number(*table.statistics(result, column)[:2])
            cells.append(f"{ours} ({printed[0]:.2f})" if printed else ours)
        lines.append([result.name, *cells])
    return "\n".join([_heading(table), "", *aligned_columns(lines)])


def _tests(table: Table) -> str:
    header = ["row", "metric", "mean [95 % CI]", "pairs", "difference [95 % CI]", "p (Wilcoxon)", "p (Holm)"]
    lines = [_line(header), _line(["---", "---", *["---:"] * 5])]
    for column, tests in table.comparisons.items():
        for result in table.results:
            values = [v for v in result.values[column].values() if math.isfinite(v)]
            mean = table.statistics(result, column)[0]
            interval = _interval(bootstrap_interval(values))
            cells = [_text(result.name), column[1], f"{_number(mean, math.nan)} {interval}"]
            if test := tests.get(result.name):
                cells += [str(test.n), f"{_difference(test.difference)} {_interval(test.interval)}"]
                cells += [_p(test.p), _p(test.p_holm)]
            lines.append(_line(cells + [""] * (7 - len(cells))))
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table as LaTeX, for the package booktabs: ours in one line, the paper's below it."""
    titles = [_escape(f"{table.title(label)} {BY_NAME[metric].title}") for label, metric in table.columns]
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
    epochs = " or ".join(str(count) for count in sorted({result.epochs for result in table.results}))
    folds = " or ".join(str(count) for count in sorted({result.runs for result in table.results}))
    return f"{text}Epochs: {epochs}; folds: {folds}."


def _number(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "n/a"
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def _difference(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.2f}"


def _interval(interval: tuple[float, float]) -> str:
    return "" if math.isnan(interval[0]) else f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(name: str) -> str:
    """A name as Markdown shows it as it is, also in a cell of a table."""
    return re.sub(r"[\\`*\[\]<>|~$&#!]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(name))


LATEX = str.maketrans({
    **{sign: f"\\{sign}" for sign in "&%#_${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # which would be an option of the line break before it
    "*": "{*}",
    "±": r"$\pm$",
})  # fmt: skip


def _escape(text: str) -> str:
    """A text as LaTeX prints it as it is; signs of which it would join two to another stand apart."""
    return re.sub(r"([-,'])(?=[-,'])", r"\1{}", printable(text).translate(LATEX))
