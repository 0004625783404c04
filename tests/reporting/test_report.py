"""The report in a real browser: its numbers, pixels and controls; odd data; the comparison; figures for a paper."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import locale
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import figures
import report
from config import Config
from data.folder import open_data
from data.volumes import Volume
from main import main as train
from metrics import dice, score_subject, summarize
from models import build_model
from models.inspection import inspect
from models.multi_scale import SCALES
from report import Shown, confusion, mean_dice, worst_slice, write_report
from utils import InputError, write_csv, write_json

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
MISSING += [] if importlib.util.find_spec("selenium") else ["selenium"]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} here (.ci/run installs them)")
CLASSES = ("background", "liver", "right kidney", "left kidney", "spleen")
CONFIG = Config(backbone="resnet18", steps=2, epochs=2, batch_size=4, workers=0, device="cpu", amp="off")
MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"
EVIL = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Data with blobs for organs, and a run of two epochs on them: their folders."""
    root = tmp_path_factory.mktemp("report")
    data = root / "data"
    rows, columns = np.mgrid[:48, :64]
    for split, names in {"train": ["1"], "val": ["2"], "test": ["3", "11"]}.items():
        for kind in ("Img", "GT"):
            (data / split / kind).mkdir(parents=True)
        for name in names:
            for number in (8, 9, 10, 12):  # 11 is missing
                mask = np.zeros((48, 64), np.uint8)
                for k, (row, column) in enumerate([(12, 14), (12, 46), (34, 16), (34, 48)], 1):
                    mask[(rows - row) ** 2 + (columns - column) ** 2 < 20 + 6 * number] = 63 * k
                noise = np.random.default_rng(number).normal(0, 12, mask.shape)
                Image.fromarray(mask).save(data / split / "GT" / f"Subj_{name}slice_{number}.png")
                image = (mask + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(data / split / "Img" / f"Subj_{name}slice_{number}.png")
    train(replace(CONFIG, data=data, out=root / "run"))
    return data, root / "run"


@pytest.fixture(scope="module")
def painted(run, tmp_path_factory):
    """The run with predictions as a good network would make them, in the page and in the tables; and the volumes."""
    data, folder = run
    opened = open_data(data)
    dataset, volumes = opened.dataset("test"), []
    for subject, indices in dataset.subjects().items():
        slices = [dataset[index][1].numpy().astype(np.uint8) for index in indices]
        target = np.stack([*slices[:3], np.zeros_like(slices[0]), slices[3]])
        prediction = np.roll(target, (1, 3), axis=(1, 2))
        prediction[:, 8:11, :] = 2  # a wrong class
        if subject == "11":
            prediction[prediction == 4] = 0
        volumes.append(Volume(subject, prediction, target))
    out = tmp_path_factory.mktemp("painted") / "run"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.pt", "predictions"))
    rows = [{"subject": v.subject} | row for v in volumes for row in score_subject(v.prediction, v.target, CLASSES)]
    cost = {"parameters": 1234567, "best_epoch": 2, "epochs": 2, "seconds": 3.0, "memory_gib": 0.5}
    write_csv(out / "test.csv", rows)
    write_json(out / "test.json", summarize(rows) | cost)
    write_report(out, Shown("test", dataset, volumes, {}))
    return out, volumes


@pytest.fixture(scope="module")
def browser():
    from docs.screenshots import browser

    with browser() as driver:
        driver.set_script_timeout(20)
        yield driver


def show(browser, page: Path, **options) -> None:
    from docs.screenshots import show

    browser.get("about:blank")  # the browser's own first page has requests
    browser.get_log("browser"), browser.get_log("performance")
    show(browser, page, **options)


def check_silence(browser, page: Path) -> None:
    """Nothing on the console, and no request but for the page itself."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {page.resolve().as_uri()}


def texts(browser, selector: str) -> list[list[str]]:
    """The cells of a table's rows."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tr')].map((row) =>"
        "[...row.cells].map((cell) => cell.textContent.trim()))", selector
    )  # fmt: skip


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def press(browser, selector: str, text: str) -> None:
    browser.execute_script(
        "[...document.querySelectorAll(arguments[0])].find((b) => b.textContent.includes(arguments[1])).click()",
        selector, text,
    )  # fmt: skip


def type_key(browser, name: str) -> None:
    """A key pressed in what has the focus."""
    from selenium.webdriver import ActionChains, Keys

    ActionChains(browser).send_keys(getattr(Keys, name)).perform()


