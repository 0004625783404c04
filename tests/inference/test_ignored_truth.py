"""Voxels that nobody annotated, in truths that evaluate.py reads."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from inference.evaluation import Evaluation, Sources
from metrics import score_subject
from utils import InputError

NAMES = ("background", "a")


def test_truths_of_nnunet_are_scored_where_they_are_annotated(tmp_path):
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 2, (2, 12, 10, 6)).astype(np.uint8)
    truth[5:] = 4
    for side, array in (("truth", truth), ("predictions", prediction)):
        (tmp_path / side).mkdir()
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / side / "s.nii.gz")
    table = {"labels": {"background": 0, "a": 1, "ignore": 4}, "channel_names": {"0": "CT"}}
    (tmp_path / "truth" / "dataset.json").write_text(json.dumps(table))
    evaluation = Evaluation(Sources(tmp_path / "predictions", tmp_path / "truth"))
    volume = evaluation.compare("s").volume
    (row,) = score_subject(volume.prediction, volume.target, NAMES)
    hits, sizes = np.count_nonzero(truth[:5] & prediction[:5]), np.count_nonzero(truth[:5]) + prediction[:5].sum()
    assert row["dsc"] == pytest.approx(2 * hits / sizes)
    between = {"labels": {"background": 0, "ignore": 1, "a": 2}}  # by their order, class a is 1 in volumes
    (tmp_path / "between.json").write_text(json.dumps(between))
    with pytest.raises(InputError, match="by their order or by their numbers; add values"):
        Evaluation(Sources(tmp_path / "predictions", tmp_path / "truth", labels=tmp_path / "between.json"))
    nib.save(nib.Nifti1Image(truth, np.eye(4)), tmp_path / "predictions" / "s.nii.gz")
    with pytest.raises(InputError, match="holds the value of ignore"):
        evaluation.compare("s")
