"""A table as Markdown, as LaTeX, and for a terminal."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from experiments.results import MEAN, Column, Result
from experiments.tables import PAPER, Table
from utils import aligned_columns, duration, printable


def markdown(table: Table) -> str:
    """The table, the tests and the footnotes as Markdown: a block for the means, and one for each metric of classes."""
    cells = ["In each cell: ours, the paper's, the difference."] if table.paper else []
    parts = [f"## {_heading(table)}", *map(_text, [*_notes(table), *cells])]
    for number, (title, columns) in enumerate(_blocks(table)):
        parts += [f"### {title}", _values(table, columns, costs=number == 0)]
        if len(table.results) > 1:
            parts.append(_tests(table, columns))
    if table.missing:
        parts += ["### Missed / spurious, over all runs", _counts(table)]
    if notes := [f"{k}. {text}" for k, (_, _, text) in enumerate(table.footnotes(), 1)]:
        parts += ["Footnotes on the paper's values:", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def _notes(table: Table) -> list[str]:
    """What the numbers are, and which rows are tested against which."""
    notes = [table.note]
    if len(table.results) > 1:
        notes.append(f"Paired tests are against {table.reference.name}.")
    if table.disjoint:
        names = ", ".join(table.disjoint)
        notes.append(f"Not tested, because they share no test subject with {table.reference.name}: {names}.")
    return notes


def _blocks(table: Table) -> list[tuple[str, list[Column]]]:
    """Titles, and the columns below them: classes are too many for all metrics side by side."""
    means = [column for column in table.columns if column[0] is MEAN]
    if means == table.columns:
        return [("Means over classes", means)]
    blocks = []
    for metric in table.metrics:
        columns = [column for column in table.columns if column[1] == metric.key]
        blocks.append((metric.title, columns if table.paper else columns[:-1]))
    return blocks if table.paper else [("Means over classes", means), *blocks]


def _values(table: Table, columns: Sequence[Column], costs: bool) -> str:
    """Means and deviations of all rows, beside the paper's, and what the rows cost."""
    header = ["row", *(_text(table.header(column)) for column in columns)]
    if costs:
        header += ["subjects", "parameters", "time", "peak memory"]
    lines = []
    for result in table.results:
        cells = [_cell(table, result, column) for column in columns]
        if costs:
            cells += [str(len(result.values[columns[0]])), *_costs(result)]
        lines.append([_text(result.name), *cells])
    return _table(header, lines)


def _cell(table: Table, result: Result, column: Column) -> str:
    numbers = table.statistics(result, column)
    cell = _number(*numbers[:2], numbers.seed_std)
    if result.name in table.best[column]:
        cell = f"**{cell}**"
    cell += _of(table, result, column)
    if printed := table.printed(result.name, column):
        mark = table.mark(result.name, column)
        footnote = f" [{mark}]" if mark else ""
        cell += f"<br>{_number(*printed)}{footnote}<br>{_difference(numbers.mean - printed[0])}"
    return cell


def _of(table: Table, result: Result, column: Column) -> str:
    """How many subjects a cell is of, where some have no value."""
    count = table.statistics(result, column).n
    return f" (n = {count})" if count < len(result.values[column]) else ""


def _costs(result: Result) -> list[str]:
    """Parameters, time and memory; an empty text for what is not known."""
    parameters = "" if result.parameters is None else f"{result.parameters:,}"
    seconds = "" if result.seconds is None else duration(result.seconds)
    return [parameters, seconds, "" if result.memory is None else f"{result.memory:.1f} GiB"]


def _tests(table: Table, columns: Sequence[Column]) -> str:
    header = ["row", "column", "mean [95 % CI]", "pairs", "difference [95 % CI]", "p (Wilcoxon)", "p (Holm)"]
    lines = []
    for column in columns:
        for result in table.results:
            mean, interval = table.statistics(result, column).mean, _interval(table.interval(result, column))
            cells = [_text(result.name), _text(table.header(column)), f"{_number(mean)} {interval}"]
            if test := table.comparisons[column].get(result.name):
                pairs = f"{test.pairs}" if test.pairs == test.subjects else f"{test.pairs} ({test.subjects} subjects)"
                cells += [pairs, f"{_difference(test.difference)} {_interval(test.interval)}"]
                cells += [_p(test.p), _p(test.p_holm)]
            lines.append(cells + [""] * (len(header) - len(cells)))
    return _table(header, lines)


def _counts(table: Table) -> str:
    """How often each class and region was missed and spurious."""
    labels = table.labels[:-1] or [MEAN]
    counts = [[table.counts(result, label) for label in labels] for result in table.results]
    lines = [
        [_text(result.name), *(f"{missed} / {spurious}" for missed, spurious in of_row)]
        for result, of_row in zip(table.results, counts, strict=True)
    ]
    return _table(["row", *(_text("all classes" if label is MEAN else label) for label in labels)], lines)