def pixels(browser) -> str:
    return browser.execute_script("return document.querySelector('canvas').toDataURL()")


def decoded(browser, k: int, kind: str) -> np.ndarray:
    """What the page's own `unpack` makes of a mask: (slices, H, W)."""
    values = browser.execute_async_script(
        "const [k, kind, done] = arguments; unpack(data.viewer.subjects[k][kind]).then((v) => done([...v]))", k, kind
    )
    size = browser.execute_script("return data.viewer.subjects[arguments[0]].size", k)
    return np.array(values, np.uint8).reshape(-1, *size)


# ---------------------------------------------------------------- a run's page


@needs_browser
def test_the_page_is_silent_and_its_numbers_are_those_of_the_files(painted, browser):
    folder, _ = painted
    page = folder / "report.html"
    show(browser, page)
    check_silence(browser, page)
    summary = json.loads((folder / "test.json").read_text())
    head = browser.execute_script("return document.getElementById('lead').textContent")
    assert f"{summary['parameters']:,} parameters" in head
    assert f"best epoch {summary['best_epoch']} of 2" in head
    scores = read_csv(folder / "test.csv")
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
        medians = browser.execute_script(
            "return [...document.querySelectorAll('#boxes .value')].map((t) => t.textContent)"
        )
        for name, median in zip(CLASSES[1:], medians, strict=True):
            values = [float(s[metric]) for s in scores if s["class"] == name and s[metric] != "nan"]
            assert float(median.split()[1]) == pytest.approx(scale * np.median(values), abs=0.51 * 10**-digits)
    header, *rows = texts(browser, "#log")
    for shown, wanted in zip(rows, read_csv(folder / "log.csv"), strict=True):
        for key, cell in zip(header, shown, strict=True):
            assert float(cell) == pytest.approx(float(wanted[key]), rel=1e-3)
    config = dict(texts(browser, "#config"))
    assert (config["backbone"], config["batch_size"]) == ("resnet18", "4")
    assert dict(texts(browser, "#environment"))["PyTorch"] == torch.__version__


@needs_browser
def test_curves_are_read_by_keyboard(painted, browser):
    folder, _ = painted
    show(browser, folder / "report.html")
    log = read_csv(folder / "log.csv")
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


@needs_browser
def test_masks_reach_the_page_to_the_bit(painted, browser):
    folder, volumes = painted
    show(browser, folder / "report.html")
    names = browser.execute_script("return data.viewer.subjects.map((s) => s.subject)")
    assert names == ["11", "3"]  # the worst first
    for volume in volumes:
        k = names.index(volume.subject)
        np.testing.assert_array_equal(decoded(browser, k, "truth"), volume.target[[0, 1, 2, 4]])
        np.testing.assert_array_equal(decoded(browser, k, "prediction"), volume.prediction[[0, 1, 2, 4]])


@needs_browser
def test_the_viewer_scrolls_and_toggles(painted, browser):
    folder, _ = painted
    show(browser, folder / "report.html")
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


@needs_browser
def test_outlines_and_dice_of_the_page_against_numpy(painted, browser):
    """The area inside the outlines (shoelace formula) and their length are those of the pixels."""
    folder, _ = painted
    show(browser, folder / "report.html")
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


@needs_browser
def test_errors_of_the_page_against_numpy(painted, browser):
    """All classes, then without the liver: counts in the legend of the errors view."""
    folder, volumes = painted
    show(browser, folder / "report.html")
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


@needs_browser
def test_tables_sort_worst_first(painted, browser):
    folder, _ = painted
    show(browser, folder / "report.html")
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


@needs_browser
@pytest.mark.parametrize("page", ["report.html", "comparison.html"])
def test_light_dark_and_narrow(painted, browser, tmp_path, page):
    folder, _ = painted
    path = folder / "report.html"
    if page == "comparison.html":
        shutil.copytree(folder, tmp_path / "a-run-with-a-rather-long-name-as-people-give-them")
        path = report.write_comparison([folder, next(tmp_path.iterdir())], tmp_path / "compared")
    colors = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    overflow = "return document.documentElement.scrollWidth - innerWidth"
    found = []
    for dark in (False, True):
        show(browser, path, width=360, dark=dark)
        assert browser.execute_script(overflow) <= 0
        found.append(browser.execute_script(colors))
        assert _least_contrast(browser) >= 4.5
        check_silence(browser, path)
    assert found[0] != found[1]


