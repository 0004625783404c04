"""The command predict.py: the grid that segmentations come back on, and agreement with what training scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from medpy.metric import binary
from PIL import Image

import predict
from data.folder import open_data
from data.sources.dicom import read_series
from data.volumes import to_scan
from inference import networks
from inference.segmentation import segment_volume
from tests.helpers.errors import assert_one_line
from tests.helpers.scans import ORIENTATIONS, assert_same_grid, make_scan, read_array, slice_position, write_dicom
from tests.helpers.trained import Trained
from training.checkpoint import load_checkpoint, save_checkpoint
from utils import InputError, read_csv


def run(*arguments: object, **options) -> None:
    """python predict.py CHECKPOINT SCAN ... with these options, on the CPU."""
    checkpoint, *scans = map(str, arguments)
    predict.main(predict.Options(checkpoint, tuple(scans), **{"device": "cpu"} | options))


def changed(path: Path, target: Path, **entries) -> Path:
    """A checkpoint with other entries."""
    save_checkpoint(target, load_checkpoint(path) | entries)
    return target


def configured(path: Path, target: Path, **options) -> Path:
    """A checkpoint with another configuration."""
    return changed(path, target, config=load_checkpoint(path)["config"] | options)


def with_values(path: Path, target: Path, *values: int) -> Path:
    """A checkpoint whose classes have other values in volumes."""
    data = load_checkpoint(path)["data"]
    return changed(path, target, data=data | {"values": dict(zip(data["labels"], values, strict=True))})


def described(trained: Trained, target: Path, **entries) -> Path:
    """The test split of the run's data, whose dataset.json says something else."""
    data = shutil.copytree(trained.data, target / "data")
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(content | entries))
    return data / "test"


# ---------------------------------------------------------------- agreement


