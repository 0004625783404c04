"""The maps of the refinement in a page."""

from __future__ import annotations

import numpy as np
import pytest

from data.colors import COLORS
from data.folder import open_data
from data.geometry import Geometry
from models import build_model
from reporting.encoding import encode_classes
from reporting.inside import deepest, look_inside
from reporting.viewer import confusion
from tests.helpers.browser import needs_browser, show
from tests.helpers.networks import TinyNetwork
from tests.helpers.pages import CLASSES, CONFIG


@pytest.mark.slow
@needs_browser
def test_maps_show_in_the_page(refined, browser):
    """One of them in the browser, pixel by pixel: classes in their colors, background transparent."""
    show(browser, refined / "report.html")
    titles = browser.execute_script("return [...document.querySelectorAll('#maps h3')].map((h) => h.textContent)")
    steps = [f"{what}, step {k}" for k in (1, 2) for what in ("Position attention", "Semantic reconstruction", "Guide")]
    assert titles == ["Truth", "Raw prediction", "Refined prediction", *steps]
    assert browser.execute_script("return [...document.images].every((i) => i.naturalWidth > 0)")
    classes = np.random.default_rng(0).integers(0, 12, (5, 6)).astype(np.uint8)
    shown = np.array(browser.execute_async_script(
        "const image = new Image(); const done = arguments[1]; image.onload = () => {"
        "const c = document.createElement('canvas').getContext('2d'); c.drawImage(image, 0, 0);"
        "done([...c.getImageData(0, 0, 6, 5).data]) }; image.src = 'data:image/png;base64,' + arguments[0]",
        encode_classes(classes),
    )).reshape(5, 6, 4)  # fmt: skip
    np.testing.assert_array_equal(shown[..., 3], np.where(classes > 0, 255, 0))
    for k in range(1, 12):
        color = [int(COLORS[(k - 1) % 8][i : i + 2], 16) for i in (1, 3, 5)]
        assert (shown[classes == k][:, :3] == color).all()


def test_attention_is_shown_at_the_pixel_deepest_inside_a_class():
    target = np.zeros((11, 14), np.uint8)
    target[1:4, 1:4], target[2:9, 5:12] = 1, 2
    assert deepest(target) == (5, 8)
    wide = np.zeros((11, 40), np.uint8)
    wide[2:9, 5:12], wide[9:] = 2, 3  # 2 is deeper, 3 has more pixels
    assert wide[deepest(wide)] == 3
    at_edge = np.zeros_like(target)
    at_edge[:5, :5] = 1  # beyond the edge is no organ
    assert deepest(at_edge) == (2, 2)
    assert deepest(np.zeros_like(target)) == (5, 7)


def test_the_worst_and_the_fullest_slice_are_looked_into(data, volumes):
    dataset = open_data(data).dataset("test")
    prediction = volumes[0].target.copy()
    prediction[0] = 0  # number 8; the organs are largest in number 12
    volume = volumes[0]._replace(prediction=prediction)
    counts = confusion(volume, len(CLASSES))
    found = look_inside(build_model(CONFIG), dataset, volume, counts, Geometry())
    assert [(slice_["kind"], slice_["number"]) for slice_ in found] == [("fullest", 12), ("most errors", 8)]
    for slice_, k in zip(found, (4, 0), strict=True):  # the cross is on the largest organ
        column, row = slice_["point"]
        sizes = np.bincount(volume.target[k].ravel())[1:]
        assert sizes[volume.target[k][int(row * 48), int(column * 64)] - 1] == sizes.max()
    assert look_inside(TinyNetwork(1, len(CLASSES)), dataset, volume, counts, Geometry()) == []