def _least_contrast(browser) -> float:
    """WCAG's contrast of each element with text of its own against what is behind it; the least of them."""
    pairs = browser.execute_script(
        """
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const rgba = (color) => {
          canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const behind = (element) => {
          for (let e = element; e; e = e.parentElement) {
            const color = rgba(getComputedStyle(e).backgroundColor);
            if (color[3] === 255) return color;
          }
        };
        const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        return [...document.querySelectorAll('body *')].filter((e) => own(e) && e.getClientRects().length
          && !['SCRIPT', 'STYLE', 'NOSCRIPT', 'TITLE', 'title', 'OPTION'].includes(e.tagName)).map((e) => {
            const style = getComputedStyle(e);
            return [rgba(e instanceof SVGElement ? style.fill : style.color), behind(e)];
          });
        """
    )

    def luminance(color):
        channels = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3]]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    assert len(pairs) > 20
    lights = [sorted((luminance(text), luminance(ground))) for text, ground in pairs]
    return min((high + 0.05) / (low + 0.05) for low, high in lights)


# ---------------------------------------------------------------- odd data


def write_run(folder: Path, names: list[str], scores: list[dict], log: list[dict]) -> Path:
    """A run folder as main.py leaves it, with these scores."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG.to_dict())
    if log:
        write_csv(folder / "log.csv", log)
    if scores:
        write_csv(folder / "test.csv", scores)
        cost = {"parameters": 12, "best_epoch": 1, "epochs": 1, "seconds": 3.0, "memory_gib": 0.5}
        write_json(folder / "test.json", summarize(scores) | cost)
    return folder


def odd_scores(names: list[str], subjects: list[str]) -> list[dict]:
    """A class that is missed, one that is nowhere, the others right."""
    rng = np.random.default_rng(0)
    rows = []
    for subject in subjects:
        truth = rng.integers(0, len(names) + 1, (2, 8, 8))
        truth[(truth == len(names)) & (truth > 1)] = 0
        prediction = np.where(truth == 1, 0, truth)
        scored = score_subject(prediction, truth, ("background", *names))
        rows += [{"subject": subject} | row for row in scored]
    return rows


@needs_browser
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
    page = write_report(folder)
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


# ---------------------------------------------------------------- what goes into a page


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_slice_scores_against_the_metrics(seed, classes):
    rng = np.random.default_rng(seed)
    target, prediction = (rng.integers(0, rng.integers(1, classes + 1), (4, 3, 3)).astype(np.uint8) for _ in range(2))
    counts = confusion(Volume("1", prediction, target), classes)
    means = []
    for a, b in zip(prediction, target, strict=True):
        values = [dice(a == k, b == k) for k in range(1, classes)]
        known = [value for value in values if not math.isnan(value)]
        means.append(sum(known) / len(known) if known else math.nan)
    np.testing.assert_allclose(mean_dice(counts), means)
    worst = worst_slice(counts)
    known = [value for value in means if not math.isnan(value)]
    if known:
        assert means[worst] == pytest.approx(min(known))
        equal = [k for k, value in enumerate(means) if value == pytest.approx(min(known))]
        wrong = [(prediction[k] != target[k]).sum() for k in equal]
        assert (prediction[worst] != target[worst]).sum() == max(wrong)


def big_set(root: Path, subjects: int, noise: float) -> Shown:
    """Subjects of 40 slices of 256 x 256 with five classes, as arrays and files."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:256, :256]
    volumes = []
    for split in ("train", "val", "test"):
        for kind in ("Img", "GT"):
            (root / split / kind).mkdir(parents=True)
    for subject in range(subjects):
        target = np.zeros((40, 256, 256), np.uint8)
        for k in range(1, 5):
            z, y, x = rng.uniform((10, 60, 60), (30, 196, 196))
            radius = 30 * (1 - ((np.arange(40) - z) / 20) ** 2).clip(0)[:, None, None]
            target[(rows - y) ** 2 + (columns - x) ** 2 < radius**2 + rng.normal(0, 60, target.shape)] = k
        volumes.append(Volume(str(subject), np.roll(target, 3, axis=2), target))
        image = (60 + 30 * target + rng.normal(0, noise, target.shape)).clip(0, 255).astype(np.uint8)
        for z in range(40):
            split = "test" if z or subject > 1 else ("train", "val")[subject]
            name = f"Subj_{subject if split == 'test' else split}slice_{z}.png"
            Image.fromarray(image[z]).save(root / split / "Img" / name, compress_level=1)
            Image.fromarray(target[z] * 63).save(root / split / "GT" / name, compress_level=1)
    dataset = open_data(root).dataset("test")
    volumes = [Volume(v.subject, v.prediction[1:], v.target[1:]) if int(v.subject) < 2 else v for v in volumes]
    return Shown("test", dataset, volumes, {})


