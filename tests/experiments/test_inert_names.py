"""Names of classes, subjects and runs show as they are, wherever they stand, and change no number."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import report
import reproduce
from experiments import statistics
from experiments.formats import latex, markdown, plain
from experiments.given_rows import parse_rows
from experiments.results import MEAN, read_result
from experiments.tables import Table
from metrics import METRICS, summarize
from reporting.comparison import write_comparison
from reporting.figures import save_boxes, save_curves, save_montage
from reporting.run_page import read_tables
from reporting.score_table import format_table
from tests.helpers.pages import held, write_run
from tests.helpers.results import scores_of as scored
from utils import InputError, harmless, read_csv, write_csv

ODD = [
    r"$\frac{$", "$x$", r"\input{x}|pipe", "_hidden", "__init__", "=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)",
    "'=x", "''", "a|b", r"a\|b", "<script>alert(1)</script>", '"quoted"', "~^{}#&%", "mean", "n/a", "[x]", "*", "a--b",
    "`code`", "naïve ± 3", "constructor", "__proto__",
]  # fmt: skip
SIGNS = st.text(r"""$\|<>&"'=+-@_^~{}[]#%*`,;:.!?ax1 ±é""", min_size=1, max_size=8)
NAMES = st.sampled_from(ODD) | SIGNS.filter(lambda name: name.strip())


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 10)
        yield


def scores_of(names: list[str], shift: float = 0.0) -> list[dict]:
    """Of three subjects, numbers that differ between all classes."""
    return [
        scored(subject, name, 0.1 * k + 0.01 * s + shift)
        for s, subject in enumerate(("1", "=2", "__proto__"))
        for k, name in enumerate(names)
    ]


def run_of(folder: Path, names: list[str], shift: float = 0.0) -> Path:
    log = [{"epoch": 1, "total": 1.0, "val_dsc": 0.5, "seconds": 1.0} | {f"val_dsc {name}": 0.25 for name in names}]
    return write_run(folder, names, scores_of(names, shift), log)


# ---------------------------------------------------------------- CSV


