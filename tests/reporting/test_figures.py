"""Figures for a paper, and pictures of a run."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import evaluate
import report
from data.dataset import Slice, SliceDataset
from data.description import Labels
from data.geometry import Geometry
from data.volumes import Volume
from experiments.given_rows import Row
from experiments.results import MEAN
from inference.evaluation import Sources
from metrics import METRICS
from reporting import figures, paper
from reporting.encoding import encode_image
from reporting.run_page import PAGE
from reporting.viewer import Segmented
from tests.helpers.errors import assert_clear
from utils import InputError, write_json


@pytest.mark.slow
def test_figures_for_a_paper(run, tiny, tmp_path):
    other = tmp_path / "baseline"
    shutil.copytree(run, other)
    report.main(report.Options((str(run), str(other)), figure=tmp_path / "figures", device="cpu"))
    for name in ("grid", "boxes"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
            assert image.width == pytest.approx(300 * 7.16, abs=2)
        pdf = (tmp_path / "figures" / f"{name}.pdf").read_bytes()
        assert b"/Subtype /Type0" in pdf or b"/CIDFontType2" in pdf or b"/TrueType" in pdf  # text, not outlines
        assert b"/Type3" not in pdf


def test_a_subject_is_shown_by_the_fold_that_tested_it(monkeypatch):
    """The first of several, where seeds test it again."""
    tested = {"a": ["1", "2"], "b": ["3", "1"]}

    def segment(folder, _):
        classes = np.full((1, 2, 2), ord(folder.name), np.uint8)
        volumes = [Volume(subject, classes, classes) for subject in tested[folder.name]]
        labels = SimpleNamespace(names=("background",))
        return Segmented(folder.name, SimpleNamespace(labels=labels), volumes, {}), None

    monkeypatch.setattr(paper, "segment_run", segment)
    found = paper._segment_row(Row("ours", (Path("a"), Path("b"))), "cpu", [])
    assert {subject: (of.split, chr(volume.prediction[0, 0, 0])) for subject, (of, volume) in found.items()} == {
        "1": ("a", "a"), "2": ("a", "a"), "3": ("b", "b")
    }  # fmt: skip


@pytest.fixture
def evaluated(data, tmp_path):
    """Runs of evaluate.py, of the truth as its own segmentation: classes in two orders, and another truth."""
    found = {}
    for name in ("ours", "reordered", "mirrored"):
        copy = shutil.copytree(data, tmp_path / f"{name}-data")
        names = ["background", "liver", "right kidney", "left kidney", "spleen"]
        codes = [0, 63, 126, 189, 252]
        if name == "reordered":
            names, codes = names[:1] + names[:0:-1], codes[:1] + codes[:0:-1]
        (copy / "dataset.json").write_text(json.dumps({"labels": dict(zip(names, codes, strict=True))}))
        for path in copy.glob("test/GT/*.png") if name == "mirrored" else ():
            with Image.open(path) as picture:
                mirrored = ImageOps.mirror(picture)
            mirrored.save(path)
        found[name] = tmp_path / name
        evaluate.main(evaluate.Options(Sources(copy / "test", copy / "test"), found[name]))
    return found


def test_a_class_has_one_color_in_all_rows_of_the_grid(evaluated, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(paper, "save_grid", lambda path, rows, *_: lines.extend(rows))
    monkeypatch.setattr(paper, "save_boxes", lambda *_: None)
    rows = tuple(str(evaluated[name]) for name in ("ours", "reordered"))
    report.main(report.Options(rows, figure=tmp_path / "figures"))
    for line in lines:
        truth, *segmentations = line.overlays
        assert set(np.unique(truth)) == {0, 1, 2, 3, 4}
        for segmentation in segmentations:
            np.testing.assert_array_equal(segmentation, truth)


def test_rows_with_other_truths_share_no_grid(evaluated, tmp_path):
    rows = tuple(str(evaluated[name]) for name in ("ours", "mirrored"))
    with pytest.raises(InputError) as caught:
        report.main(report.Options(rows, figure=tmp_path / "figures"))
    assert_clear(caught.value, "mirrored", "truth of subject", "that of ours")


def test_slices_that_were_changed_are_not_shown(run, data, tiny, tmp_path, capsys):
    """Neither those of main.py nor, beside a new subject, those of evaluate.py."""
    folder, changed = shutil.copytree(run, tmp_path / "run"), shutil.copytree(data, tmp_path / "data")
    evaluate.main(evaluate.Options(Sources(changed / "test", changed / "test"), tmp_path / "evaluated"))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"data": str(changed)})
    for path in (changed / "test" / "GT").glob("Subj_3slice_*.png"):
        with Image.open(path) as picture:
            mirrored = ImageOps.mirror(picture)
        mirrored.save(path)
    report.main(report.Options((str(folder),), device="cpu"))
    assert f"note: no slices in the page: {changed}: has other slices of test than" in capsys.readouterr().out
    for kind in ("Img", "GT"):
        shutil.copy(changed / "test" / kind / "Subj_3slice_8.png", changed / "test" / kind / "Subj_5slice_8.png")
    report.main(report.Options((str(tmp_path / "evaluated"),), device="cpu"))
    assert "other subjects were scored than there are now" in capsys.readouterr().out


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are closed, as they were."""
    closed = []
    monkeypatch.setattr(plt, "close", closed.append)
    yield closed
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize(("width", "columns"), [(3, 2), (7, 4)])
def test_the_legend_of_classes_lies_within_the_figure(tmp_path, drawn, width, columns):
    names = ["background", "liver", "right kidney", "left kidney", "spleen"]
    figures._save(plt.figure(figsize=(width, 2), layout="constrained"), tmp_path / "figure.png", names)
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == names[1:]
    assert legend.get_window_extent().width <= drawn[0].bbox.width
    assert legend._ncols == columns


