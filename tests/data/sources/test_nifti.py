"""Volumes in files: HVSMR, BraTS, the Decathlon and nnU-Net, on trees that the tests write, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import prepare
from data.folder import Identity, open_data
from data.sources.nifti import brats_regions, find_brats, find_msd, find_pairs
from data.volumes import assemble, to_scan
from tests.helpers.errors import assert_clear, assert_one_line
from tests.helpers.raw_json import Raw, to_json
from utils import InputError

REGIONS = ("whole tumour (WT)", "tumour core (TC)", "enhancing tumour (ET)")
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
    labels = open_data(tmp_path / "out").labels
    assert labels.values == (0, 1, 2, 4)
    values = {
        region: {labels.values[labels.names.index(name)] for name in labels.regions[region]} for region in REGIONS
    }
    assert values == dict(zip(REGIONS, ({1, 2, 4}, {1, 4}, {4}), strict=True))  # as the challenge has them
    check(tmp_path / "out", cases, [0, 1, 2, 4])


def test_regions_of_the_decathlon_s_brats():
    task01 = ["background", "edema", "non-enhancing tumor", "enhancing tumour"]
    whole, core, enhancing = REGIONS
    assert brats_regions(task01) == {
        whole: ["edema", "non-enhancing tumor", "enhancing tumour"],
        core: ["non-enhancing tumor", "enhancing tumour"],
        enhancing: ["enhancing tumour"],
    }
    assert not {*REGIONS, *map(str.upper, REGIONS)} & set(task01)
    for other in ([], task01[:-1], [*task01, "cyst"], ["background", "edema"]):
        assert brats_regions(other) == {}


@pytest.mark.parametrize("form", ["decathlon", "nnunet"])
def test_msd(tmp_path, form, capsys):
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
    assert "no dataset.json" not in capsys.readouterr().out
    (root / "dataset.json").unlink()
    prepare.main(["msd", str(root), "--out", str(tmp_path / "again"), "--split", "1,1,1"])
    assert f"note: {root}: has no dataset.json; classes without given names" in capsys.readouterr().out
    assert open_data(tmp_path / "again").labels.names == ("background", "class 1", "class 2")


# ---------------------------------------------------------------- files by name


def write_pairs(folder: Path, image: str, label: str, subjects: str = "123") -> None:
    """Pairs of volumes by two patterns."""
    for subject in subjects:
        volume, classes = random_case(int(subject), 1, [0, 1])
        write_volume(folder / image.format(subject=subject), volume[0])
        write_volume(folder / label.format(subject=subject), classes)


@pytest.mark.parametrize("find", [
    lambda folder: find_pairs(folder, ["{subject}_image.nii.gz"], "{subject}_label.nii.gz"),
    lambda folder: find_pairs(folder, ["{subject}_image.nii"], "{subject}_label.nii"),
])  # fmt: skip
def test_hidden_files_are_left_out_and_packed_ones_are_as_good(tmp_path, find):
    write_pairs(tmp_path, "{subject}_image.nii.gz", "{subject}_label.nii", "13")
    write_pairs(tmp_path, "{subject}_image.nii", "{subject}_label.nii.gz", "2")
    for path in list(tmp_path.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"a Mac's shadow")
    found = find(tmp_path)
    assert found.subjects() == ["1", "2", "3"]
    for subject in found.subjects():
        volume, classes = random_case(int(subject), 1, [0, 1])
        case = found.read(subject)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(case.images[0]), volume[0])
        np.testing.assert_array_equal(sitk.GetArrayFromImage(case.label), classes)


def test_images_without_a_label_are_left_out_with_a_note(tmp_path, capsys):
    """Labels that the pattern of images finds, too, and other channels are none."""
    image, label = random_case(0, 1, [0, 1])
    for name in ("a", "b", "c", "c_flair", "d"):
        write_volume(tmp_path / "imagesTr" / f"{name}.nii.gz", image[0])
    for name in ("a", "d"):
        write_volume(tmp_path / "imagesTr" / f"{name}_seg.nii.gz", label)
        write_volume(tmp_path / "labelsTr" / f"{name}.nii.gz", label)
        write_volume(tmp_path / "imagesTr" / f"{name}_flair.nii.gz", image[0])
    patterns = ["imagesTr/{subject}.nii.gz", "imagesTr/{subject}_flair.nii.gz"]
    assert find_pairs(tmp_path, patterns, "imagesTr/{subject}_seg.nii.gz").subjects() == ["a", "d"]
    expected = "3 images without a label, left out: imagesTr/b.nii.gz, imagesTr/c.nii.gz, imagesTr/c_flair.nii.gz"
    assert capsys.readouterr().out == f"note: {tmp_path}: {expected}\n"
    assert find_pairs(tmp_path, ["imagesTr/{subject}_flair.nii.gz"], "imagesTr/{subject}_seg.nii.gz").subjects()
    assert "1 image without a label, left out: imagesTr/c_flair.nii.gz" in capsys.readouterr().out
    assert find_msd(tmp_path).subjects() == ["a", "d"]
    assert "7 images without a label, left out: imagesTr/a_flair.nii.gz" in capsys.readouterr().out


def test_a_pattern_may_hold_the_subject_several_times(tmp_path):
    """As in BIDS; a file of one subject in the folder of another is none of the pattern's."""
    image, label = "sub-{subject}/anat/sub-{subject}_T1w.nii.gz", "sub-{subject}/anat/sub-{subject}_dseg.nii.gz"
    write_pairs(tmp_path, image, label, "12")
    write_volume(tmp_path / "sub-1" / "anat" / "sub-2_dseg.nii.gz", random_case(0, 1, [0, 1])[1])
    found = find_pairs(tmp_path, [image], label)
    assert found.subjects() == ["1", "2"]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found.read("1").label), random_case(1, 1, [0, 1])[1])