@pytest.mark.parametrize(("noise", "subjects", "kept"), [(6, 5, {5}), (80, 7, {4, 5, 6})])
def test_five_subjects_of_256_stay_below_15_mb(run, tmp_path, noise, subjects, kept):
    """With the noise of scans, all; of more and noisier subjects those that fit, and the page says how many not."""
    folder = tmp_path / "run"
    shutil.copytree(run[1], folder, ignore=shutil.ignore_patterns("*.pt"))
    page = write_report(folder, big_set(tmp_path / "data", subjects, noise))
    size = page.stat().st_size
    print(f"noise {noise}: {size / 1e6:.2f} MB")
    assert size < 15_000_000
    held = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])["viewer"]
    assert len(held["subjects"]) in kept and held["left_out"] == subjects - len(held["subjects"])


def test_a_subject_too_large_is_cut_to_slices_about_its_worst(run, tmp_path, monkeypatch):
    shown = big_set(tmp_path / "data", 2, 6)
    counts = {volume.subject: confusion(volume, 5) for volume in shown.volumes}
    whole = report.view(shown, list(shown.volumes[:1]), counts, 10**8)[0]
    cut = report.view(shown, list(shown.volumes), counts, 200_000)
    assert len(cut) == 1 and len(json.dumps(cut[0])) <= 200_000
    numbers = cut[0]["numbers"]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert whole["numbers"][whole["worst"]] == numbers[cut[0]["worst"]]


def test_the_page_does_not_depend_on_the_locale(tmp_path):
    """Some libraries set the C locale, in which files would be ASCII."""
    folder = write_run(tmp_path / "run", ["liver"], odd_scores(["liver"], ["1"]), [])
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "C")
        page = write_report(folder)
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert " ± " in page.read_text(encoding="utf-8")


def test_colors_are_those_of_the_figures():
    style = (report.PAGE / "style.css").read_text(encoding="utf-8")
    assert tuple(re.findall(r"--okabe-\d: (#\w{6})", style)) == figures.COLORS


# ---------------------------------------------------------------- inside the network


@pytest.mark.parametrize(("variant", "fine_decoder"), [("paper", False), ("released", False), ("paper", True)])
def test_maps_are_those_of_the_plain_formulation(variant, fine_decoder):
    """Attention against a row of the N x N map that the plain formulation computes; predictions against the logits."""
    torch.manual_seed(0)
    model = build_model(Config(backbone="resnet18", variant=variant, fine_decoder=fine_decoder)).eval()
    image, point = torch.rand(1, 1, 50, 70), (21, 37)
    seen = {}
    layer = model.steps[1].position[2][1]
    layer.register_forward_hook(lambda module, inputs, output: seen.setdefault("x", inputs[0]))
    found = inspect(model, image, point)
    assert all(not module._forward_hooks for module in model.modules() if module is not layer)
    with torch.no_grad():
        np.testing.assert_array_equal(found.refined[-1], model(image).argmax(1)[0])
        q, k = layer.query(seen["x"]).flatten(2), layer.key(seen["x"]).flatten(2)
        whole = (q.mT @ k).softmax(-1)[0]
        height, width = seen["x"].shape[-2:]
        expected = whole[point[0] // 4 * width + point[1] // 4].reshape(height, width)[:13, :18]
    torch.testing.assert_close(found.steps[1].attention[2], expected)
    assert [len(part) for step in found.steps for part in step] == [SCALES] * 6
    assert all(part.shape == (13, 18) for step in found.steps for maps in step for part in maps)
    assert [len(found.raw), len(found.refined)] == [SCALES + 1] * 2
    # In train mode the network gives raw maps and reconstructions itself; batch normalization is fixed for that.
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    with torch.no_grad():
        output = model(image)
    for scale in range(SCALES):
        np.testing.assert_array_equal(found.raw[scale], output.raw[scale].argmax(1)[0])
        magnitude = output.reconstructions[SCALES + scale][1].abs().mean(1)[0]
        torch.testing.assert_close(found.steps[1].reconstruction[scale], magnitude[:13, :18])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"guidance": False}, [4, 0, 0]),
        ({"encoder_decoder": False}, [4, 0, 4]),
        ({"position_attention": False}, [0, 4, 4]),
        ({"deep_supervision": False}, [4, 4, 4]),
    ],
)
def test_ablations_have_the_maps_of_their_parts(options, parts):
    model = build_model(Config(backbone="resnet18", steps=1, **options))
    found = inspect(model, torch.rand(1, 1, 48, 48), (3, 4))
    assert [len(part) for part in found.steps[0]] == parts
    assert len(found.raw) == (0 if "deep_supervision" in options else 5)


