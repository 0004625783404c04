"""prepare.py on DICOM series with DICOM segmentations: the data set of the same voxels in NIfTI files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import Dataset
from scipy.spatial.transform import Rotation

import prepare
from data.sources.dicom import read_series
from data.sources.nifti import find_pairs
from tests.helpers.errors import assert_clear, assert_one_line
from tests.helpers.scans import save_series
from tests.helpers.segs import save_seg
from utils import InputError

NAMES = ("liver", "spleen")


def called(*names: str):
    """A change of a SEG: other labels of its segments."""

    def change(dataset: Dataset) -> None:
        for segment, name in zip(dataset.SegmentSequence, names, strict=True):
            segment.SegmentLabel = name

    return change


def write_subjects(folder: Path, direction: np.ndarray, beside: bool) -> None:
    """Four series with segmentations, and the same as NIfTI files.

    Segments of odd subjects have the numbers 2 and 1 instead of 1 and 2; some slices have none.
    """
    for k in range(4):
        rng = np.random.default_rng(k)
        save_series(folder / f"s{k}" / "ct", rng.integers(0, 400, (7, 36, 40)).astype(np.uint16), direction)
        array = np.zeros((7, 36, 40), np.uint16)
        array[[1, 2, 5]] = rng.integers(0, 3, (3, 36, 40))
        numbers = np.array([0, 2, 1] if k % 2 else [0, 1, 2], np.uint16)
        names = NAMES[::-1] if k % 2 else NAMES
        seg = folder / f"s{k}" / ("seg/1.2.dcm" if beside else "seg")
        save_seg(seg, numbers[array], direction, change=called(*names))
        image = read_series(folder / f"s{k}" / "ct").image
        label = sitk.GetImageFromArray(array)
        label.CopyInformation(image)
        for kind, volume in (("image", image), ("label", label)):
            sitk.WriteImage(volume, folder / f"{kind}_s{k}.nii.gz")


def prepared(folder: Path, out: Path, *flags: str) -> dict[str, object]:
    """Run the command; the dataset.json, and all masks and images by their names."""
    prepare.main(["nifti", str(folder), "--out", str(out), "--split", "2,1,1", *flags])
    pictures = {str(path.relative_to(out)): np.asarray(Image.open(path)) for path in out.glob("*/*/*.png")}
    return {"json": json.loads((out / "dataset.json").read_text()), **pictures}


@pytest.mark.slow
@pytest.mark.parametrize(("angles", "in_folders"), [((0, 0, 0), False), ((20, -30, 10), True)])
def test_series_with_segmentations_become_the_data_set_of_nifti_files(tmp_path, angles, in_folders):
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    write_subjects(tmp_path / "in", direction, in_folders)
    ours = prepared(tmp_path / "in", tmp_path / "a", "--image", "{subject}/ct", "--label", "{subject}/seg")
    theirs = prepared(tmp_path / "in", tmp_path / "b", "--names", ",".join(NAMES))
    described, expected = ours.pop("json"), theirs.pop("json")
    assert described["labels"] == expected["labels"] == {"background": 0, "liver": 126, "spleen": 252}
    for subject, entry in expected["subjects"].items():
        for part in ("spacing", "origin", "direction"):
            np.testing.assert_allclose(described["subjects"][subject][part], entry[part], atol=1e-4)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    for name, picture in theirs.items():
        np.testing.assert_array_equal(ours[name], picture)


def test_segmentations_that_lie_elsewhere_or_get_names_are_refused(tmp_path):
    write_subjects(tmp_path, np.eye(3), beside=False)
    found = find_pairs(tmp_path, ["{subject}/ct"], "{subject}/seg")
    assert found.classes(found.subjects()) == {0: "background", 1: "liver", 2: "spleen"}
    assert found.classes_of(["s1"]) == {"s1": {1, 2}}
    named = find_pairs(tmp_path, ["{subject}/ct"], "{subject}/seg", NAMES)
    with pytest.raises(InputError) as caught:
        named.classes(named.subjects())
    assert_one_line(caught.value, "whose segments have names; give none")
    save_seg(tmp_path / "s0" / "seg", np.ones((7, 36, 41), np.uint16))
    with pytest.raises(InputError) as caught:
        find_pairs(tmp_path, ["{subject}/ct"], "{subject}/seg").read("s0")
    assert_one_line(caught.value, "s0/seg: has (41, 36, 7) voxels")


def test_capitals_in_names_of_segments_do_not_make_classes(tmp_path):
    write_subjects(tmp_path, np.eye(3), beside=False)
    before = find_pairs(tmp_path, ["{subject}/ct"], "{subject}/seg").read("s3").label
    numbers = np.array([0, 2, 1], np.uint16)
    array = numbers[sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "label_s3.nii.gz"))]
    save_seg(tmp_path / "s3" / "seg", array, change=called("SPLEEN", "Liver"))
    found = find_pairs(tmp_path, ["{subject}/ct"], "{subject}/seg")
    assert found.classes(found.subjects()) == {0: "background", 1: "liver", 2: "spleen"}
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (found.read("s3").label, before)))


def test_a_segmentation_in_another_frame_of_reference_is_refused(tmp_path):
    write_subjects(tmp_path, np.eye(3), beside=False)
    found = find_pairs(tmp_path, ["{subject}/ct"], "{subject}/seg")
    for frame, refused in (("1.2.5", False), ("1.2.6", True)):  # that of the series, and another one

        def change(dataset: Dataset, frame=frame) -> None:
            dataset.FrameOfReferenceUID = frame

        save_seg(tmp_path / "s0" / "seg", np.ones((7, 36, 40), np.uint16), change=change)
        if refused:
            with pytest.raises(InputError) as caught:
                found.read("s0")
            assert_clear(caught.value, "s0/seg: lies in another frame of reference than", "s0/ct")
        else:
            found.read("s0")
