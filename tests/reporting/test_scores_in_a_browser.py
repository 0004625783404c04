"""What the page of a run says of regions, missed structures, millimetres, tolerances and its origin."""

from __future__ import annotations

import math

import numpy as np
import pytest

import report
from metrics import METRICS, score_subject
from reporting.run_page import write_page
from tests.helpers.browser import check_silence, needs_browser, press, show, texts, wait_for
from tests.helpers.pages import write_run
from utils import read_csv, write_json

pytestmark = [needs_browser, pytest.mark.slow]
NAMES = ["liver", "left kidney", "right kidney"]
REGIONS = {"kidneys": ("left kidney", "right kidney")}
SHOWN = ("dsc", "vs", "nsd_mm", "msd_mm", "hd95_mm", "msd_worst_mm", "hd95_worst_mm")
ENVIRONMENT = {"commit": "0123abc", "changed since": "yes", "command": "main.py --data x", "precision": "bfloat16"}


def scored_subjects(first: int = 1, count: int = 4) -> list[dict]:
    """Scores in mm of three organs and a region; the second subject lacks the left kidney in its prediction."""
    rng = np.random.default_rng(first)
    rows = []
    for subject in range(first, first + count):
        truth = np.zeros((6, 24, 24), np.uint8)
        truth[1:5, 3:11, 3:11], truth[1:5, 14:20, 3:9], truth[1:5, 14:20, 15:21] = 1, 2, 3
        prediction = np.roll(truth, rng.integers(0, 3, 2), (1, 2))
        if subject == first + 1:
            prediction[prediction == 2] = 0
        scores = score_subject(prediction, truth, ("background", *NAMES), (4.0, 1.5, 1.5), REGIONS, {"liver": 2.0})
        rows += [{"subject": str(subject)} | row for row in scores]
    return rows


def log_of(epochs: int) -> list[dict]:
    return [{"epoch": k, "total": 1 / k, "val_dsc": 0.1 * k, "seconds": 36.0} for k in range(1, epochs + 1)]


def shown(values: list[float], digits: int) -> str:
    known = np.array([value for value in values if not math.isnan(value)])
    return f"{known.mean():.{digits}f} ± {known.std(ddof=1):.{digits}f}"


def test_regions_units_and_missing_structures(tmp_path, browser):
    tolerances = dict.fromkeys([*NAMES, *REGIONS], 1.0) | {"liver": 2.0}
    summary = {"tolerances_mm": tolerances, "environment": ENVIRONMENT}
    folder = write_run(tmp_path / "run", NAMES, scored_subjects(), log_of(1), **summary)
    show(browser, write_page(folder), width=400)
    check_silence(browser, folder / "report.html")
    scores = read_csv(folder / "test.csv")
    header, *rows = texts(browser, "#summary")
    assert header[1:] == [*(METRICS[key].title for key in SHOWN), "n", "missed", "spurious"]
    assert {title.split()[-1] for title in header[1:-3]} == {"%", "mm"}
    assert [row[0] for row in rows] == [*NAMES, "kidneys", "mean"]
    for name, *cells in rows[:-1]:
        of_label = [row for row in scores if row["class"] == name]
        for key, cell in zip(SHOWN, cells[:-3], strict=True):
            values = [METRICS[key].scale * float(row[key]) for row in of_label]
            assert cell == shown(values, 1 if METRICS[key].unit == "%" else 2)
        assert cells[-3:] == ["4", "1" if name == "left kidney" else "0", "0"]
    for key in ("dsc", "msd_mm", "msd_worst_mm"):
        press(browser, "#metric button", METRICS[key].title)
        header, *rows = texts(browser, "#subjects")
        assert header == ["subject", *NAMES, "kidneys", "mean"]
        caption = browser.execute_script("return document.querySelector('#subjects caption').textContent")
        assert caption == f"{METRICS[key].name} by subject, {METRICS[key].unit}"
        for subject, *cells in rows:
            values = [float(row[key]) for row in scores if row["subject"] == subject and row["region"] == "False"]
            mean = METRICS[key].scale * np.nanmean(values)  # over classes alone
            assert float(cells[-1]) == pytest.approx(mean, abs=0.051)
        assert len(wait_for(browser, "#boxes .value", 4)) == 4
    note = browser.execute_script("return document.getElementById('scores-note').textContent")
    assert "within 1 mm (liver: 2 mm)" in note
    assert "MSD and HD95 are means over the others" in note and "HD95 worst case take the diagonal" in note
    table = dict(texts(browser, "#environment"))
    assert {key: table[key] for key in ENVIRONMENT} == ENVIRONMENT
    # The table is wider than the page, scrolls, and fades on the side on which more of it is.
    place = "const s = document.querySelector('#summary .scrolling'); "
    assert browser.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
    assert browser.execute_script(place + "return s.scrollWidth > s.clientWidth")
    fades = place + "return getComputedStyle(s).maskImage.includes('gradient')"
    assert browser.execute_script(fades)
    browser.execute_async_script(place + "s.scrollLeft = 9999; setTimeout(arguments[0], 200)")
    assert not browser.execute_script(fades)


