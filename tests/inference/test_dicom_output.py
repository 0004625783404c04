"""predict.py --dicom: segmentations of DICOM folders as DICOM segmentations, which evaluate.py reads."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

import evaluate
import predict
from inference.evaluation import Sources
from tests.helpers.errors import error_of
from tests.helpers.files import tree
from tests.helpers.scans import read_array, save_series
from tests.helpers.trained import Trained
from training.checkpoint import load_checkpoint
from utils import read_csv

PIXELS = np.random.default_rng(0).integers(0, 500, (3, 34, 40)).astype(np.uint16)


def options(trained: Trained, out: Path, *scans: Path) -> predict.Options:
    """python predict.py best.pt SCAN ... --out OUT --dicom."""
    return predict.Options(str(trained.checkpoint), tuple(map(str, scans)), out, device="cpu", dicom=True)


def test_a_segmentation_is_that_of_the_nifti_file(trained, tmp_path, capsys):
    """The scan that it cannot be written for is said, and the others are done."""
    highdicom = pytest.importorskip("highdicom")
    direction = Rotation.from_euler("xyz", (80, 15, 100), degrees=True).as_matrix()
    good = save_series(tmp_path / "in" / "good", PIXELS, direction)
    save_series(tmp_path / "in" / "bad", PIXELS, SOPInstanceUID="1.2.3")
    out = tmp_path / "out"
    scans = (tmp_path / "in" / "bad", tmp_path / "in" / "good", trained.test_scan)
    line = error_of(capsys, predict.main, options(trained, out, *scans))
    assert line.startswith("error: bad: not written as DICOM: ") and "two slices have one SOPInstanceUID" in line
    assert {path for path in tree(out) if path.endswith(".dcm")} == {"good.seg.dcm"}
    assert {"bad.nii.gz", "good.nii.gz", "image_s3.nii.gz"} <= tree(out)
    classes = read_array(out / "good.nii.gz")
    assert len(np.unique(classes)) > 2
    seg = highdicom.seg.segread(out / "good.seg.dcm")
    names = list(load_checkpoint(trained.checkpoint)["data"]["labels"])
    assert [seg.get_segment_description(number).segment_label for number in seg.segment_numbers] == names[1:]
    assert seg.get_segment_description(1).algorithm_identification.version == "run/best.pt"
    uids = [f"1.2.3.4.{k + 1}" for k in range(len(good))]
    found = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(found, classes)


def test_without_highdicom_no_scan_is_segmented(trained, tmp_path, monkeypatch, capsys):
    save_series(tmp_path / "in", PIXELS)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    line = error_of(capsys, predict.main, options(trained, tmp_path / "out", tmp_path / "in"))
    assert line == "error: --dicom: needs highdicom, which is not installed; pip install highdicom"
    assert not (tmp_path / "out").exists()


def test_what_is_no_dicom_folder_is_told(trained, tmp_path, capsys):
    options = predict.Options(str(trained.checkpoint), (str(trained.test_scan),), tmp_path, device="cpu")
    predict.main(options)
    assert "note" not in capsys.readouterr().out
    predict.main(replace(options, dicom_series=True))
    assert "note: image_s3: is no DICOM folder, so its segmentation is not written as DICOM" in capsys.readouterr().out
    assert not list(tmp_path.glob("*dicom*"))


def test_segments_are_scored_by_their_names(trained, tmp_path):
    """Where values of the truth have another order than the segments, which are numbered as the classes."""
    pytest.importorskip("highdicom")
    save_series(tmp_path / "in" / "a", PIXELS)
    predict.main(options(trained, tmp_path / "out", tmp_path / "in" / "a"))
    names = list(load_checkpoint(trained.checkpoint)["data"]["labels"])
    values = dict(zip(names, (0, 3, 1, 2), strict=True))
    image = sitk.ReadImage(tmp_path / "out" / "a.nii.gz")
    truth = sitk.GetImageFromArray(np.array(list(values.values()), np.uint8)[sitk.GetArrayFromImage(image)])
    truth.CopyInformation(image)
    (tmp_path / "truth").mkdir()
    sitk.WriteImage(truth, tmp_path / "truth" / "a.nii.gz")
    (tmp_path / "truth" / "dataset.json").write_text(json.dumps({"labels": values, "values": values}))
    arguments = {"prediction_names": "{subject}.seg.dcm"}
    evaluate.main(evaluate.Options(Sources(tmp_path / "out", tmp_path / "truth", **arguments), tmp_path / "run"))
    assert [float(row["dsc"]) for row in read_csv(tmp_path / "run" / "test.csv")] == [1, 1, 1]


def test_what_predict_writes_beside_segmentations_is_no_subject(trained, tmp_path, capsys):
    pytest.importorskip("highdicom")
    save_series(tmp_path / "in" / "a", PIXELS)
    out = tmp_path / "out"
    all_kinds = replace(options(trained, out, tmp_path / "in" / "a"), dicom_series=True, probabilities=True)
    predict.main(all_kinds)
    assert {"a_overlay.png", "a_probabilities.nii.gz", "a.seg.dcm", "a_dicom"} <= {path.name for path in out.iterdir()}
    capsys.readouterr()
    evaluate.main(evaluate.Options(Sources(out, out, labels=trained.data / "dataset.json"), tmp_path / "run"))
    assert "note" not in capsys.readouterr().out
    assert [(row["subject"], float(row["dsc"])) for row in read_csv(tmp_path / "run" / "test.csv")] == [("a", 1)] * 3
