"""What goes into the page of a run."""

from __future__ import annotations

import locale
import shutil

import numpy as np
import pytest

from data.folder import open_data
from data.volumes import Volume
from reporting.run_page import write_page
from reporting.viewer import Segmented
from tests.helpers.pages import big_set, held, odd_scores, write_run


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "subjects", "kept"), [(6, 5, {5}), (80, 7, {4, 5, 6})])
def test_five_subjects_of_256_stay_below_15_mb(run, tmp_path, noise, subjects, kept):
    """With the noise of scans, all; of more and noisier subjects those that fit, and the page says how many not."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.pt"))
    page = write_page(folder, big_set(tmp_path / "data", subjects, noise))
    size = page.stat().st_size
    print(f"noise {noise}: {size / 1e6:.2f} MB")
    assert size < 15_000_000
    viewer = held(page)["viewer"]
    assert len(viewer["subjects"]) in kept and viewer["left_out"] == subjects - len(viewer["subjects"])


def test_the_page_does_not_depend_on_the_locale(tmp_path):
    """Some libraries set the C locale, in which files would be ASCII."""
    folder = write_run(tmp_path / "run", ["liver"], odd_scores(["liver"], ["1"]), [])
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "C")
        page = write_page(folder)
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert " ± " in page.read_text(encoding="utf-8")


def test_a_run_that_goes_on_has_a_page_of_its_validation(data, run, tmp_path):
    opened = open_data(data)
    dataset = opened.dataset("val")
    target = np.stack([dataset[k][1].numpy() for k in range(4)]).astype(np.uint8)[[0, 1, 2, 2, 3]]
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("*.pt", "test.*"))
    page = write_page(out, Segmented("val", dataset, [Volume("2", target, target)], opened.geometry))
    content = held(page)
    assert content["test"] is None and content["viewer"]["split"] == "val"
    assert [s["subject"] for s in content["viewer"]["subjects"]] == ["2"]
    assert content["viewer"]["subjects"][0]["dice"] == [1, 1, 1, 1]
