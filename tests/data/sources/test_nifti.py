"""Volumes in files: HVSMR, BraTS, the Decathlon and nnU-Net, on trees that the tests write, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import prepare
from data.folder import open_data
from data.sources.nifti import find_brats, find_msd, find_pairs, read_volume
from data.volumes import assemble, to_scan
from tests.helpers.errors import assert_clear
from tests.helpers.raw_json import Raw, to_json
from utils import InputError

Cases = dict[str, tuple[np.ndarray, np.ndarray]]


def random_case(seed: int, channels: int, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Image (channels, D, H, W) and label (D, H, W) of these values."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(channels, 3, 33, 35)).astype(np.float32)
    return image, rng.choice(np.array(values, np.uint8), (3, 33, 35))


def write_volume(path: Path, array: np.ndarray) -> None:
    """Write (D, H, W), or (channels, D, H, W) as a volume of four dimensions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        image = sitk.GetImageFromArray(array)
    else:
        image = sitk.JoinSeries([sitk.GetImageFromArray(channel) for channel in array])
    sitk.WriteImage(image, path)


def check(out: Path, cases: Cases, values: list[int]) -> None:
    """Each subject's slices hold its channels, stretched, and its label values as class indices."""
    data = open_data(out)
    for split in data.splits:
        dataset = data.dataset(split)
        (subject,) = dataset.subjects()
        image, label = cases[subject]
        target = np.stack([target for _, target in dataset])
        np.testing.assert_array_equal(np.array(values)[target], label)
        stored = np.stack([image for image, _ in dataset], 1)
        low, high = (f(image, axis=(2, 3), keepdims=True) for f in (np.min, np.max))
        np.testing.assert_allclose(stored, (image - low) / (high - low), atol=0.51 / 255)
        back = to_scan(assemble([item.number for item in dataset.slices], list(target)), data.geometry[subject])
        np.testing.assert_array_equal(np.array(values)[sitk.GetArrayFromImage(back)], label)


# ---------------------------------------------------------------- layouts


def test_hvsmr(tmp_path):
    cases = {str(k): random_case(k, 1, [0, 1, 2]) for k in (0, 4, 10)}
    for k, (image, label) in cases.items():
        write_volume(tmp_path / "in" / f"training_axial_crop_pat{k}.nii.gz", image[0])
        write_volume(tmp_path / "in" / f"training_axial_crop_pat{k}-label.nii.gz", label)
    prepare.main(["hvsmr", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "1,1,1"])
    assert open_data(tmp_path / "out").labels.names == ("background", "myocardium", "blood pool")
    check(tmp_path / "out", cases, [0, 1, 2])


def test_brats(tmp_path):
    cases = {f"Brats18_X{k}_1": random_case(k, 4, [0, 1, 2, 4]) for k in range(3)}
    for (name, (image, label)), grade in zip(cases.items(), ("HGG", "LGG", "HGG"), strict=True):
        stem = tmp_path / "in" / grade / name
        for sequence, channel in zip(("flair", "t1", "t1ce", "t2"), image, strict=True):
            write_volume(stem / f"{name}_{sequence}.nii.gz", channel)
        write_volume(stem / f"{name}_seg.nii.gz", label)
    prepare.main(["brats", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "1,1,1"])
    assert open_data(tmp_path / "out").channels == 4
    assert open_data(tmp_path / "out").labels.values == (0, 1, 2, 4)
    check(tmp_path / "out", cases, [0, 1, 2, 4])


@pytest.mark.parametrize("form", ["decathlon", "nnunet"])
def test_msd(tmp_path, form):
    cases = {f"case_{k}": random_case(k, 2, [0, 1, 2]) for k in range(3)}
    root = tmp_path / "in"
    for name, (image, label) in cases.items():
        if form == "decathlon":
            write_volume(root / "imagesTr" / f"{name}.nii.gz", image)
        for k, channel in enumerate(image if form == "nnunet" else []):
            write_volume(root / "imagesTr" / f"{name}_{k:04d}.nii.gz", channel)
        write_volume(root / "labelsTr" / f"{name}.nii.gz", label)
        (root / "labelsTr" / f"._{name}.nii.gz").write_bytes(b"a Mac's shadow")
    labels = {"0": "background", "1": "a", "2": "b"}
    if form == "nnunet":
        labels = {name: int(value) for value, name in labels.items()}
    (root / "dataset.json").write_text(json.dumps({"name": "Toy", "licence": "CC0", "labels": labels}))
    prepare.main(["msd", str(root), "--out", str(tmp_path / "out"), "--split", "1,1,1"])
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (described["name"], described["licence"]) == ("Toy", "CC0")
    assert open_data(tmp_path / "out").labels.names == ("background", "a", "b")
    check(tmp_path / "out", cases, [0, 1, 2])


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "pattern", ["/etc/{subject}", "../{subject}.nii.gz", "a/../../{subject}", "{subject}{subject}"]
)
def test_patterns_stay_below_the_source(tmp_path, pattern):
    for patterns in ([pattern], "label_{subject}.nii.gz"), (["image_{subject}.nii.gz"], pattern):
        with pytest.raises(InputError) as caught:
            find_pairs(tmp_path, *patterns)
        assert_clear(caught.value, pattern)


def test_two_cases_never_become_one_subject(tmp_path):
    for name in ("a.b", "a-b"):
        (tmp_path / "msd" / "labelsTr").mkdir(parents=True, exist_ok=True)
        (tmp_path / "msd" / "labelsTr" / f"{name}.nii.gz").touch()
    with pytest.raises(InputError) as caught:
        find_msd(tmp_path / "msd")
    assert_clear(caught.value, "subject a-b", "rename")
    for grade in ("HGG", "LGG"):
        (tmp_path / "brats" / grade / "p1").mkdir(parents=True)
        (tmp_path / "brats" / grade / "p1" / "p1_seg.nii.gz").touch()
    with pytest.raises(InputError) as caught:
        find_brats(tmp_path / "brats")
    assert_clear(caught.value, "subject p1", "rename")


@pytest.mark.parametrize("labels", [
    {"background": 0, "x": -1}, {"background": 0, "x": 5.7}, {"background": 0, "x": Raw("1e999")},
    {"background": 0, "x": [1, 2]}, {"0": "background", "²": "x"}, {"background": 0, "x": None},
    {"background": 0, "x": True},
    {"a": 1, "b": 1},
    {"0": "background", "1" * 30: "x"}, {"0": "background", "00": "x"},
])  # fmt: skip
def test_labels_of_other_data_sets_are_whole_numbers(tmp_path, labels):
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "a.nii.gz").touch()
    (tmp_path / "dataset.json").write_text(to_json({"labels": labels}))
    with pytest.raises(InputError) as caught:
        find_msd(tmp_path)
    assert_clear(caught.value, str(tmp_path / "dataset.json"), "labels must be single numbers")


def test_volumes_that_say_too_much(tmp_path):
    """A header of 32,000 voxels a side, over a file of a few bytes."""
    path = tmp_path / "scan.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), path)
    content = bytearray(path.read_bytes())
    content[40:48] = struct.pack("<4h", 3, 32000, 32000, 32000)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert_clear(caught.value, str(path), "voxels, of at most")