def test_box_plots_have_one_scale_and_hold_regions(tmp_path, drawn):
    values = {"a": {("liver", "dsc"): {"1": 95.0, "2": 90.0}, ("whole", "dsc"): {"1": 20.0, "2": float("nan")},
                    (MEAN, "dsc"): {"1": 95.0, "2": 90.0}}}  # fmt: skip
    figures.save_boxes(tmp_path / "boxes.png", values, ["liver", "whole"], METRICS["dsc"])
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["liver, DSC %", "whole, DSC %", "mean, DSC %"]
    assert len({axis.get_xlim() for axis in axes}) == 1
    low, high = axes[0].get_xlim()
    assert low < 20 and high > 95
    points = [line.get_xdata() for line in axes[1].lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(points, [[20.0]])


def test_curves_show_single_epochs_folds_and_what_lies_on_each_other(tmp_path, drawn):
    hours, dice = np.array([0.5, 1.0, 1.5]), np.array([10.0, np.nan, 30.0])
    rows = {"one": [(hours[:1], dice[:1])], "folds": [(hours, dice), (3 * hours[:2], dice[:2] + 2)],
            "same": [(hours, dice)], "again": [(hours, dice)], "scored": []}  # fmt: skip
    figures.save_curves(tmp_path / "curves.png", rows)
    epochs, time = drawn[0].axes
    for axis, x in ((epochs, [1.0]), (time, [1.0])):
        one, first, second, mean, same, again = axis.lines
        assert len(one.get_xdata()) == 1 and one.get_marker() not in ("", "None", None)
        assert first.get_linewidth() == second.get_linewidth() < mean.get_linewidth()
        assert first.get_color() == second.get_color() == mean.get_color()
        np.testing.assert_array_equal(mean.get_xdata(), x)  # of the epochs that both have: (0.5 h + 1.5 h) / 2
        np.testing.assert_array_equal(mean.get_ydata(), [11.0])
        np.testing.assert_array_equal(same.get_ydata(), [10.0, 30.0])  # an epoch without validation is left out
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in (one, mean, same, again)}
        assert len(looks) == 4 and same.get_marker() != again.get_marker()
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "folds", "same", "again"]


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.floats(0, 0.1))
@settings(max_examples=60, deadline=None)
def test_a_row_of_the_grid_shows_all_that_is_marked(seed, shape, share):
    marked = np.random.default_rng(seed).random(shape) < share
    window = figures._window(marked, 1.0)
    assert marked[window].sum() == marked.sum()
    for part, size in zip(window, shape, strict=True):
        assert 0 <= part.start < part.stop <= size
        assert part.stop - part.start >= min(size, max(shape) // 2)


@pytest.mark.parametrize(("aspect", "rows", "columns"), [(1.0, 40, 40), (4.0, 30, 80), (0.5, 60, 40), (2.0, 30, 60)])
def test_a_row_of_the_grid_is_a_square_of_the_body(aspect, rows, columns):
    """60 x 80 pixels, `aspect` mm high and 1 mm wide: half of the longer side each way, as far as there are pixels."""
    marked = np.zeros((60, 80), bool)
    marked[30, 40] = True
    window = figures._window(marked, aspect)
    assert [part.stop - part.start for part in window] == [rows, columns]


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 2.0), (0.5, 2.0, 1.0)])
def test_pixels_have_the_sides_of_the_scan(tmp_path, monkeypatch, spacing):
    """A square of 20 x 20 pixels is drawn as high by wide as its pixels are."""
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, *_, **__: drawn.append(figure))
    geometry = Geometry(spacing=spacing)
    classes = np.ones((2, 20, 20), np.uint8)
    images = np.zeros((1, 2, 20, 20), np.float32)
    figures.save_montage(tmp_path / "a.png", images, classes, ("background", "a"), geometry.pixel_aspect)
    row = figures.GridRow("a", images[:, 0], [classes[0]], geometry.pixel_aspect)
    figures.save_grid(tmp_path / "b.png", [row], ["truth"], ("background", "a"))
    height = spacing[1] / spacing[0] if spacing else 1
    for figure in drawn:
        figure.canvas.draw()
        for axis in figure.axes:
            box, rows, columns = axis.get_window_extent(), *axis.images[0].get_array().shape[:2]
            assert box.height / box.width == pytest.approx(height * rows / columns, rel=1e-3)