@settings(max_examples=50, deadline=None, derandomize=True)
@given(names=st.lists(NAMES | st.text(st.characters(exclude_categories=["C"]), min_size=1), min_size=1, max_size=4))
def test_csv_holds_no_formulas_and_gives_names_back(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    write_csv(path, [{"class": name, "difference": -0.5, "n": 3} for name in names])
    with path.open(newline="", encoding="utf-8") as file:
        raw = list(csv.DictReader(file))
    assert not any(re.match(r"[=+\-@\t\r]", row["class"]) for row in raw)
    assert [(row["difference"], row["n"]) for row in raw] == [("-0.5", "3")] * len(names)
    assert [row["class"] for row in read_csv(path)] == names


# ---------------------------------------------------------------- tables


def unescaped(cell: str) -> str:
    """What Markdown shows of a text: CommonMark's backslashes before punctuation."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell)


def printed(cell: str) -> str:
    """What LaTeX prints of a text without markup, by the names in its own encodings (fntguide)."""
    words = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textasciigrave": "`"}
    words |= {"textless": "<", "textgreater": ">", "textbar": "|"}
    text = cell.replace(r"\symbol{34}", '"').replace(r"$\pm$", "±")
    assert not re.search(r"(?<!\\)[%#$&_~^]|--|''|,,", text.replace(r"\\", "")), cell
    tokens = re.findall(r"\\([a-z]+)\{\}|\\(.)|\{(.)\}|(\{\})|([^\\{}])", text)
    return "".join(words.get(word, "?") if word else sign or alone or other for word, sign, alone, _, other in tokens)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(classes=st.lists(NAMES, min_size=1, max_size=3, unique=True), run=NAMES, other=NAMES)
def test_tables_show_names_and_numbers_as_they_are(tmp_path_factory, classes, run, other):
    root = tmp_path_factory.mktemp("runs")
    folders = [run_of(root / name, classes, shift) for name, shift in (("a", 0.0), ("b", 0.05))]
    if run == other:
        other += "2"
    results = [read_result(name, [folder]) for name, folder in zip((other, run), folders, strict=True)]
    table = Table("IV", results)  # has a column for each class, in one block
    titles = [f"{name} DSC %" for name in classes]
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in lines[:4]]
    assert len({len(row) for row in cells}) == 1
    header, _, first, second = [[unescaped(cell.strip()) for cell in row] for row in cells]
    assert header[1 : len(classes) + 1] == [title.strip() for title in titles]
    assert [first[0], second[0]] == [other.strip(), run.strip()]
    means = [f"{100 * (0.1 * k + 0.01):.2f} ± 1.00" for k in range(len(classes))]
    assert [re.split(r"<br>", cell)[0].strip("*") for cell in first[1 : len(classes) + 1]] == means
    body = re.search(r"\\toprule\n(.*)\\bottomrule", latex(table), re.DOTALL)[1].splitlines()
    assert [printed(cell) for cell in re.split(r" (?<!\\)& ", body[0])][2 : len(classes) + 2] == titles
    rows = [re.split(r" (?<!\\)& ", line) for line in (body[2], body[3])]
    assert [printed(row[0]) for row in rows] == [other, run]
    assert not any(line.startswith(("[", "*")) for line in body)
    assert f"{other}  " in plain(table)


def test_a_class_called_mean_is_no_mean_over_classes(tmp_path):
    names = ["mean", "b", "mean over classes"]
    a, b = run_of(tmp_path / "a", names), run_of(tmp_path / "b", names, 0.2)
    result = read_result("a", [a])
    assert result.values["mean", "dsc"] == pytest.approx({"1": 0.0, "=2": 1.0, "__proto__": 2.0})
    assert result.values[MEAN, "dsc"] == pytest.approx({"1": 10.0, "=2": 11.0, "__proto__": 12.0})
    overlaps = format_table(summarize(scores_of(names)), width=200).split("\n\n")[0]
    lines = overlaps.splitlines()[2:]
    titles = [re.split(r" +3 +", line)[0] for line in lines]  # of three subjects
    assert titles == [*names, "mean over classes over classes"]
    rows = {(row["row"], row["class"], row["metric"]): row["mean"] for row in Table("IV", [result]).rows()}
    assert rows["a", "mean", "DSC"] == pytest.approx(1.0)
    assert rows["a", "mean over classes over classes", "DSC"] == pytest.approx(11.0)
    ours = read_result("MS-Dual-Guided", [a])
    assert Table("IV", [ours]).printed("MS-Dual-Guided", ("mean", "dsc")) is None
    page = held(write_comparison(parse_rows([str(a), str(b)]), tmp_path / "out"))
    assert page["labels"] == [*names, "mean over classes over classes"]
    cells = [of_label[0]["values"] for of_label in page["runs"][0]["cells"]]  # of the DSC
    assert cells[0] == pytest.approx({"1": 0.0, "=2": 1.0, "__proto__": 2.0})
    assert cells[-1] == pytest.approx({"1": 10.0, "=2": 11.0, "__proto__": 12.0})


def test_two_rows_of_one_name_are_refused(tmp_path):
    folders = [run_of(tmp_path / name, ["x"]) for name in "ab"]
    with pytest.raises(InputError, match="A: two rows have this name"):
        reproduce.compare(reproduce.Compare(tuple(f"A={folder}" for folder in folders), out=tmp_path / "out"))


def test_folders_whose_names_are_no_text(tmp_path):
    folder = run_of(tmp_path / "run\udcff\n$x$", ["x"])
    reproduce.compare(reproduce.Compare((str(folder),), out=tmp_path / "out"))
    assert r"run\\udcff\\n\$x\$" in (tmp_path / "out" / "table.md").read_text()
    write_comparison(parse_rows([str(folder)]), tmp_path / "page")


# ---------------------------------------------------------------- pictures and pages


def drawn(monkeypatch: pytest.MonkeyPatch, save, path: Path, *arguments) -> set[str]:
    """The texts that a picture shows, none of them as mathematics; it is written, too."""
    figures: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", figures.append)
        save(path, *arguments)
    (figure,) = figures
    shown = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert not any(text.get_parse_math() or text.get_usetex() for text in shown)
    assert path.stat().st_size > 1000
    plt.close(figure)
    return {text.get_text() for text in shown}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_pictures_show_names_as_they_are(tmp_path, monkeypatch, suffix):
    image, classes = np.zeros((1, 1, 40, 40)), np.ones((1, 40, 40), int)
    montage = tmp_path / f"m.{suffix}"
    assert set(ODD) <= drawn(monkeypatch, save_montage, montage, image, classes, ("background", *ODD))
    curves = {name: [(np.array([0.5, 1.0]), np.array([10.0, 20.0]))] for name in ODD}
    assert set(ODD) <= drawn(monkeypatch, save_curves, tmp_path / f"c.{suffix}", curves)
    values = {name: {(label, "dsc"): {"1": 50.0, "2": 60.0} for label in (ODD[0], "mean", MEAN)} for name in ODD}
    boxes = drawn(monkeypatch, save_boxes, tmp_path / f"b.{suffix}", values, [ODD[0], "mean"], METRICS["dsc"])
    assert {*ODD, *(f"{name}, DSC %" for name in (ODD[0], "mean", "mean over classes"))} <= boxes


def test_a_picture_that_fails_is_a_warning(tmp_path, capsys):
    with harmless(tmp_path / "a.png"):
        raise ValueError("no\npicture")
    assert (
        capsys.readouterr().out == f"warning: {tmp_path}/a.png: could not be written (no\\npicture); all else goes on\n"
    )


# ---------------------------------------------------------------- files that were edited

LINES = (
    "subject,class,missed,spurious,dsc,vs,nsd,msd,hd95,hd95_pooled,msd_worst,hd95_worst\n"
    "1,x,False,False,0.5,0.5,0.5,1,1,1,1,1\n"
)
EDITED = {
    "semicolons": ("log.csv", b"epoch;val_dsc;seconds\n1;0,5;1\n"),
    "no header": ("log.csv", b"1,0.5,1\n2,0.5,1\n"),
    "a text for a number": ("log.csv", b"epoch,val_dsc,seconds\n1,good,1\n"),
    "Latin-1": ("test.csv", LINES.replace("x", "\xe4").encode("latin-1")),
    "UTF-16": ("test.csv", LINES.encode("utf-16")),
    "a row too long": ("test.csv", LINES.encode() + b"2,x,False,False,0.5,0.5,0.5,1,1,1,1,1,7\n"),
    "a row too short": ("test.csv", LINES.encode() + b"2,x,0.5\n"),
    "no header of scores": ("test.csv", 2 * LINES.encode().splitlines(keepends=True)[1]),
    "no rows": ("test.csv", b""),
    "a large cell": ("test.csv", LINES.encode() + b"2," + b"x" * 200_000 + b",False,False,0.5,0.5,0.5,1,1,1,1,1\n"),
    "an infinite score": ("test.csv", LINES.replace("0.5", "inf").encode()),
    "null": ("test.json", b"null"),
    "a list": ("test.json", b"[1]"),
    "nothing in it": ("test.json", b"{}"),
    "no seconds": ("test.json", b'{"parameters": 1, "epochs": 1, "seconds": null, "memory_gib": 0.5}'),
    "Infinity": ("test.json", b'{"parameters": 1, "epochs": 1, "seconds": Infinity, "memory_gib": 0.5}'),
    "no JSON": ("test.json", b"{"),
    "a number that is a text": ("test.json", b'{"parameters": "1", "epochs": 1, "seconds": 1, "memory_gib": 0.5}'),
}


@pytest.mark.parametrize("case", EDITED)
def test_edited_files_are_named_in_a_line(tmp_path, case):
    name, content = EDITED[case]
    whole, edited = run_of(tmp_path / "whole", ["x"]), run_of(tmp_path / "edited", ["x"])
    (edited / name).write_bytes(content)
    calls = [
        lambda: reproduce.compare(reproduce.Compare((str(whole), str(edited)), out=tmp_path / "out")),
        lambda: report.main(report.Options((str(whole), str(edited)), out=tmp_path / "out")),
    ]
    if case != "no rows":
        calls.append(lambda: report.main(report.Options((str(edited),), device="cpu")))
    for call in calls:
        with pytest.raises(InputError, match=rf"{edited / name}: .+"):
            call()
    assert not (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize("missing", ["overall", "per_class", "subjects", "best_epoch"])
def test_a_summary_without_a_part_is_named_in_a_line(tmp_path, missing):
    folder = run_of(tmp_path / "run", ["x"])
    content = json.loads((folder / "test.json").read_text())
    for value in ([], "x") if missing == "best_epoch" else (None, [], "x"):
        (folder / "test.json").write_text(json.dumps(content | {missing: value}))
        with pytest.raises(InputError, match=r"test\.json: is no summary of a test"):
            read_tables(folder)
