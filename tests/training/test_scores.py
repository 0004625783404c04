"""test.csv and test.json: what the description of a data set adds to them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from medpy.metric import binary

from data.folder import open_data
from data.volumes import Volume
from training.scores import write_test
from utils import read_csv

LABELS = {"background": 0, "liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}
DESCRIPTION = {
    "labels": LABELS,
    "regions": {"kidneys": ["right kidney", "left kidney"]},
    "tolerances": {"liver": 2.5, "kidneys": 3.0},
    "groups": {"3": "patient 7", "1": "patient 8"},
    "subjects": {subject: {"spacing": [1.5, 1.25, 4.0]} for subject in ("3", "4")},
}


@pytest.mark.parametrize("described", [True, False])
def test_what_dataset_json_says_is_in_the_scores(make_data, tmp_path, described):
    root = make_data({"train": ["1"], "val": ["2"], "test": ["3", "4"]})
    if described:
        (root / "dataset.json").write_text(json.dumps(DESCRIPTION))
    rng, out = np.random.default_rng(1), tmp_path / "run"
    out.mkdir()
    volumes = [Volume(subject, *rng.integers(0, 5, (2, 2, 40, 48)).astype(np.uint8)) for subject in ("3", "4")]
    summary = write_test(out, volumes, open_data(root), {"epochs": 3, "best_epoch": None})
    rows, stored = read_csv(out / "test.csv"), json.loads((out / "test.json").read_text())
    assert (stored["epochs"], stored["best_epoch"], stored["per_image"], stored["subjects"]) == (3, None, False, 2)
    assert summary.keys() == stored.keys()
    classes = list(LABELS)[1:]
    tolerances = dict.fromkeys(classes, 1.0)
    if not described:
        assert not {"group", "region", "nsd_mm", "assd"} & rows[0].keys()
        assert "per_region" not in stored
        assert [row["class"] for row in rows] == classes * 2
        assert stored["tolerances_mm"] == tolerances
        return
    assert stored["tolerances_mm"] == tolerances | {"liver": 2.5, "kidneys": 3.0}
    assert list(rows[0])[:5] == ["subject", "group", "class", "region", "missed"]
    assert [row["class"] for row in rows] == [*classes, "kidneys"] * 2
    assert {(row["subject"], row["group"]) for row in rows} == {("3", "patient 7"), ("4", "4")}
    for volume, row in zip(volumes, rows[4::5], strict=True):
        assert row["region"] == "True"
        pair = [np.isin(labels, (2, 3)) for labels in (volume.prediction, volume.target)]
        assert float(row["dsc"]) == pytest.approx(binary.dc(*pair))
        assert float(row["msd_mm"]) == pytest.approx(binary.assd(*pair, (4.0, 1.25, 1.5)))
        assert float(row["nsd"]) < float(row["nsd_mm"])  # 3 mm are two pixels, not one
    mean = stored["per_region"]["kidneys"]["dsc"]["mean"]
    assert mean == pytest.approx(np.mean([float(row["dsc"]) for row in rows[4::5]]))
    overall = np.mean([float(row["dsc"]) for row in rows if row["class"] != "kidneys"])
    assert stored["overall"]["dsc"]["mean"] == pytest.approx(overall)