def plain(table: Table) -> str:
    """The means over classes for a terminal, overlaps and distances apart: ours, and the paper's mean in []."""
    lines = [_heading(table)]
    for overlaps in (True, False):
        metrics = [metric for metric in table.metrics if (metric.unit == "%") == overlaps]
        rows = [["row", *(metric.title for metric in metrics)]]
        for result in table.results:
            cells = []
            for column in ((MEAN, metric.key) for metric in metrics):
                printed = table.printed(result.name, column)
                mean, std, _, seed_std = table.statistics(result, column)
                ours = _number(mean, std, seed_std)
                cells.append(f"{ours} [{printed[0]:.2f}]" if printed else ours)
            rows.append([result.name, *cells])
        if metrics:
            lines += ["", *aligned_columns(rows)]
    notes = [*_notes(table), *(["The paper's means are in square brackets."] if table.paper else [])]
    return "\n".join([*lines, "", *(line for note in notes for line in textwrap.wrap(note, 100))])


def latex(table: Table) -> str:
    """The table as LaTeX, for the package booktabs, a block each: ours in one line, the paper's below it."""
    blocks = _blocks(table)
    footnotes = [rf"\par\footnotesize {k}. {_escape(text)}" for k, (_, _, text) in enumerate(table.footnotes(), 1)]
    return "\n".join(_latex_block(table, title, columns, footnotes) for title, columns in blocks)


def _latex_block(table: Table, title: str, columns: Sequence[Column], footnotes: Sequence[str]) -> str:
    paper, several = bool(table.paper), len(_blocks(table)) > 1
    heading = f"{_heading(table)}: {title}" if several else _heading(table)
    titles = [_escape(table.header(column)) for column in columns]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(heading)}. {_escape(table.note)}}}",
        rf"\begin{{tabular}}{{{'ll' if paper else 'l'}{'r' * len(titles)}rr}}",
        r"\toprule",
        " & ".join([*([""] * (2 if paper else 1)), *titles, r"\#", "parameters"]) + r" \\",
        r"\midrule",
    ]
    for result in table.results:
        cells = []
        for column in columns:
            numbers = table.statistics(result, column)
            number = _number(*numbers[:2], numbers.seed_std).replace("±", r"$\pm$")
            cells.append(
                (rf"\textbf{{{number}}}" if result.name in table.best[column] else number) + _of(table, result, column)
            )
        cells += [str(len(result.values[columns[0]])), _costs(result)[0]]
        lines.append(" & ".join([_escape(result.name), *(["ours"] if paper else []), *cells]) + r" \\")
        if result.name in table.paper:
            lines.append(" & ".join(["", "paper", *_latex_paper(table, result.name, columns), "", ""]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *footnotes, r"\end{table}"]) + "\n"


def _latex_paper(table: Table, row: str, columns: Sequence[Column]) -> list[str]:
    cells = []
    for column in columns:
        printed, mark = table.printed(row, column), table.mark(row, column)
        number = _number(*printed).replace("±", r"$\pm$") if printed else "--"
        cells.append(number + (rf"\textsuperscript{{{mark}}}" if mark else ""))
    return cells


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
    keys = ("parameters", "paper", "difference")
    lines = [[row["row"], *(f"{row[key]:,}" for key in keys), row["note"]] for row in rows]
    return "## Table VIII: parameters, one channel, five classes\n\n" + _table(["row", *keys, "note"], lines) + "\n"


def parameters_latex(rows: list[dict[str, Any]]) -> str:
    """Table VIII as LaTeX, for the package booktabs."""
    lines = [r"\begin{tabular}{lrrr}", r"\toprule", r"row & parameters & paper & difference \\", r"\midrule"]
    lines += [f"{_escape(r['row'])} & {r['parameters']:,} & {r['paper']:,} & {r['difference']:,} " r"\\" for r in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _heading(table: Table) -> str:
    return f"Table {table.name}: {table.caption}" if table.paper else table.name


def _number(mean: float, std: float = math.nan, seed_std: float = math.nan) -> str:
    if math.isnan(mean):
        return "n/a"
    text = f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"
    return text if math.isnan(seed_std) else f"{text} (± {seed_std:.2f})"


def _difference(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.2f}"


def _interval(interval: tuple[float, float]) -> str:
    return "" if math.isnan(interval[0]) else f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells as a table of Markdown: texts flush left, numbers flush right."""
    rule = ["---" if title in ("row", "column", "note") else "---:" for title in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


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