@pytest.mark.slow
def test_a_test_scan_gets_the_prediction_of_training(trained, tmp_path):
    """From the scan itself, from its slices, and in training: one segmentation, on the scan's own grid."""
    run(trained.checkpoint, trained.test_scan, out=tmp_path / "a", truth=(trained.test_label,))
    run(trained.checkpoint, trained.data / "test", out=tmp_path / "b", truth=(trained.data / "test" / "GT",))
    run(trained.checkpoint, trained.data / "test", out=tmp_path / "c", truth=(trained.data / "test",))
    assert (tmp_path / "c" / "scores.csv").read_bytes() == (tmp_path / "b" / "scores.csv").read_bytes()
    original, ours = sitk.ReadImage(trained.test_scan), sitk.ReadImage(tmp_path / "a" / "image_s3.nii.gz")
    assert_same_grid(ours, original, atol=1e-4)
    expected = read_array(trained.run / "predictions" / "s3.nii.gz")
    np.testing.assert_array_equal(read_array(tmp_path / "a" / "image_s3.nii.gz"), expected)
    np.testing.assert_array_equal(read_array(tmp_path / "b" / "s3.nii.gz"), expected)
    for k, row in enumerate(read_csv(tmp_path / "a" / "volumes.csv"), 1):
        count = (expected == k).sum()
        assert int(row["voxels"]) == count
        assert float(row["ml"]) == pytest.approx(count * 1.25 * 0.8 * 7.7 / 1000, abs=1e-3)
    truth, spacing = read_array(trained.test_label), original.GetSpacing()[::-1]
    measured = 0
    for k, row in enumerate(read_csv(tmp_path / "a" / "scores.csv"), 1):
        a, b = expected == k, truth == k
        assert float(row["dsc"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        if a.any() and b.any():
            measured += 1
            assert float(row["msd_mm"]) == pytest.approx(binary.assd(a, b, voxelspacing=spacing), rel=1e-4)
            assert float(row["hd95_pooled_mm"]) == pytest.approx(binary.hd95(a, b, voxelspacing=spacing), rel=1e-4)
    assert measured
    of_slices, of_training = read_csv(tmp_path / "b" / "scores.csv"), read_csv(trained.run / "test.csv")
    for ours, theirs in zip(of_slices, of_training, strict=True):
        assert float(ours["dsc"]) == pytest.approx(float(theirs["dsc"]))
    assert (tmp_path / "a" / "image_s3_overlay.png").stat().st_size > 3000


def test_the_validation_of_the_training_is_that_of_the_checkpoint(trained, tmp_path):
    run(trained.checkpoint, trained.data / "val", out=tmp_path / "out", truth=(trained.data / "val" / "GT",))
    scores = {row["class"]: float(row["dsc"]) for row in read_csv(tmp_path / "out" / "scores.csv")}
    (row,) = read_csv(trained.run / "log.csv")
    assert {name: float(row[f"val_dsc {name}"]) for name in scores} == pytest.approx(scores)
    assert float(row["val_dsc"]) == pytest.approx(np.mean(list(scores.values())))
    assert 0 < max(scores.values()) < 1


@pytest.mark.slow
def test_checkpoints_and_flips_are_averaged(trained, tmp_path):
    """The probabilities of two checkpoints are the mean of those of each; those with flips are not those without."""
    best = load_checkpoint(trained.checkpoint)
    weights = {k: v + 0.02 * torch.randn_like(v) if v.ndim == 4 else v for k, v in best["model"].items()}
    other = changed(trained.checkpoint, tmp_path / "other.pt", model=weights)
    found = {}
    for name, checkpoint, tta in (
        ("a", trained.checkpoint, False),
        ("b", other, False),
        ("both", f"{trained.checkpoint},{other}", False),
        ("flips", trained.checkpoint, True),
    ):
        run(checkpoint, trained.image(1), out=tmp_path / name, tta=tta, probabilities=True)
        found[name] = read_array(tmp_path / name / "image_s1_probabilities.nii.gz")
    assert np.abs(found["a"] - found["b"]).max() > 1e-3
    np.testing.assert_allclose(found["both"], (found["a"] + found["b"]) / 2, atol=1e-6)
    assert np.abs(found["flips"] - found["a"]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("code", ORIENTATIONS[::7])
def test_orientation_does_not_change_the_segmentation(trained, tmp_path, code):
    image, _ = make_scan(9, "LPS", (3, 2, -5), size=(40, 34, 3))
    for name, scan in (("upright", image), ("turned", sitk.DICOMOrient(image, code))):
        sitk.WriteImage(scan, tmp_path / f"{name}.nii.gz")
    run(trained.checkpoint, tmp_path / "upright.nii.gz", tmp_path / "turned.nii.gz", out=tmp_path / "out")
    turned = sitk.ReadImage(tmp_path / "out" / "turned.nii.gz")
    back = sitk.GetArrayFromImage(sitk.DICOMOrient(turned, "LPS"))
    upright = read_array(tmp_path / "out" / "upright.nii.gz")
    assert len(np.unique(upright)) > 2
    np.testing.assert_array_equal(back, upright)


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("off", torch.float32)])
def test_the_precision_is_that_of_the_training(trained, tmp_path, monkeypatch, amp, dtype):
    used = []

    def watched(models, images, batch_size, machine, *flips):
        used.append(machine.dtype)
        return segment_volume(models, images, batch_size, machine, *flips)

    monkeypatch.setattr(networks, "segment_volume", watched)
    run(configured(trained.checkpoint, tmp_path / "best.pt", amp=amp), trained.test_scan, out=tmp_path / "out")
    assert used == [dtype]


# ---------------------------------------------------------------- what is written


def test_slices_without_the_first_ones_stay_in_place(trained, tmp_path, monkeypatch):
    """On the whole scan's grid, from its slices and in training; a slice that was removed is background."""

    def by_value(models, images, *_):
        return np.stack([images[0] < 0.5, images[0] >= 0.5]).astype(np.float32)

    monkeypatch.setattr(networks, "segment_volume", by_value)
    shutil.copytree(trained.data, tmp_path / "data")
    for split in ("train", "val", "test"):
        for path in (tmp_path / "data" / split).glob("*/*slice_1.png"):
            path.unlink()
    run(trained.checkpoint, trained.data / "test", out=tmp_path / "whole")
    run(trained.checkpoint, tmp_path / "data" / "test", out=tmp_path / "cut")
    whole, cut = (sitk.ReadImage(tmp_path / name / "s3.nii.gz") for name in ("whole", "cut"))
    assert cut.GetSize() == whole.GetSize() and cut.GetOrigin() == pytest.approx(whole.GetOrigin())
    whole, cut = (sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")) for image in (whole, cut))
    np.testing.assert_array_equal(cut[1:], whole[1:])
    assert not cut[0].any() and whole[1:].any()
    geometry = open_data(tmp_path / "data").geometry["s3"]
    assert to_scan(np.zeros((2, 36, 36), np.uint8), geometry).GetSize() == (3, 40, 34)


def test_dicom_folder_and_probabilities(trained, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        write_dicom(tmp_path / "series" / f"{9 - k}.dcm", rng.integers(0, 500, (34, 40)), slice_position(k))
    run(trained.checkpoint, tmp_path / "series", out=tmp_path / "out", probabilities=True, tta=True, dicom_series=True)
    as_dicom, label = read_series(tmp_path / "out" / "series_dicom"), sitk.ReadImage(tmp_path / "out" / "series.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(as_dicom.image), sitk.GetArrayFromImage(label))
    assert_same_grid(as_dicom.image, label, atol=1e-4)
    assert [path.name for path in as_dicom.files] == ["9.dcm", "8.dcm", "7.dcm"]
    np.testing.assert_allclose(label.GetSpacing(), (1.5, 1.25, 5.5), rtol=1e-5)
    probabilities = read_array(tmp_path / "out" / "series_probabilities.nii.gz")
    assert probabilities.shape == (4, 3, 34, 40)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert (probabilities[0] == 1).all((0, 1)).tolist() == [True] * 2 + [False] * 36 + [True] * 2  # cropped: background
    np.testing.assert_array_equal(probabilities.argmax(0), sitk.GetArrayFromImage(label))


def test_original_label_values_come_back(trained, tmp_path):
    """BraTS's classes are 0, 1, 2 and 4: so must be those of a segmentation."""
    brats = with_values(trained.checkpoint, tmp_path / "brats.pt", 0, 1, 2, 4)
    run(trained.checkpoint, trained.test_scan, out=tmp_path / "a")
    run(brats, trained.test_scan, out=tmp_path / "b")
    ours = read_array(tmp_path / "a" / "image_s3.nii.gz")
    assert 3 in ours
    np.testing.assert_array_equal(read_array(tmp_path / "b" / "image_s3.nii.gz"), np.array([0, 1, 2, 4])[ours])


def test_what_is_done_is_kept_when_a_later_scan_is_bad(trained, tmp_path):
    with pytest.raises(InputError, match="missing"):
        run(trained.checkpoint, trained.test_scan, tmp_path / "missing.nii.gz", out=tmp_path / "out")
    assert {row["scan"] for row in read_csv(tmp_path / "out" / "volumes.csv")} == {"image_s3"}


def test_results_never_replace_scans_or_truth(trained, tmp_path):
    """Results have the scans' names, so they go into none of the folders that were given."""
    for path in (trained.test_scan, trained.test_label):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    for out in (tmp_path, link):
        with pytest.raises(InputError, match=r"holds .*image_s3\.nii\.gz.*choose another folder"):
            run(trained.checkpoint, tmp_path / "image_s3.nii.gz", out=out)
    with pytest.raises(InputError, match=r"holds .*label_s3\.nii\.gz"):
        run(trained.checkpoint, trained.test_scan, out=tmp_path, truth=(tmp_path / "label_s3.nii.gz",))
    with pytest.raises(InputError, match=r"holds .*test"):
        run(trained.checkpoint, trained.data / "test", out=trained.data / "test" / "GT")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "scan.nii.gz").symlink_to(trained.test_scan)
    with pytest.raises(InputError, match=r"holds .*links/scan\.nii\.gz"):
        run(trained.checkpoint, tmp_path / "links" / "scan.nii.gz", out=tmp_path / "links")
    run(trained.checkpoint, tmp_path / "links" / "scan.nii.gz", out=tmp_path / "out")
    assert (tmp_path / "out" / "scan.nii.gz").exists(), "called by the link, not by what it leads to"


# ---------------------------------------------------------------- what is refused


def several(trained: Trained, *numbers: int) -> str:
    """The images of several scans as the channels of one."""
    return ",".join(str(trained.image(k)) for k in numbers)


def moved(trained: Trained, folder: Path) -> Path:
    """The image of scan 1, a centimetre away."""
    image = sitk.ReadImage(trained.image(1))
    image.SetOrigin([value + 10 for value in image.GetOrigin()])
    sitk.WriteImage(image, folder / "moved.nii.gz")
    return folder / "moved.nii.gz"


def noise(path: Path) -> Path:
    """A damaged file."""
    path.write_bytes(b"noise")
    return path


BAD = {
    "no scans": (lambda t, p: [t.checkpoint], ["no scans"]),
    "no checkpoint": (lambda t, p: [p / "none.pt", p], ["none.pt", "no such checkpoint"]),
    "another file": (lambda t, p: [changed(t.checkpoint, p / "odd.pt", config={}), p], ["odd.pt", "configuration"]),
    "half a checkpoint": (lambda t, p: [changed(t.checkpoint, p / "odd.pt", model={}), p], ["odd.pt", "no checkpoint"]),
    "other folds": (
        lambda t, p: [f"{t.checkpoint},{with_values(t.checkpoint, p / 'b.pt', 0, 1, 2, 9)}", p],
        ["b.pt", "other data"],
    ),
    "no scan": (lambda t, p: [t.checkpoint, p / "none.nii.gz"], ["none.nii.gz", "no such file"]),
    "damaged scan": (lambda t, p: [t.checkpoint, noise(p / "x.nii.gz")], ["x.nii.gz", "as a NIfTI file"]),
    "empty folder": (lambda t, p: [t.checkpoint, p], ["holds no DICOM files"]),
    "folder of NIfTI files": (lambda t, p: [t.checkpoint, t.scans], ["no DICOM", "scans/*.nii.gz"]),
    "two channels": (lambda t, p: [t.checkpoint, several(t, 0, 0)], ["2 channels", "takes 1"]),
    "other grid": (lambda t, p: [t.checkpoint, f"{t.image(0)},{moved(t, p)}"], ["moved.nii.gz: lies elsewhere"]),
    "channel elsewhere": (
        lambda t, p: [t.checkpoint, f"{t.image(0)},{moved(t, p)},{t.image(0)}"],
        ["moved.nii.gz: lies elsewhere"],
    ),
    "slices prepared otherwise": (
        lambda t, p: [t.checkpoint, described(t, p, preparation={"size": 36, "bits": 16})],
        ["data/test: its slices were prepared in another way", "(bits 8 -> 16)"],
    ),
    "same name": (lambda t, p: [t.checkpoint, t.image(0), t.image(0)], ["a second scan called image_s0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(trained, tmp_path, case):
    arguments, expected = BAD[case]
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError) as caught:
        run(*arguments(trained, tmp_path / "in"), out=tmp_path / "out")
    assert_one_line(caught.value, *expected)


def test_flips_are_refused_where_training_had_none(trained, tmp_path):
    """They would exchange the kidneys of a network that has learned which is which."""
    checkpoint = configured(trained.checkpoint, tmp_path / "best.pt", flip_probability=0.0)
    with pytest.raises(InputError, match=r"best\.pt was trained without flips"):
        run(checkpoint, trained.test_scan, out=tmp_path / "out", tta=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_flips_exchange_mirrored_classes_back_along_the_axis_of_each_scan(trained, tmp_path, monkeypatch):
    used = []

    def watched(models, images, batch_size, machine, flips, mirror):
        used.append((mirror.axis, mirror.exchanged[:4].tolist()))
        return segment_volume(models, images, batch_size, machine, flips, mirror)

    monkeypatch.setattr(networks, "segment_volume", watched)
    data = load_checkpoint(trained.checkpoint)["data"]
    names = list(data["labels"])
    checkpoint = changed(trained.checkpoint, tmp_path / "best.pt", data=data | {"mirror": [[names[1], names[3]]]})
    run(checkpoint, trained.test_scan, trained.data / "val", out=tmp_path / "out", tta=True)
    assert used == [(-1, [0, 3, 2, 1])] * 2
    subjects = json.loads((trained.data / "dataset.json").read_text())["subjects"]
    subjects["s3"]["direction"] = [0, 1, 0, 1, 0, 0, 0, 0, 1]
    run(checkpoint, described(trained, tmp_path / "turned", subjects=subjects), out=tmp_path / "out2", tta=True)
    assert used[2:] == [(-2, [0, 3, 2, 1])]
    del subjects["s3"]["direction"]
    with pytest.raises(InputError) as caught:
        run(checkpoint, described(trained, tmp_path / "unknown", subjects=subjects), out=tmp_path / "out3", tta=True)
    assert_one_line(caught.value, "--tta: s3: it is not known which axis", f"{names[1]} and {names[3]}; give", "--tta")
    with pytest.raises(InputError, match="was trained on other data than"):
        run(f"{checkpoint},{trained.checkpoint}", trained.test_scan, out=tmp_path / "out", tta=True)


def test_what_cannot_be_out_or_truth_is_said_before_the_work(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/out: is a file, or would lie in one"):
        run(trained.checkpoint, trained.test_scan, out=tmp_path / "file" / "out")
    missing = trained.scans / "label_s9.nii.gz"
    with pytest.raises(InputError, match=r"--truth .*label_s9\.nii\.gz: no such file"):
        run(trained.checkpoint, trained.test_scan, out=tmp_path / "out", truth=(missing,))
    assert not (tmp_path / "out").exists()


def test_a_truth_with_an_unknown_value_says_where(trained, tmp_path):
    label = sitk.ReadImage(trained.test_label)
    label[1, 3, 2] = 99
    sitk.WriteImage(label, tmp_path / "truth.nii.gz")
    with pytest.raises(InputError, match=r"unknown value 99 at slice 2, row 3, column 1 \(1 pixels\)"):
        run(trained.checkpoint, trained.test_scan, out=tmp_path / "out", truth=(tmp_path / "truth.nii.gz",))
    assert not any((tmp_path / "out").glob("*.nii.gz"))  # before the network segments


def test_masks_of_another_subject_are_refused(trained, tmp_path):
    with pytest.raises(InputError, match=r"val.GT: has no masks of subject s3 but of s\d; call the scan's file"):
        run(trained.checkpoint, trained.data / "test", out=tmp_path / "out", truth=(trained.data / "val",))


def test_slices_of_another_size_than_their_geometry_are_refused(trained, tmp_path):
    shutil.copytree(trained.data, tmp_path / "data")
    for path in (tmp_path / "data").glob("test/*/*.png"):
        with Image.open(path) as image:
            image.resize((72, 72), Image.Resampling.NEAREST).save(path)
    with pytest.raises(InputError, match=r"subject s3: .*slices have 72 x 72 pixels, and 36 x 36 in dataset\.json"):
        run(trained.checkpoint, tmp_path / "data" / "test", out=tmp_path / "out")


def test_masks_of_another_size_are_refused(trained, tmp_path):
    for path in sorted((trained.data / "test" / "GT").iterdir()):
        with Image.open(path) as mask:
            mask.crop((0, 0, 35, 36)).save(tmp_path / path.name)
    with pytest.raises(InputError, match=r"slice_1\.png: is no mask of 36 x 36 pixels"):
        run(trained.checkpoint, trained.data / "test", out=tmp_path / "out", truth=(tmp_path,))


def test_masks_with_other_labels_are_no_truth(trained, tmp_path):
    """The same values, but another organ's: each would be scored as the network's."""
    labels = json.loads((trained.data / "dataset.json").read_text())["labels"]
    first, *others = [name for name in labels if name != "background"]
    turned = dict(zip(labels, ("background", *others, first), strict=True))
    renamed = {turned[name]: value for name, value in labels.items()}
    test = described(trained, tmp_path, labels=renamed, values={name: k for k, name in enumerate(renamed)})
    with pytest.raises(InputError, match=r"GT: its dataset\.json gives other labels than the network was trained on"):
        run(trained.checkpoint, test, out=tmp_path / "out", truth=(test / "GT",))
