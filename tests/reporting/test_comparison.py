"""The page of several runs, in a real browser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wilcoxon

import report
from reporting.run_page import write_page
from tests.helpers.browser import check_silence, needs_browser, show, texts
from tests.helpers.pages import CONFIG, write_run
from tests.helpers.results import scores_of
from utils import write_json

MINUS = "\N{MINUS SIGN}"


@pytest.mark.slow
@needs_browser
def test_the_page_of_several_runs(tmp_path, browser):
    rng = np.random.default_rng(1)
    runs, values = [], {}
    for name, shift in (("ours", 0.1), ("unet", 0.0), ("daf", 0.05)):
        values[name] = rng.uniform(0.4, 0.8, (6, 2)) + shift
        rows = [
            scores_of(str(s), c, v)
            for s, pair in enumerate(values[name].tolist()) for c, v in zip(("liver", "spleen"), pair, strict=True)
        ]  # fmt: skip
        log = [{"epoch": k, "total": 1 / k, "val_dsc": 0.1 * k, "seconds": 1.0} for k in range(1, 2 + len(runs))]
        runs.append(write_run(tmp_path / name, ["liver", "spleen"], rows, log))
    write_json(tmp_path / "unet" / "config.json", CONFIG.change(model="unet").to_dict())
    report.main(report.Options(tuple(map(str, runs)), out=tmp_path / "compared"))
    page = tmp_path / "compared" / "report.html"
    show(browser, page)
    check_silence(browser, page)
    table = {row[0]: row for row in texts(browser, "#runs")[1:]}
    assert list(table) == ["ours", "unet", "daf"]
    for name, of_run in values.items():
        means = 100 * of_run.mean(1)
        assert table[name][1] == f"{means.mean():.2f} ± {means.std(ddof=1):.2f}"
    tests = {(row[0], row[1]): row for row in texts(browser, "#tests")[1:]}
    differences = values["unet"] - values["ours"]
    for label, of_label in (("mean", differences.mean(1)), ("liver", differences[:, 0]), ("spleen", differences[:, 1])):
        row = tests["unet", label]
        assert row[3:5] == ["6", "6"]
        assert float(row[5].split()[0].replace(MINUS, "-")) == pytest.approx(100 * of_label.mean(), abs=0.006)
        assert row[6] == f"{wilcoxon(of_label).pvalue:.3f}"
    assert {name for name, _ in tests} == {"unet", "daf"}
    header, *rows = texts(browser, "#classes")
    assert header == ["class", "ours", "unet", "daf"]
    spleen = 100 * values["daf"][:, 1]
    assert rows[1][3] == f"{spleen.mean():.2f} ± {spleen.std(ddof=1):.2f}"
    worst = [row[0] for row in texts(browser, "#subjects")[1:]]
    assert worst == [str(k) for k in np.argsort(values["ours"].mean(1))]
    assert texts(browser, "#differences")[1:] == [["model", "ms_dual_guided", "unet", "ms_dual_guided"]]


@pytest.mark.slow
@needs_browser
def test_names_show_as_they_are_and_change_no_number(tmp_path, browser):
    names = ["mean", "__proto__", "<b>x</b>", "constructor"]
    runs = []
    for run, shift in (("=a", 0.0), ("<i>b", 0.2)):
        scores = [
            scores_of(subject, name, 0.1 * k + 0.01 * s + shift)
            for s, subject in enumerate(("1", "=2", "__proto__")) for k, name in enumerate(names)
        ]  # fmt: skip
        runs.append(write_run(tmp_path / run, names, scores, [{"epoch": 1, "val_dsc": 0.5, "seconds": 1.0}]))
    report.main(report.Options(tuple(map(str, runs)), out=tmp_path / "compared"))
    show(browser, tmp_path / "compared" / "report.html")
    check_silence(browser, tmp_path / "compared" / "report.html")
    header, *rows = texts(browser, "#classes")
    assert header == ["class", "=a", "<i>b"]
    assert [row[0] for row in rows] == [*names, "mean over classes"]
    assert [row[1] for row in rows] == [f"{k}.00 ± 1.00" for k in (1, 11, 21, 31, 16)]
    table = {row[0]: row[1] for row in texts(browser, "#runs")[1:]}
    assert table == {"<i>b": "36.00 ± 1.00", "=a": "16.00 ± 1.00"}
    subjects = {row[0]: row[1] for row in texts(browser, "#subjects")[1:]}
    assert subjects == {"1": "15.00", "=2": "16.00", "__proto__": "17.00"}
    show(browser, write_page(runs[0]))
    header, *rows = texts(browser, "#subjects")
    assert header == ["subject", *names, "mean over classes"]
    assert {row[0]: row[1:] for row in rows}["1"] == ["0.0", "10.0", "20.0", "30.0", "15.0"]
