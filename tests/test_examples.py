"""The examples that need the repository; the one without it is beside export.py (test_export.py)."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from examples.to_nnunet import main
from tests.helpers.errors import assert_clear
from utils import InputError

LABELS = {"background": 0, "liver": 63, "spleen": 252, "left kidney": 126, "right kidney": 189}


def test_slices_become_the_volumes_that_nnu_net_reads(make_data, tmp_path, capsys):
    """Voxel for voxel, against Pillow; what nobody annotated is nnU-Net's ignore label."""
    data = make_data({"train": ["1", "a_2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))
    place = {"spacing": [1.5, 0.8, 7.0], "size": [48, 40, 3], "origin": [10, -5, 3], "direction": [*np.eye(3).ravel()]}
    described = {"labels": LABELS | {"ignore": 255}, "subjects": dict.fromkeys(("1", "a_2", "3", "4"), place)}
    (data / "dataset.json").write_text(json.dumps(described))
    mask = data / "train" / "GT" / "Subj_1slice_2.png"
    codes = np.array(Image.open(mask))
    codes[:9] = 255
    Image.fromarray(codes).save(mask)
    (tmp_path / "fold.json").write_text('{"train": ["a_2", "3"], "val": ["4"], "test": ["1"]}')
    main(data, tmp_path / "raw", [tmp_path / "fold.json"])

    values = [*LABELS.values(), 255]
    for split, subject in (("train", "1"), ("train", "a_2"), ("val", "3"), ("test", "4")):
        image, label = (
            nib.load(tmp_path / "raw" / path)
            for path in (f"imagesTr/{subject}_0000.nii.gz", f"labelsTr/{subject}.nii.gz")
        )
        for k in range(3):
            name = f"Subj_{subject}slice_{k + 1}.png"
            grey, codes = (np.array(Image.open(data / split / kind / name)) for kind in ("Img", "GT"))
            np.testing.assert_allclose(image.get_fdata()[..., k].T, grey / 255, atol=1e-6)
            np.testing.assert_array_equal(np.array(values)[np.asanyarray(label.dataobj)[..., k].T], codes)
        expected = np.diag([-1.5, -0.8, 7.0, 1.0])
        expected[:3, 3] = -10, 5, 3
        np.testing.assert_allclose(image.affine, expected, atol=1e-5)
        np.testing.assert_allclose(label.affine, expected, atol=1e-5)
    about = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert about["labels"] == {name: k for k, name in enumerate([*LABELS, "ignore"])}
    assert (about["numTraining"], about["channel_names"]) == (4, {"0": "channel 0"})
    assert json.loads((tmp_path / "raw" / "splits_final.json").read_text()) == [{"train": ["a_2", "3"], "val": ["4"]}]
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError) as caught:
        main(data, tmp_path / "raw", [])
    assert_clear(caught.value, str(tmp_path / "raw"), "exists")


def test_slices_closer_than_their_pixels_are_noted(make_data, tmp_path, capsys):
    """nnU-Net's 2d takes the planes across the largest spacing."""
    data = make_data({"train": ["1"], "val": ["2"], "test": ["3"]}, numbers=(1, 2))
    place = {"spacing": [1.5, 0.8, 1.4], "size": [48, 40, 2], "origin": [0, 0, 0], "direction": [*np.eye(3).ravel()]}
    described = {"labels": LABELS, "subjects": dict.fromkeys("123", place)}
    (data / "dataset.json").write_text(json.dumps(described))
    main(data, tmp_path / "raw", [])
    assert "closer than their pixels" in capsys.readouterr().out
