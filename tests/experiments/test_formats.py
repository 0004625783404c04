"""Tables as Markdown, as LaTeX and for a terminal."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from experiments.formats import latex, markdown, plain
from experiments.tables import Table


def test_markdown_by_hand(results):
    text = markdown(Table("I", results))
    assert "**80.00 ± 13.23**<br>86.75 ± 5.05<br>-6.75" in text
    assert "| 73.33 ± 17.56<br>82.48 ± 6.06<br>-9.15 |" in text
    assert "**1.20 ± 0.13**<br>0.66 ± 0.27<br>+0.54" in text  # the smaller distance is the better one
    assert "| 3 | 1,234,567 | 1 h 02 min | 1.3 GiB |" in text
    assert "Epochs: 4. Folds: 1. Seeds: 1." in text


def test_every_format_names_the_units(results):
    table = Table("Comparison", results)
    titles = ["DSC %", "VS %", "NSD %", "MSD voxels", "HD95 voxels"]
    assert f"| row | {' | '.join(f'mean {title}' for title in titles)} | subjects |" in markdown(table)
    escaped = [f"mean {title}".replace("%", r"\%") for title in titles]
    assert " & ".join(escaped) in latex(table)
    for title in titles:
        assert f"| row | liver {title} | spleen {title} |" in markdown(table)
    lines = [re.split(r"\s{2,}", line) for line in plain(table).splitlines()]
    assert ["row", *titles[:3]] in lines and ["row", *titles[3:]] in lines


def test_terminal_has_the_papers_means_in_brackets(results):
    lines = [re.split(r"\s{2,}", line) for line in plain(Table("I", results)).splitlines()[3:5]]
    assert [line[:2] for line in lines] == [
        ["MS-Dual-Guided", "80.00 ± 13.23 [86.75]"],
        ["DAF", "73.33 ± 17.56 [82.48]"],
    ]


@pytest.mark.parametrize("name", ["I", "IV", "V", "VI", "VII", "Comparison"])
def test_latex_is_a_rectangle_and_compiles(results, tmp_path, name):
    text = latex(Table(name, results))
    blocks = re.findall(r"\\begin\{tabular\}\{(\w+)\}\n\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    assert len(blocks) == {"V": 2, "VI": 3, "VII": 3, "Comparison": 6}.get(name, 1)
    for columns, body in blocks:
        for line in body.splitlines():
            if line != r"\midrule":
                assert line.endswith(r" \\")
                assert line.count("&") == len(columns) - 1, line
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert [f"\\begin{{{name}}}" in text for name in ("table", "tabular")] == [True, True]
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here: the structure was checked, the compilation was not")
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)


def test_latex_has_the_papers_values(results):
    text = latex(Table("I", results))
    for number in (r"86.75 $\pm$ 5.05", r"80.00 $\pm$ 13.23"):
        assert number in text.replace(r"\textbf{", "").replace("}", "")


def test_names_of_runs_stay_whole_in_latex(results):
    first = replace(results[0], name="reproduction/alpha_1")
    assert r"reproduction/alpha\_1 & \textbf{80.00" in latex(Table("Comparison", [first]))


def test_what_is_not_known_is_an_empty_cell(results):
    unknown = {"parameters": None, "seconds": None, "memory": None, "epochs": None}
    table = Table("Comparison", [results[0], replace(results[1], **unknown)])
    assert "| 3 |  |  |  |" in markdown(table)
    assert "& 3 &  \\\\\n\\bottomrule" in latex(table)
    assert "Epochs: 4. " in table.note
    assert {row["parameters"] for row in table.rows()} == {1234567, None}


def test_seeds_groups_and_disjoint_rows_are_named(results):
    ours, daf = results
    shifted = {column: {s: v + 1 for s, v in of_column.items()} for column, of_column in ours.values.items()}
    middle = {column: {s: v + 0.5 for s, v in of_column.items()} for column, of_column in ours.values.items()}
    seeded = replace(ours, by_seed={0: ours.values, 1: shifted}, values=middle, groups={"1": "p", "2": "p"})
    renamed = {column: {f"x{s}": v for s, v in of_column.items()} for column, of_column in daf.values.items()}
    other = replace(daf, name="other", values=renamed, by_seed={0: renamed})
    table = Table("Comparison", [seeded, daf, other])
    text = markdown(table)
    assert "**80.50 ± 13.23 (± 0.71)**" in text  # seeds: 80 and 81
    assert "| 2 (3 subjects) |" in text
    sentence = "Not tested, because they share no test subject with MS-Dual-Guided: other."
    assert sentence in text and sentence in plain(table)
    assert "80.50 ± 13.23 (± 0.71)" in plain(table)  # as the note on brackets says
    assert "80.50 ± 13.23 (± 0.71) [86.75]" in plain(Table("I", [seeded]))
    assert re.search(r"\| other \| mean DSC % \| 73\.33 \[.*\] \|  \|  \|  \|  \|", text)


def test_a_mean_over_some_subjects_says_over_how_many(results):
    ours = results[0]
    values = ours.values | {("spleen", "dsc"): ours.values["spleen", "dsc"] | {"3": math.nan}}
    table = Table("Comparison", [replace(ours, values=values, by_seed={0: values})])
    assert "**70.00 ± 14.14** (n = 2)" in markdown(table)
    assert r"\textbf{70.00 $\pm$ 14.14} (n = 2)" in latex(table)


def test_the_note_speaks_of_what_the_table_has(results):
    lost = [replace(result, missed={"liver": 1, "spleen": 0}) for result in results]
    for rows in (results, lost):
        note = Table("IV", rows).note
        assert "distance" not in note and "worst case" not in note
    assert "DSC, VS and NSD are 0." in note
    assert "The paper's distances are in voxels" in Table("V", results).note


def test_missed_and_spurious_are_counted(results):
    table = Table("Comparison", [results[0], replace(results[1], missed={"liver": 2, "spleen": 0})])
    text = markdown(table)
    assert "| row | liver | spleen |" in text and "| DAF | 2 / 0 | 0 / 0 |" in text
