"""Figures for a paper, and pictures of a run."""

from __future__ import annotations

import base64
import io
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import report
from reporting import figures
from reporting.encoding import encode_image
from reporting.run_page import PAGE


@pytest.mark.slow
def test_figures_for_a_paper(run, tiny, tmp_path):
    other = tmp_path / "baseline"
    shutil.copytree(run, other)
    report.main(report.Options((run, other), figure=tmp_path / "figures", device="cpu"))
    for name in ("grid", "boxes"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
            assert image.width == pytest.approx(300 * 7.16, abs=2)
        pdf = (tmp_path / "figures" / f"{name}.pdf").read_bytes()
        assert b"/Subtype /Type0" in pdf or b"/CIDFontType2" in pdf or b"/TrueType" in pdf  # text, not outlines
        assert b"/Type3" not in pdf


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
    image = np.array([[[0.0, 1.0, 0.5]]])
    pixels = figures.overlay(image, np.array([[0, 1, 9]], np.uint8))
    orange = [0xE6, 0x9F, 0x00]  # class 9 has the color of class 1 again
    expected = [[0, 0, 0], [(255 + c) / 2 for c in orange], [(127.5 + c) / 2 for c in orange]]
    np.testing.assert_allclose(pixels[0], expected, atol=0.51)


def test_rgb_is_shown_in_color(tmp_path):
    """In TensorBoard's overlays, in montages and on pages; three channels of one file, not of three."""
    image = np.array([1.0, 0.5, 0.0])[:, None, None].repeat(40, 1).repeat(40, 2)
    red = np.rint(255 * image[:, 0, 0]).astype(np.uint8)
    np.testing.assert_array_equal(figures.overlay(image, np.zeros((40, 40), np.uint8))[0, 0], red)
    Image.fromarray(np.broadcast_to(red, (40, 40, 3)).copy()).save(tmp_path / "red.png")
    with Image.open(io.BytesIO(base64.b64decode(encode_image(tmp_path / "red.png")))) as picture:
        np.testing.assert_allclose(np.asarray(picture)[20, 20], red, atol=2)
    figures.save_montage(tmp_path / "montage.png", image[:, None], np.zeros((1, 40, 40), np.uint8), ("background", "a"))
    with Image.open(tmp_path / "montage.png") as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert (abs(shown - red) < 3).all(-1).mean() > 0.1


def test_colors_are_those_of_the_figures():
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    assert tuple(re.findall(r"--okabe-\d: (#\w{6})", style)) == figures.COLORS