@pytest.mark.parametrize("kind", ["image", "label"])
def test_one_volume_in_two_files_is_refused(tmp_path, kind):
    write_pairs(tmp_path, "image_{subject}.nii.gz", "label_{subject}.nii.gz")
    write_volume(tmp_path / f"{kind}_2.nii", random_case(0, 1, [0, 1])[1])
    with pytest.raises(InputError) as caught:
        find_pairs(tmp_path, ["image_{subject}.nii.gz"], "label_{subject}.nii.gz")
    assert_clear(caught.value, f"{kind}_2.nii", f"{kind}_2.nii.gz", "remove one of the two")


def test_labels_with_0_and_1_beside_labels_with_0_and_255_are_refused(tmp_path):
    write_pairs(tmp_path, "image_{subject}.nii.gz", "label_{subject}.nii.gz")
    write_volume(tmp_path / "label_2.nii.gz", random_case(2, 1, [0, 255])[1])
    patterns = ["image_{subject}.nii.gz"], "label_{subject}.nii.gz"
    with pytest.raises(InputError) as caught:
        find_pairs(tmp_path, *patterns).classes(["1", "2", "3"])
    parts = [str(tmp_path / "label_2.nii.gz"), "[0, 255]", str(tmp_path / "label_1.nii.gz"), "[0, 1]"]
    assert_one_line(caught.value, *parts)
    assert find_pairs(tmp_path, *patterns, ("a", "b")).classes(["1", "2"]) == {0: "background", 1: "a", 255: "b"}
    write_volume(tmp_path / "label_3.nii.gz", random_case(3, 1, [0, 1, 255])[1])  # so they are two classes
    assert find_pairs(tmp_path, *patterns).classes(["1", "2", "3"])[255] == "class 255"


def test_hidden_files_of_brats(tmp_path):
    for sequence in ("flair", "t1", "t1ce", "t2", "seg"):
        write_volume(tmp_path / "HGG" / "p1" / f"p1_{sequence}.nii.gz", random_case(0, 1, [0, 1])[1])
        (tmp_path / "HGG" / "p1" / f"._p1_{sequence}.nii.gz").write_bytes(b"a Mac's shadow")
    assert find_brats(tmp_path).subjects() == ["p1"]
    assert find_brats(tmp_path).read("p1").channels == ("flair", "t1", "t1ce", "t2")