def test_networks_that_do_not_refine_have_no_maps():
    assert inspect(build_model(Config(model="daf", backbone="resnet18")), torch.rand(1, 1, 48, 48), (3, 4)) is None


@needs_browser
def test_maps_show_in_the_page(run, browser):
    """One of them in the browser, pixel by pixel: classes in their colors, background transparent."""
    _, folder = run
    show(browser, folder / "report.html")
    titles = browser.execute_script("return [...document.querySelectorAll('#maps h3')].map((h) => h.textContent)")
    steps = [f"{what}, step {k}" for k in (1, 2) for what in ("Position attention", "Semantic reconstruction", "Guide")]
    assert titles == ["Truth", "Raw prediction", "Refined prediction", *steps]
    assert browser.execute_script("return [...document.images].every((i) => i.naturalWidth > 0)")
    classes = np.random.default_rng(0).integers(0, 12, (5, 6)).astype(np.uint8)
    shown = np.array(browser.execute_async_script(
        "const image = new Image(); const done = arguments[1]; image.onload = () => {"
        "const c = document.createElement('canvas').getContext('2d'); c.drawImage(image, 0, 0);"
        "done([...c.getImageData(0, 0, 6, 5).data]) }; image.src = 'data:image/png;base64,' + arguments[0]",
        report.encode_classes(classes),
    )).reshape(5, 6, 4)  # fmt: skip
    np.testing.assert_array_equal(shown[..., 3], np.where(classes > 0, 255, 0))
    for k in range(1, 12):
        color = [int(figures.COLORS[(k - 1) % 8][i : i + 2], 16) for i in (1, 3, 5)]
        assert (shown[classes == k][:, :3] == color).all()


# ---------------------------------------------------------------- again, during, several, TensorBoard, paper


def test_the_command_writes_the_same_page_again(run, tmp_path, capsys):
    _, folder = run
    first = (folder / "report.html").read_text(encoding="utf-8")
    again = tmp_path / folder.name
    shutil.copytree(folder, again)
    (again / "report.html").unlink()
    report.main(report.Options((again,), device="cpu"))
    assert (again / "report.html").read_text(encoding="utf-8") == first
    config = json.loads((again / "config.json").read_text())
    write_json(again / "config.json", config | {"data": str(tmp_path / "gone")})
    capsys.readouterr()
    report.main(report.Options((again,), device="cpu"))
    printed = capsys.readouterr().out
    assert "note: no slices in the page: " in printed and "gone" in printed
    assert '"viewer":null' in (again / "report.html").read_text(encoding="utf-8")


def test_a_run_that_goes_on_has_a_page_of_its_validation(run, tmp_path):
    data, folder = run
    opened = open_data(data)
    dataset = opened.dataset("val")
    target = np.stack([dataset[k][1].numpy() for k in range(4)]).astype(np.uint8)[[0, 1, 2, 2, 3]]
    out = tmp_path / "run"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.pt", "test.*"))
    page = write_report(out, Shown("val", dataset, [Volume("2", target, target)], {}))
    held = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])
    assert held["test"] is None and held["viewer"]["split"] == "val"
    assert [s["subject"] for s in held["viewer"]["subjects"]] == ["2"]
    assert held["viewer"]["subjects"][0]["dice"] == [1, 1, 1, 1]


