"""Lines before training: classes that cannot be learned or have vanished, and images that differ in range."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import prepare
from data.folder import open_data
from tests.helpers.png import save_png


def write_masks(root: Path, **values: list[int]) -> None:
    """Let the masks of each split begin with these values; the rest is 0."""
    for split, of_split in values.items():
        for path in (root / split / "GT").iterdir():
            mask = np.zeros((40, 48), np.uint8)
            mask.flat[: len(of_split)] = of_split
            save_png(path, mask)


def test_a_data_set_without_peculiarities_has_no_notes(make_data):
    assert open_data(make_data()).notes == ()


def test_classes_that_no_training_slice_has(make_data):
    root = make_data({"train": ["1"], "val": ["2"], "test": ["10", "9"]})
    write_masks(root, train=[1], val=[1, 2, 3], test=[2])
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}}))
    notes = open_data(root).notes
    assert [note.partition(";")[0] for note in notes] == [
        "b is in no training slice, only in val subjects 2 and test subjects 9, 10",
        "c is in no training slice, only in val subjects 2",
        "no mask holds d",
    ]
    assert open_data(root, subjects={"train": ["2"], "val": ["1"], "test": ["9", "10"]}).notes == notes[2:]


def test_groups_of_subjects_that_are_nowhere(make_data):
    root = make_data({"train": ["1", "4"], "val": ["2"], "test": ["3"]})
    (root / "dataset.json").write_text(json.dumps({"groups": {"1": "Ann", "01": "Ann", "4": "Bob"}}))
    expected = "the groups of dataset.json name 01, which the data set does not have"
    assert open_data(root).notes == (expected,)
    assert expected in open_data(root, subjects={"train": ["1"], "val": ["2"], "test": ["3"]}).notes


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--spacing", "5,5", "--size", "32"], ["--size", "32"]])
def test_classes_that_vanish_from_some_subjects(tmp_path, flags, capsys):
    """Class 2 is a line of one pixel: between the new pixels in subjects 2 and 3, or cut off; whole in subject 1."""
    (tmp_path / "in").mkdir()
    for subject in range(1, 4):
        label = np.zeros((3, 90, 90), np.uint8)
        label[:, 30:60, 30:60] = 1
        label[:, 40:50, 40:50] = 2 if subject == 1 else 1
        label[:, :, 3 if subject > 1 else 45] = 2
        for kind in ("image", "label"):
            sitk.WriteImage(sitk.GetImageFromArray(label), tmp_path / "in" / f"{kind}_{subject}.nii.gz")
    prepare.main(["nifti", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "1,1,1", *flags])
    masks = {path.name[5]: set() for path in (tmp_path / "out").glob("*/GT/*")}
    for path in (tmp_path / "out").glob("*/GT/*"):
        masks[path.name[5]] |= set(np.unique(np.asarray(Image.open(path))).tolist())
    assert {subject for subject, values in masks.items() if 252 not in values} == {"2", "3"}
    assert "note: class 2 has vanished from subjects 2, 3: " in capsys.readouterr().out
    assert any("class 2 has vanished from subjects 2, 3" in note for note in open_data(tmp_path / "out").notes)


def test_12_bits_in_files_of_16_beside_8(make_data):
    root = make_data()
    first, last = (root / split / "Img" / f"Subj_{k}slice_1.png" for split, k in (("train", 1), ("test", 3)))
    pixels = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)
    save_png(last, pixels * 2)
    (note,) = open_data(root).notes
    for part in (str(last), "16 bits", "reaches 3838 of 65535", str(first), "8 bits"):
        assert part in note
    save_png(last, pixels * 34)
    assert open_data(root).notes == ()
    for path in root.glob("*/Img"):  # a channel of its own
        shutil.copytree(path, path.with_name("Img_2"))
    for path in root.glob("*/Img_2/*"):
        save_png(path, pixels)
    assert open_data(root).notes == ()


def test_rgb_that_is_grey(make_data):
    root = make_data()
    for path in root.glob("*/Img/*"):
        save_png(path, np.repeat(np.asarray(Image.open(path))[..., None], 3, 2))
    (note,) = open_data(root).notes
    assert "three equal channels" in note
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 2] ^= 1
    save_png(path, pixels)
    assert open_data(root).notes == ()


def test_subjects_of_dataset_json_that_are_nowhere(make_data):
    root = make_data()
    (root / "dataset.json").write_text(json.dumps({"subjects": {k: {"spacing": [1, 1, 2]} for k in ("1", "02", "3")}}))
    assert open_data(root).notes == ("the subjects of dataset.json name 02, which the data set does not have",)


def test_copies_of_images_in_another_split(make_data):
    """A copy in the same split, and slices without a picture, are none."""
    root = make_data({"train": ["1", "4"], "val": ["2"], "test": ["3"]}, numbers=(1, 2, 3))
    train, same, val, test = (
        root / split / "Img" / f"Subj_{subject}slice_2.png"
        for split, subject in (("train", 1), ("train", 4), ("val", 2), ("test", 3))
    )
    for path in (same, test):
        shutil.copy(train, path)
    for path in root.glob("*/Img/*slice_3.png"):
        save_png(path, np.zeros((40, 48), np.uint8))
    (note,) = open_data(root).notes
    assert note.startswith(f"train has 1 image of test, too, pixel by pixel, such as {test} as {train}")
    pixels = np.asarray(Image.open(train)).copy()
    pixels[-1, -1] ^= 1
    save_png(test, pixels)
    assert open_data(root).notes == ()
    shutil.copy(val, test)
    (note,) = open_data(root).notes
    assert note.startswith(f"val has 1 image of test, too, pixel by pixel, such as {test} as {val}")


def test_images_of_one_value_and_masks_in_their_place(make_data):
    root = make_data({"train": ["1", "4"], "val": ["2"], "test": ["3"]})
    for k in (1, 2):
        save_png(root / "train" / "Img" / f"Subj_4slice_{k}.png", np.full((40, 48), 7, np.uint8))
        shutil.copy(root / "val" / "GT" / f"Subj_2slice_{k}.png", root / "val" / "Img" / f"Subj_2slice_{k}.png")
    notes = open_data(root).notes
    assert [note.partition(";")[0] for note in notes] == [
        "all images of subjects 4 have one value in all pixels",
        f"masks lie in the place of 2 images, such as {root / 'val' / 'Img' / 'Subj_2slice_1.png'}",
    ]