def write_nnunet(root: Path, numbers: dict[str, list[int]], described: dict) -> Path:
    """nnU-Net's raw data: the numbers of the channels that each case has."""
    for name, of_case in numbers.items():
        for k in of_case:
            write_volume(root / "imagesTr" / f"{name}_{k:04d}.nii.gz", random_case(k, 1, [0, 1])[0][0])
        write_volume(root / "labelsTr" / f"{name}.nii.gz", random_case(0, 1, [0, 1])[1])
    labels = {"labels": {"background": 0, "a": 1}}
    (root / "dataset.json").write_text(json.dumps(labels | described))
    return root


NAMES = {"channel_names": {"0": "T1", "1": "T2"}}


@pytest.mark.parametrize("described", [NAMES, {"modality": {"1": "T2", "0": "T1"}}, {}])
def test_a_channel_that_a_case_lacks_is_refused(tmp_path, described):
    found = find_msd(write_nnunet(tmp_path, {"a_1": [0, 1], "a_2": [1], "a_3": [0], "a_4": []}, described))
    assert found.read("a_1").channels == (("T1", "T2") if described else ())
    for subject, number in (("a_2", 0), ("a_3", 1), ("a_4", 0)):
        with pytest.raises(InputError) as caught:
            found.read(subject)
        file = str(tmp_path / "imagesTr" / f"{subject}_{number:04d}.nii.gz")
        assert_one_line(caught.value, file, "no such file", "each channel")


@pytest.mark.parametrize(("described", "expected"), [
    (NAMES, "names 2 channels (T1, T2), and imagesTr has files of channel 0002"),
    ({"channel_names": {"1": "T1", "2": "T2"}}, "by their numbers"),
    ({"channel_names": ["T1", "T2"]}, "by their numbers"),
    ({"labels": {"ignore": 0, "a": 1, "b": 2}}, "ignore is 0"),
    ({"labels": {"0": "ignore", "1": "a", "2": "b"}}, "ignore is 0"),
    ({"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}, "no regions"),
])  # fmt: skip
def test_what_dataset_json_says_of_other_cases_is_refused(tmp_path, described, expected):
    with pytest.raises(InputError) as caught:
        find_msd(write_nnunet(tmp_path, {"a": [0, 1, 2]}, described))
    assert_clear(caught.value, str(tmp_path / "dataset.json"), expected)


def test_channels_of_the_decathlon_are_counted(tmp_path):
    root = write_nnunet(tmp_path, {"a": []}, NAMES)
    write_volume(root / "imagesTr" / "a.nii.gz", random_case(0, 3, [0, 1])[0])
    with pytest.raises(InputError) as caught:
        find_msd(root).read("a")
    assert_clear(caught.value, str(root / "imagesTr" / "a.nii.gz"), "holds 3 channels", "must be 2: T1, T2")
    write_volume(root / "imagesTr" / "a.nii.gz", random_case(0, 2, [0, 1])[0])
    assert find_msd(root).read("a").channels == ("T1", "T2")


def test_names_of_channels_stay_with_the_data(tmp_path):
    for subject in "123":
        for k, sequence in enumerate(("T2w", "FLAIR")):
            write_volume(tmp_path / "in" / f"{subject}_{sequence}.nii.gz", random_case(k, 1, [0, 1])[0][0])
        write_volume(tmp_path / "in" / f"{subject}_seg.nii.gz", random_case(0, 1, [0, 1])[1])
    patterns = ["--image", "{subject}_FLAIR.nii.gz,{subject}_T2w.nii.gz", "--label", "{subject}_seg.nii.gz"]
    prepare.main(["nifti", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "1,1,1", *patterns])
    data = open_data(tmp_path / "out")
    assert data.channel_names == ("flair", "t2")
    identity = data.identity()
    assert Identity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert identity.channels == ("flair", "t2")
    direction = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert identity.typical.to_dict() == {"spacing": [1.0, 1.0, 1.0], "size": [35, 33, 1], "direction": direction}
    assert identity.difference(replace(identity, channels=("t2", "flair"))) == "names of channels"


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
