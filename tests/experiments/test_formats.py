"""Tables as Markdown, as LaTeX and for a terminal."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from experiments.formats import latex, markdown, plain
from experiments.tables import Table


def test_markdown_by_hand(results):
    text = markdown(Table("I", results))
    assert "**80.00 ± 13.23**<br>86.75 ± 5.05<br>-6.75" in text
    assert "| 73.33 ± 17.56<br>82.48 ± 6.06<br>-9.15 |" in text
    assert "**1.20 ± 0.13**<br>0.66 ± 0.27<br>+0.54" in text  # the smaller distance is the better one
    assert "| 3 | 1,234,567 | 1 h 02 min | 1.3 GiB |" in text
    assert "Epochs: 4; folds: 1." in text


def test_every_format_names_the_units(results):
    table = Table("Comparison", results)
    titles = ["DSC %", "VS %", "MSD voxels", "HD95 voxels"]
    assert f"| row | {' | '.join(f'mean {title}' for title in titles)} | subjects |" in markdown(table)
    escaped = [f"mean {title}".replace("%", r"\%") for title in titles]
    assert " & ".join(escaped) in latex(table)
    header = plain(table).splitlines()[2]
    assert re.split(r"\s{2,}", header) == ["row", *titles]


def test_terminal_has_the_papers_means_in_brackets(results):
    lines = [re.split(r"\s{2,}", line) for line in plain(Table("I", results)).splitlines()[3:]]
    assert [line[:2] for line in lines] == [
        ["MS-Dual-Guided", "80.00 ± 13.23 (86.75)"],
        ["DAF", "73.33 ± 17.56 (82.48)"],
    ]


@pytest.mark.parametrize("name", ["I", "IV", "V", "VI", "VII", "Comparison"])
def test_latex_is_a_rectangle_and_compiles(results, tmp_path, name):
    text = latex(Table(name, results))
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.S)[1]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
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
    first = results[0]._replace(name="reproduction/alpha_1")
    assert r"reproduction/alpha\_1 & ours" in latex(Table("Comparison", [first]))