def test_an_evaluated_run_has_no_training_and_no_cost(tmp_path, browser):
    costs = dict.fromkeys(("parameters", "epochs", "seconds", "memory_gib", "best_epoch"))
    folder = write_run(tmp_path / "run", NAMES, scored_subjects(), [], **costs)
    (folder / "config.json").unlink()
    sources = {"predictions": "/gone/nnunet", "truth": "/gone/labels", "names": ",".join(NAMES)}
    write_json(folder / "evaluation.json", sources)
    report.main(report.Options((str(folder),), device="cpu"))
    show(browser, folder / "report.html")
    check_silence(browser, folder / "report.html")
    head = browser.execute_script("return document.querySelector('header').textContent")
    assert "Evaluation of /gone/nnunet" in head and "4 test subjects in 3D" in head
    assert not any(word in head for word in ("epoch", "parameters", "trained", "null"))
    titles = browser.execute_script("return [...document.querySelectorAll('h2')].map((h) => h.textContent)")
    assert titles == ["Scores", "Configuration and environment"]
    assert dict(texts(browser, "#config"))["names"] == ",".join(NAMES)


def test_images_have_pixels(tmp_path, browser):
    truth = np.zeros((1, 24, 24), np.uint8)
    truth[0, 3:11, 3:11] = 1
    scores = score_subject(np.roll(truth, 1, 1), truth, ("background", "cell"))
    rows = [{"subject": subject} | row for subject in ("1", "2") for row in scores]
    folder = write_run(tmp_path / "run", ["cell"], rows, log_of(1), per_image=True)
    show(browser, write_page(folder))
    header = texts(browser, "#summary")[0]
    assert "HD95 pixels" in header and not any("voxel" in title or "mm" in title for title in header)
    note = browser.execute_script("return document.getElementById('scores-note').textContent")
    assert "over test images" in note and "within one pixel" in note


def test_rows_of_folds_and_seeds(tmp_path, browser):
    """Values of two seeds on two folds, a row of one epoch, and one that shares no subject."""
    rng = np.random.default_rng(0)
    folds = [(1, 2), (3, 4)]
    rows, dice = [], {}
    for seed in (0, 1):
        for fold, (first, _) in enumerate(folds):
            scores = scored_subjects(first, 2)
            for row in scores:
                row["dsc"] = dice[seed, row["subject"], row["class"]] = float(rng.uniform(0.4, 0.9))
            folder = write_run(tmp_path / f"{seed}-{fold}", NAMES, scores, log_of(5 + seed))
            config = (folder / "config.json").read_text()
            (folder / "config.json").write_text(config.replace('"seed": 0', f'"seed": {seed}'))
            rows.append(str(folder))
    short = write_run(tmp_path / "short", NAMES, scored_subjects(), log_of(1))
    other = write_run(tmp_path / "other", NAMES, scored_subjects(9), log_of(3))
    texts_of_rows = (f"Ours, all={','.join(rows)}", f"Short={short}", f"Elsewhere={other}")
    report.main(report.Options(texts_of_rows, against="Short", out=tmp_path / "page"))
    page = tmp_path / "page" / "report.html"
    show(browser, page, width=400)
    check_silence(browser, page)
    assert browser.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
    header, *table = texts(browser, "#runs")
    assert [row[0] for row in table] == ["Ours, all", "Short", "Elsewhere"]
    assert header[1:8] == [METRICS[key].title for key in SHOWN]
    ours = dict(zip(header, table[0], strict=True))
    of_seeds = [[100 * np.mean([dice[seed, s, name] for name in NAMES]) for s in "1234"] for seed in (0, 1)]
    means = np.mean(of_seeds, 0)
    assert ours["DSC %"] == f"{shown(means.tolist(), 2)} ({np.std(np.mean(of_seeds, 1), ddof=1):.2f})"
    assert (ours["folds"], ours["seeds"], ours["n"]) == ("2", "2", "4")
    labels = [*NAMES, "kidneys", "mean"]
    assert [row[0] for row in texts(browser, "#classes")[1:]] == labels
    assert [row[:2] for row in texts(browser, "#tests")[1:]] == [["Ours, all", label] for label in labels]
    assert "Elsewhere: no test" in browser.execute_script("return document.getElementById('disjoint').textContent")
    missed = {row[0]: row[1:] for row in texts(browser, "#counts")[1:]}
    assert missed["left kidney"] == ["4 missed", "1 missed", "1 missed"]
    # Of ours the mean and four runs; the run of one epoch is a dot.
    for chart in ("#epochs", "#hours"):
        wait_for(browser, f"{chart} svg .line", 7)
        widths = "return [...document.querySelectorAll(arguments[0] + ' .line')].map((l) => l.style.strokeWidth)"
        assert browser.execute_script(widths, chart) == [*["0.8"] * 4, "2", "2", "2"]
        radius = f"return document.querySelectorAll('{chart} g > circle').length"
        assert browser.execute_script(radius) == 1
    values = {row[0]: row[1] for row in texts(browser, "#hours table")}
    assert (values["Ours, all"], values["Short"]) == ("50.0", "10.0")
    differences = {row[0]: row[1:] for row in texts(browser, "#differences")}
    assert differences["seed"] == ["0, 1", "0", "0"]