def test_overlay_is_half_image_half_color():
    image = np.array([[[0.0, 1.0, 0.5]]])
    pixels = figures.blend(image, np.array([[0, 1, 9]], np.uint8))
    orange = [0xE6, 0x9F, 0x00]  # class 9 has the color of class 1 again
    expected = [[0, 0, 0], [(255 + c) / 2 for c in orange], [(127.5 + c) / 2 for c in orange]]
    np.testing.assert_allclose(pixels[0], expected, atol=0.51)


def test_rgb_is_shown_in_color(tmp_path):
    """In TensorBoard's overlays, in montages and on pages; three channels of one file, not of three."""
    image = np.array([1.0, 0.5, 0.0])[:, None, None].repeat(40, 1).repeat(40, 2)
    red = np.rint(255 * image[:, 0, 0]).astype(np.uint8)
    np.testing.assert_array_equal(figures.blend(image, np.zeros((40, 40), np.uint8))[0, 0], red)
    Image.fromarray(np.broadcast_to(red, (40, 40, 3)).copy()).save(tmp_path / "red.png")
    item = Slice("1", 1, (tmp_path / "red.png",), tmp_path / "red.png")
    dataset = SliceDataset([item], Labels.indexed(("background", "a"), (0, 1)))
    with Image.open(io.BytesIO(base64.b64decode(encode_image(dataset, 0)))) as picture:
        np.testing.assert_allclose(np.asarray(picture)[20, 20], red, atol=2)
    figures.save_montage(tmp_path / "montage.png", image[:, None], np.zeros((1, 40, 40), np.uint8), ("background", "a"))
    with Image.open(tmp_path / "montage.png") as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert (abs(shown - red) < 3).all(-1).mean() > 0.1


def test_colors_are_those_of_the_figures():
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    assert tuple(re.findall(r"--okabe-\d: (#\w{6})", style)) == figures.COLORS
