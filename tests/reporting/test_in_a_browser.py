"""The page of a run in a real browser: its numbers, pixels and controls; odd data."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from experiments.given_rows import parse_rows
from metrics import dice
from reporting.comparison import write_comparison
from reporting.run_page import write_page
from tests.helpers.browser import (
    check_silence,
    decoded,
    least_contrast,
    needs_browser,
    pixels,
    press,
    show,
    texts,
    type_key,
    wait_for,
)
from tests.helpers.pages import CLASSES, odd_scores, write_run
from utils import read_csv

NOTHING = "\N{EN DASH}"
EVIL = "</script><script>alert(1)</script>"
pytestmark = [needs_browser, pytest.mark.slow]


def test_the_page_is_silent_and_its_numbers_are_those_of_the_files(painted, browser):
    page = painted / "report.html"
    show(browser, page)
    check_silence(browser, page)
    summary = json.loads((painted / "test.json").read_text())
    head = browser.execute_script("return document.getElementById('lead').textContent")
    assert f"{summary['parameters']:,} parameters" in head
    assert f"best epoch {summary['best_epoch']} of 2" in head
    scores = read_csv(painted / "test.csv")
    for metric, scale, digits in (("dsc", 100, 1), ("vs", 100, 1), ("msd", 1, 2), ("hd95", 1, 2)):
        press(browser, "#metric button", metric.upper())
        header, *rows = texts(browser, "#subjects")
        assert header == ["subject", *CLASSES[1:], "mean"]
        assert {row[0] for row in rows} == {"3", "11"}
        for row in rows:
            values = [float(s[metric]) for s in scores if s["subject"] == row[0]]
            known = [value for value in values if not math.isnan(value)]
            values.append(sum(known) / len(known) if known else math.nan)
            for cell, value in zip(row[1:], values, strict=True):
                shown = re.match(r"[\d.]+|.", cell)[0]
                if math.isnan(value):
                    assert shown == NOTHING
                else:
                    assert float(shown) == pytest.approx(scale * value, abs=0.51 * 10**-digits)
        marks = [s["class"] for s in scores if s["missed"] == "True"]
        assert sum("missed" in cell for row in rows for cell in row) == len(marks)
        medians = wait_for(browser, "#boxes .value", len(CLASSES) - 1)  # plots are drawn when their size is known
        for name, median in zip(CLASSES[1:], medians, strict=True):
            values = [float(s[metric]) for s in scores if s["class"] == name and s[metric] != "nan"]
            assert float(median.split()[1]) == pytest.approx(scale * np.median(values), abs=0.51 * 10**-digits)
    header, *rows = texts(browser, "#log")
    for shown, wanted in zip(rows, read_csv(painted / "log.csv"), strict=True):
        for key, cell in zip(header, shown, strict=True):
            assert float(cell) == pytest.approx(float(wanted[key]), rel=1e-3)
    config = dict(texts(browser, "#config"))
    assert (config["backbone"], config["batch_size"]) == ("resnet18", "4")
    assert dict(texts(browser, "#environment"))["PyTorch"] == torch.__version__


def test_curves_are_read_by_keyboard(painted, browser):
    show(browser, painted / "report.html")
    log = read_csv(painted / "log.csv")
    for chart, columns, scale in (
        ("#losses", ["total", "segmentation", "guided", "reconstruction"], 1),
        ("#validation", ["val_dsc", *(f"val_dsc {name}" for name in CLASSES[1:])], 100),
    ):
        browser.execute_script("document.querySelector(arguments[0] + ' svg[tabindex]').focus()", chart)
        for key, row in (("HOME", log[0]), ("END", log[1])):
            type_key(browser, key)
            header, *values = texts(browser, f"{chart} table")
            assert header[1] == f"epoch {row['epoch']}"
            for (_, shown), column in zip(values, columns, strict=True):
                assert float(shown) == pytest.approx(scale * float(row[column]), abs=0.051 if scale == 100 else 0.00051)


def test_masks_reach_the_page_to_the_bit(painted, volumes, browser):
    show(browser, painted / "report.html")
    names = browser.execute_script("return data.viewer.subjects.map((s) => s.subject)")
    assert names == ["11", "3"]  # the worst first
    for volume in volumes:
        k = names.index(volume.subject)
        np.testing.assert_array_equal(decoded(browser, k, "truth"), volume.target[[0, 1, 2, 4]])
        np.testing.assert_array_equal(decoded(browser, k, "prediction"), volume.prediction[[0, 1, 2, 4]])


@pytest.mark.slow
def test_the_viewer_scrolls_and_toggles(painted, browser):
    show(browser, painted / "report.html")
    place = "return document.querySelector('.scroll output').textContent"
    worst = browser.execute_script("return data.viewer.subjects[0].worst")
    assert browser.execute_script(place).endswith(f"({worst + 1} of 4)")

    browser.execute_script("document.querySelector('canvas').focus()")
    seen = []
    for key in ("HOME", "ARROW_UP", "ARROW_RIGHT", "ARROW_DOWN", "END", "ARROW_LEFT"):
        type_key(browser, key)
        seen.append(browser.execute_script(place))
    assert seen == ["8 (1 of 4)", "9 (2 of 4)", "10 (3 of 4)", "9 (2 of 4)", "12 (4 of 4)", "10 (3 of 4)"]
    wheel = "document.querySelector('canvas').dispatchEvent(new WheelEvent('wheel', {deltaY: arguments[0]}))"
    browser.execute_script(wheel, 100)
    assert browser.execute_script(place) == "12 (4 of 4)"
    slider = "const s = document.getElementById('slice'); s.value = 1; s.dispatchEvent(new Event('input'))"
    browser.execute_script(slider)
    assert browser.execute_script(place) == "9 (2 of 4)"
    browser.execute_async_script("setTimeout(arguments[0], 200)")  # the image of the slice is decoded
    seen = [pixels(browser)]
    for selector, text in ((".class", "liver"), (".layer", "truth"), (".layer", "prediction"), (".choice", "errors")):
        button = selector if selector != ".choice" else "#viewer .choice button"
        before = "return [...document.querySelectorAll(arguments[0])].find((b) => b.textContent.includes(arguments[1]))"
        press(browser, button, text)
        pressed = browser.execute_script(before + ".getAttribute('aria-pressed')", button, text)
        assert pressed == ("true" if text == "errors" else "false")
        seen.append(pixels(browser))
    assert all(before != after for before, after in itertools.pairwise(seen))
    options = browser.execute_script("return [...document.querySelectorAll('#subject option')].map((o) => o.text)")
    assert sorted(options) == ["11", "3"]


def test_outlines_and_dice_of_the_page_against_numpy(painted, browser):
    """The area inside the outlines (shoelace formula) and their length are those of the pixels."""
    show(browser, painted / "report.html")
    rng = np.random.default_rng(0)
    for mask in (rng.integers(0, 3, (9, 7)), np.ones((4, 5)), np.eye(5), np.zeros((3, 3))):
        mask = mask.astype(np.uint8)
        loops = browser.execute_script("return outlines(arguments[0], ...arguments[1], 1)", mask.ravel().tolist(),
                                       [mask.shape[1], mask.shape[0]])  # fmt: skip
        area = length = 0.0
        for loop in loops:
            x, y = np.array(loop).T
            area += (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
            length += len(loop)
        inside = np.pad(mask == 1, 1)
        assert area == inside.sum()
        assert length == sum((np.diff(inside.astype(int), axis=axis) != 0).sum() for axis in (0, 1))
        other = rng.integers(0, 3, mask.shape).astype(np.uint8)
        found = browser.execute_script("return diceOf(...arguments, 1)", mask.ravel().tolist(), other.ravel().tolist())
        expected = dice(mask == 1, other == 1)
        assert found is None if math.isnan(expected) else found == pytest.approx(expected)


def test_errors_of_the_page_against_numpy(painted, volumes, browser):
    """All classes, then without the liver: counts in the legend of the errors view."""
    show(browser, painted / "report.html")
    press(browser, "#viewer .choice button", "errors")
    k = browser.execute_script("return data.viewer.subjects[0].worst")
    volume = next(volume for volume in volumes if volume.subject == "11")
    target, prediction = (array[[0, 1, 2, 4]][k] for array in (volume.target, volume.prediction))
    for off in (0, 1):  # the background is never on
        on_target, on_prediction = target > off, prediction > off
        wrong = target != prediction
        expected = [wrong & on_prediction & ~on_target, wrong & on_target & ~on_prediction,
                    wrong & on_target & on_prediction]  # fmt: skip
        legend = browser.execute_script("return document.querySelector('.key').textContent")
        assert [int(n) for n in re.findall(r"(\d+) px", legend)] == [int(mask.sum()) for mask in expected]
        assert off or all(mask.any() for mask in expected)
        press(browser, ".class", "liver")


def test_tables_sort_worst_first(painted, browser):
    show(browser, painted / "report.html")
    mean = "return [...document.querySelectorAll('#subjects tbody tr')].map((r) => parseFloat(r.lastChild.textContent))"
    sort = "return document.querySelector('#subjects th:last-child').getAttribute('aria-sort')"
    press(browser, "#metric button", "DSC")
    assert browser.execute_script(mean) == sorted(browser.execute_script(mean))
    assert browser.execute_script(sort) == "ascending"
    browser.execute_script("document.querySelector('#subjects th:last-child button').focus()")
    type_key(browser, "ENTER")
    assert browser.execute_script(mean) == sorted(browser.execute_script(mean), reverse=True)
    assert browser.execute_script(sort) == "descending"
    press(browser, "#subjects th:first-child button", "subject")
    assert [row[0] for row in texts(browser, "#subjects")[1:]] == ["3", "11"]  # as numbers
    # What is not known comes last, in either direction.
    script = """
      const place = document.createElement('div');
      const value = (row) => row;
      sortableTable(place, {caption: 't', by: 0, rows: [null, 3, 1, null, 2],
        columns: [{title: 'a', numeric: true, value, cell: (row) => String(row)}]});
      const read = () => [...place.querySelectorAll('tbody tr')].map((row) => row.textContent).join(' ');
      const first = read();
      place.querySelector('button').click();
      return [first, read()];
    """
    assert browser.execute_script(script) == ["1 2 3 null null", "3 2 1 null null"]


@pytest.mark.parametrize("page", ["report.html", "comparison.html"])
def test_light_dark_and_narrow(painted, browser, tmp_path, page):
    path = painted / "report.html"
    if page == "comparison.html":
        shutil.copytree(painted, tmp_path / "a-run-with-a-rather-long-name-as-people-give-them")
        path = write_comparison(parse_rows([str(painted), str(next(tmp_path.iterdir()))]), tmp_path / "compared")
    colors = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    overflow = "return document.documentElement.scrollWidth - innerWidth"
    found = []
    for dark in (False, True):
        show(browser, path, width=360, dark=dark)
        assert browser.execute_script(overflow) <= 0
        found.append(browser.execute_script(colors))
        assert least_contrast(browser) >= 4.5
        check_silence(browser, path)
    assert found[0] != found[1]


# ---------------------------------------------------------------- odd data


@pytest.mark.parametrize(
    ("names", "subjects", "epochs"),
    [
        ([EVIL, "<img src=x onerror=alert(1)>"], ["3", "4"], 1),
        (["liver"], ["1"], 0),  # missed: nothing is known of it
        ([f"organ {k}" for k in range(11)], [str(k) for k in range(30)], 2),
        (["liver", "spleen"], [], 3),  # not finished
        (["liver"], [], 0),
    ],
)
def test_odd_data(tmp_path, browser, names, subjects, epochs):
    unknown = {"reconstruction": math.nan, "val_dsc": math.nan} | {f"val_dsc {name}": math.nan for name in names}
    known = {"lr": 1e-3, "segmentation": 0.5, "guided": 0.0, "seconds": 1.0, "memory_gib": 1.0}
    log = [{"epoch": k + 1, "total": 1 / (k + 1)} | known | unknown for k in range(epochs)]
    scores = odd_scores(names, subjects)
    folder = write_run(tmp_path / EVIL.replace("/", "-"), names, scores, log)
    page = write_page(folder)
    show(browser, page, width=360)
    check_silence(browser, page)
    assert browser.execute_script("return document.querySelectorAll('script').length") == 6
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.getElementById('name').textContent") == folder.name
    assert browser.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
    if scores:
        header, *rows = texts(browser, "#subjects")
        assert header[1:-1] == names
        assert len(rows) == len(subjects)
        assert all(row[1].endswith("missed") for row in rows)
    else:
        assert "no test yet" in browser.execute_script("return document.getElementById('state').textContent")