@needs_browser
def test_the_page_of_several_runs(tmp_path, browser):
    rng = np.random.default_rng(1)
    runs, values = [], {}
    for name, shift in (("ours", 0.1), ("unet", 0.0), ("daf", 0.05)):
        values[name] = rng.uniform(0.4, 0.8, (6, 2)) + shift
        rows = [
            {"subject": str(s), "class": c, "dsc": v, "vs": v, "msd": 3 - v, "assd": 3 - v, "hd95": 9 - v}
            for s, pair in enumerate(values[name].tolist()) for c, v in zip(("liver", "spleen"), pair, strict=True)
        ]  # fmt: skip
        log = [{"epoch": k, "total": 1 / k, "val_dsc": 0.1 * k, "seconds": 1.0} for k in range(1, 2 + len(runs))]
        runs.append(write_run(tmp_path / name, ["liver", "spleen"], rows, log))
    write_json(tmp_path / "unet" / "config.json", replace(CONFIG, model="unet").to_dict())
    report.main(report.Options(tuple(runs), out=tmp_path / "compared"))
    page = tmp_path / "compared" / "report.html"
    show(browser, page)
    check_silence(browser, page)
    table = {row[0]: row for row in texts(browser, "#runs")[1:]}
    for name, of_run in values.items():
        means = 100 * of_run.mean(1)
        assert table[name][1] == f"{means.mean():.2f} ± {means.std(ddof=1):.2f}"
    tests = {(row[0], row[1]): row for row in texts(browser, "#tests")[1:]}
    from scipy.stats import wilcoxon

    difference = (values["unet"] - values["ours"]).mean(1)
    row = tests["unet", "DSC"]
    assert float(row[3].replace(MINUS, "-")) == pytest.approx(100 * difference.mean(), abs=0.006)
    assert row[4] == f"{wilcoxon(difference).pvalue:.3f}"
    assert {name for name, _ in tests} == {"unet", "daf"}
    header, *rows = texts(browser, "#classes")
    assert header == ["class", "unet", "daf", "ours"]
    spleen = 100 * values["daf"][:, 1]
    assert rows[1][2] == f"{spleen.mean():.2f} ± {spleen.std(ddof=1):.2f}"
    worst = [row[0] for row in texts(browser, "#subjects")[1:]]
    assert worst == [str(k) for k in np.argsort(values["ours"].mean(1))]
    assert texts(browser, "#differences")[1:] == [["model", "unet", "ms_dual_guided", "ms_dual_guided"]]


def test_tensorboard_has_the_scalars_of_the_log_and_overlays(run):
    _, folder = run
    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    log = read_csv(folder / "log.csv")
    assert set(events.Tags()["scalars"]) == log[0].keys() - {"epoch"}
    for key in log[0].keys() - {"epoch"}:
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(int(row["epoch"]), pytest.approx(float(row[key]), rel=1e-5, nan_ok=True)) for row in log]
    (tag,) = events.Tags()["images"]
    images = events.Images(tag)
    assert [image.step for image in images] == [1, 2]
    assert (images[0].width, images[0].height) == (2 * 64, 48)


def test_figures_for_a_paper(run, tmp_path):
    _, folder = run
    other = tmp_path / "baseline"
    shutil.copytree(folder, other)
    report.main(report.Options((folder, other), figure=tmp_path / "figures", device="cpu"))
    for name in ("grid", "boxes"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
            assert image.width == pytest.approx(300 * 7.16, abs=2)
        pdf = (tmp_path / "figures" / f"{name}.pdf").read_bytes()
        assert b"/Subtype /Type0" in pdf or b"/CIDFontType2" in pdf or b"/TrueType" in pdf  # text, not outlines
        assert b"/Type3" not in pdf


@pytest.mark.parametrize("command", ["page", "figure", "several", "none"])
def test_mistakes_of_the_user(run, tmp_path, command):
    runs, options = {
        "page": ((tmp_path,), {}),
        "figure": ((tmp_path,), {"figure": tmp_path / "figures"}),
        "several": ((run[1], run[1]), {}),
        "none": ((), {}),
    }[command]
    expected = {"several": "twice", "none": "no runs"}.get(command, re.escape(str(tmp_path)))
    with pytest.raises(InputError, match=expected):
        report.main(report.Options(runs, out=tmp_path / "out", device="cpu", **options))
    assert not any(tmp_path.iterdir())


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.floats(0, 0.1))
@settings(max_examples=60, deadline=None)
def test_a_row_of_the_grid_shows_all_that_is_marked(seed, shape, share):
    marked = np.random.default_rng(seed).random(shape) < share
    window = figures._window(marked)
    assert marked[window].sum() == marked.sum()
    for part, size in zip(window, shape, strict=True):
        assert 0 <= part.start < part.stop <= size
        assert part.stop - part.start >= min(size, max(shape) // 2)


def test_overlay_is_half_image_half_color():
    image = np.array([[0.0, 1.0, 0.5]])
    pixels = figures.overlay(image, np.array([[0, 1, 9]], np.uint8))
    orange = [0xE6, 0x9F, 0x00]  # class 9 has the color of class 1 again
    expected = [[0, 0, 0], [(255 + c) / 2 for c in orange], [(127.5 + c) / 2 for c in orange]]
    np.testing.assert_allclose(pixels[0], expected, atol=0.51)
