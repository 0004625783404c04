"""Segmentation of new scans: the grid they come back on, and agreement with what training scored."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from medpy.metric import binary
from PIL import Image
from scipy.ndimage import map_coordinates

import predict
import prepare
from checkpoint import load_checkpoint, save_checkpoint
from config import Config
from data.folder import open_data
from data.png import read_image
from data.preparation import Preparation
from data.sources.dicom import read_series
from data.volumes import largest_components, to_scan
from engine import segment_volume
from main import main as train
from tests.test_prepare import ORIENTATIONS, make_scan, write_scan
from tests.test_sources import slice_position, write_dicom
from utils import InputError

# With this seed and batch, an epoch ends in a network that finds every class somewhere.
CONFIG = Config(backbone="resnet18", steps=1, epochs=1, batch_size=1, seed=2, workers=0, device="cpu", amp="off")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Scans in four orientations, slices of 36 x 36 of them, and a run of an epoch on those: their folders."""
    root = tmp_path_factory.mktemp("trained")
    (root / "scans").mkdir()
    for seed, code in enumerate(("LAS", "RPI", "ASL", "SRP")):
        write_scan(root / "scans", f"s{seed}", *make_scan(seed, code, (5, -4, 8), size=(40, 34, 3)))
    (root / "split.json").write_text('{"train": ["s0", "s1"], "val": ["s2"], "test": ["s3"]}')
    prepare.main(
        [
            "nifti",
            str(root / "scans"),
            "--out",
            str(root / "data"),
            "--split-file",
            str(root / "split.json"),
            "--size",
            "36",
        ]
    )
    train(replace(CONFIG, data=root / "data", out=root / "run"))
    assert len(np.unique(read(root / "run" / "predictions" / "s3.nii.gz"))) > 2, "the tests would compare nothing"
    return root / "scans", root / "data", root / "run"


def run(*arguments: object, **options) -> None:
    options = {"device": "cpu"} | options
    predict.main(predict.Options(str(arguments[0]), tuple(map(str, arguments[1:])), **options))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


def test_a_test_scan_gets_the_prediction_of_training(trained, tmp_path, monkeypatch):
    """From the scan itself, from its slices, and in training: one segmentation, on the scan's own grid."""
    monkeypatch.setattr(predict, "use_bfloat16", lambda amp, device: False)
    scans, data, folder = trained
    run(folder / "best.pt", scans / "image_s3.nii.gz", out=tmp_path / "a", truth=(scans / "label_s3.nii.gz",))
    run(folder / "best.pt", data / "test", out=tmp_path / "b", truth=(data / "test" / "GT",))
    original, ours = sitk.ReadImage(scans / "image_s3.nii.gz"), sitk.ReadImage(tmp_path / "a" / "image_s3.nii.gz")
    assert ours.GetSize() == original.GetSize()
    for part in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, part)(), getattr(original, part)(), atol=1e-4)
    expected = read(folder / "predictions" / "s3.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "a" / "image_s3.nii.gz"), expected)
    np.testing.assert_array_equal(read(tmp_path / "b" / "s3.nii.gz"), expected)
    with (tmp_path / "a" / "volumes.csv").open(newline="") as file:
        volumes = list(csv.DictReader(file))
    for k, row in enumerate(volumes, 1):
        count = (expected == k).sum()
        assert int(row["voxels"]) == count
        assert float(row["ml"]) == pytest.approx(count * 1.25 * 0.8 * 7.7 / 1000, abs=1e-3)
    with (tmp_path / "a" / "scores.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    truth, spacing = read(scans / "label_s3.nii.gz"), original.GetSpacing()[::-1]
    measured = 0
    for k, row in enumerate(scores, 1):
        a, b = expected == k, truth == k
        assert float(row["dsc"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        if a.any() and b.any():
            measured += 1
            assert float(row["msd_mm"]) == pytest.approx(binary.assd(a, b, voxelspacing=spacing), rel=1e-4)
            assert float(row["hd95_mm"]) == pytest.approx(binary.hd95(a, b, voxelspacing=spacing), rel=1e-4)
    assert measured
    with (tmp_path / "b" / "scores.csv").open(newline="") as file:
        of_slices = list(csv.DictReader(file))
    with (folder / "test.csv").open(newline="") as file:
        of_training = list(csv.DictReader(file))
    for ours, theirs in zip(of_slices, of_training, strict=True):
        assert float(ours["dsc"]) == pytest.approx(float(theirs["dsc"]))
    assert (tmp_path / "a" / "image_s3.png").stat().st_size > 3000


def test_the_validation_of_the_training_is_that_of_the_checkpoint(trained, tmp_path):
    _, data, folder = trained
    run(folder / "best.pt", data / "val", out=tmp_path / "out", truth=(data / "val" / "GT",))
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        scores = {row["class"]: float(row["dsc"]) for row in csv.DictReader(file)}
    with (folder / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {name: float(row[f"val_dsc {name}"]) for name in scores} == pytest.approx(scores)
    assert float(row["val_dsc"]) == pytest.approx(np.mean(list(scores.values())))
    assert max(scores.values()) < 1


def test_checkpoints_and_flips_are_averaged(trained, tmp_path):
    """The probabilities of two checkpoints are the mean of those of each; those with flips are not those without."""
    scans, _, folder = trained
    best = load_checkpoint(folder / "best.pt")
    weights = {k: v + 0.02 * torch.randn_like(v) if v.ndim == 4 else v for k, v in best["model"].items()}
    save_checkpoint(tmp_path / "other.pt", best | {"model": weights})
    found = {}
    for name, checkpoint, tta in (
        ("a", folder / "best.pt", False),
        ("b", tmp_path / "other.pt", False),
        ("both", f"{folder / 'best.pt'},{tmp_path / 'other.pt'}", False),
        ("flips", folder / "best.pt", True),
    ):
        run(checkpoint, scans / "image_s1.nii.gz", out=tmp_path / name, tta=tta, probabilities=True)
        found[name] = read(tmp_path / name / "image_s1_probabilities.nii.gz")
    assert np.abs(found["a"] - found["b"]).max() > 1e-3
    np.testing.assert_allclose(found["both"], (found["a"] + found["b"]) / 2, atol=1e-6)
    assert np.abs(found["flips"] - found["a"]).max() > 1e-4


def test_sixteen_bits_are_a_finer_grey(trained):
    """The same scan in 8 and 16 bits: the same image up to half a grey value of the coarser."""
    scans, _, folder = trained
    network = predict.load_network(folder / "best.pt", torch.device("cpu"))
    fine = network._replace(preparation=replace(network.preparation, bits=16))
    (coarse,), (finer,) = (predict.read_scans(str(scans / "image_s0.nii.gz"), "s0", n) for n in (network, fine))
    difference = np.abs(coarse.images - finer.images)
    assert 0.3 / 255 < difference.max() < 0.501 / 255


@pytest.mark.parametrize("code", ORIENTATIONS[::7])
def test_orientation_does_not_change_the_segmentation(trained, tmp_path, code):
    image, _ = make_scan(9, "LPS", (3, 2, -5), size=(40, 34, 3))
    for name, scan in (("upright", image), ("turned", sitk.DICOMOrient(image, code))):
        sitk.WriteImage(scan, tmp_path / f"{name}.nii.gz")
    run(trained[2] / "best.pt", tmp_path / "upright.nii.gz", tmp_path / "turned.nii.gz", out=tmp_path / "out")
    turned = sitk.ReadImage(tmp_path / "out" / "turned.nii.gz")
    back = sitk.GetArrayFromImage(sitk.DICOMOrient(turned, "LPS"))
    np.testing.assert_array_equal(back, read(tmp_path / "out" / "upright.nii.gz"))


def test_flips_are_refused_where_training_had_none(trained, tmp_path):
    """They would exchange the kidneys of a network that has learned which is which."""
    checkpoint = load_checkpoint(trained[2] / "best.pt")
    checkpoint["config"]["flip_probability"] = 0.0
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    with pytest.raises(InputError, match=r"best\.pt was trained without flips"):
        run(tmp_path / "best.pt", trained[0] / "image_s3.nii.gz", out=tmp_path / "out", tta=True)
    assert not (tmp_path / "out").exists()


def test_results_never_replace_scans_or_truth(trained, tmp_path):
    """Results have the scans' names, so they go into none of the folders that were given."""
    scans, data, folder = trained
    for name in ("image_s3.nii.gz", "label_s3.nii.gz"):
        (tmp_path / name).write_bytes((scans / name).read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    for out in (tmp_path, link):
        with pytest.raises(InputError, match=r"holds .*image_s3\.nii\.gz.*choose another folder"):
            run(folder / "best.pt", tmp_path / "image_s3.nii.gz", out=out)
    with pytest.raises(InputError, match=r"holds .*label_s3\.nii\.gz"):
        run(folder / "best.pt", scans / "image_s3.nii.gz", out=tmp_path, truth=(tmp_path / "label_s3.nii.gz",))
    with pytest.raises(InputError, match=r"holds .*test"):
        run(folder / "best.pt", data / "test", out=data / "test" / "GT")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "scan.nii.gz").symlink_to(scans / "image_s3.nii.gz")
    with pytest.raises(InputError, match=r"holds .*links/scan\.nii\.gz"):
        run(folder / "best.pt", tmp_path / "links" / "scan.nii.gz", out=tmp_path / "links")
    run(folder / "best.pt", tmp_path / "links" / "scan.nii.gz", out=tmp_path / "out")
    assert (tmp_path / "out" / "scan.nii.gz").exists(), "called by the link, not by what it leads to"


def test_what_cannot_be_out_or_truth_is_said_before_the_work(trained, tmp_path):
    scan = trained[0] / "image_s3.nii.gz"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/out: is a file, or would lie in one"):
        run(trained[2] / "best.pt", scan, out=tmp_path / "file" / "out")
    with pytest.raises(InputError, match=r"--truth .*label_s9\.nii\.gz: no such file"):
        run(trained[2] / "best.pt", scan, out=tmp_path / "out", truth=(trained[0] / "label_s9.nii.gz",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("largest", [False, True])
def test_probabilities_of_resampled_slices_are_interpolated(trained, tmp_path, largest):
    """Against SciPy at the positions of the scan's voxels; around the slices is background."""
    source = trained[0] / "image_s2.nii.gz"
    network = predict.load_network(trained[2] / "best.pt", torch.device("cpu"))
    network = network._replace(
        preparation=Preparation(spacing=(0.7, 1.9), size=44), config=replace(network.config, largest_component=largest)
    )
    (scan,) = predict.read_scans(str(source), "s2", network)
    probabilities = np.random.default_rng(0).dirichlet(np.full(4, 0.3), scan.images.shape[1:]).transpose(3, 0, 1, 2)
    probabilities = probabilities.astype(np.float32)
    options = predict.Options("", (), tmp_path, probabilities=True)
    result = predict.write_results(options, scan, probabilities, network)
    image = sitk.ReadImage(source)
    spacing, direction = np.array(scan.geometry["spacing"]), np.reshape(scan.geometry["direction"], (3, 3))
    voxels = list(np.ndindex(image.GetSize()))
    points = np.array([image.TransformIndexToPhysicalPoint(voxel) for voxel in voxels])
    places = (points - scan.geometry["origin"]) @ direction / spacing
    inside = ((places > -0.5) & (places < np.array(probabilities.shape[:0:-1]) - 0.5)).all(1)
    assert 0.2 < inside.mean() < 1
    expected = np.stack([map_coordinates(each, places.T[::-1], order=1, mode="nearest") for each in probabilities])
    expected = np.where(inside, expected, np.eye(4)[0][:, None]).reshape(4, *image.GetSize()).transpose(0, 3, 2, 1)
    found = read(tmp_path / "s2_probabilities.nii.gz")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    classes = found.argmax(0)
    np.testing.assert_array_equal(
        read(tmp_path / "s2.nii.gz"), largest_components(classes.astype(np.uint8)) if largest else classes
    )
    assert (read(tmp_path / "s2.nii.gz") != sitk.GetArrayFromImage(to_scan(result.slices, scan.geometry))).any()


def test_a_truth_with_an_unknown_value_says_where(trained, tmp_path):
    label = sitk.ReadImage(trained[0] / "label_s3.nii.gz")
    label[1, 3, 2] = 99
    sitk.WriteImage(label, tmp_path / "truth.nii.gz")
    with pytest.raises(InputError, match=r"unknown mask value 99 at slice 2, row 3, column 1 \(1 pixels\)"):
        run(
            trained[2] / "best.pt", trained[0] / "image_s3.nii.gz",
            out=tmp_path / "out", truth=(tmp_path / "truth.nii.gz",),
        )  # fmt: skip


def test_slices_of_another_size_than_their_geometry_are_refused(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "data")
    for path in (tmp_path / "data").glob("test/*/*.png"):
        with Image.open(path) as image:
            image.resize((72, 72), Image.Resampling.NEAREST).save(path)
    with pytest.raises(InputError, match=r"subject s3 have 72 x 72 pixels, and 36 x 36 in dataset\.json"):
        run(trained[2] / "best.pt", tmp_path / "data" / "test", out=tmp_path / "out")


def test_what_is_done_is_kept_when_a_later_scan_is_bad(trained, tmp_path):
    scans, _, folder = trained
    with pytest.raises(InputError, match="missing"):
        run(folder / "best.pt", scans / "image_s3.nii.gz", tmp_path / "missing.nii.gz", out=tmp_path / "out")
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        assert {row["scan"] for row in csv.DictReader(file)} == {"image_s3"}


def test_masks_of_another_size_are_refused(trained, tmp_path):
    _, data, folder = trained
    for path in sorted((data / "test" / "GT").iterdir()):
        with Image.open(path) as mask:
            mask.crop((0, 0, 35, 36)).save(tmp_path / path.name)
    with pytest.raises(InputError, match=r"slice_1\.png: is no mask of 36 x 36 pixels"):
        run(folder / "best.pt", data / "test", out=tmp_path / "out", truth=(tmp_path,))


@pytest.mark.parametrize("amp", ["on", "off"])
def test_the_precision_is_that_of_the_training(trained, tmp_path, monkeypatch, amp):
    checkpoint = load_checkpoint(trained[2] / "best.pt")
    checkpoint["config"]["amp"] = amp
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    used = []
    monkeypatch.setattr(predict, "segment_volume", lambda *a, **k: used.append(a[4]) or segment_volume(*a, **k))
    run(tmp_path / "best.pt", trained[0] / "image_s3.nii.gz", out=tmp_path / "out")
    assert used == [amp == "on"]


def test_slices_without_the_first_ones_stay_in_place(trained, tmp_path, monkeypatch):
    """On the whole scan's grid, from its slices and in training; a slice that was removed is background."""
    _, data, folder = trained
    by_value = lambda models, images, *_: np.stack([images[0] < 0.5, images[0] >= 0.5]).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(predict, "segment_volume", by_value)
    shutil.copytree(data, tmp_path / "data")
    for split in ("train", "val", "test"):
        for path in (tmp_path / "data" / split).glob("*/*slice_1.png"):
            path.unlink()
    run(folder / "best.pt", data / "test", out=tmp_path / "whole")
    run(folder / "best.pt", tmp_path / "data" / "test", out=tmp_path / "cut")
    whole, cut = (sitk.ReadImage(tmp_path / name / "s3.nii.gz") for name in ("whole", "cut"))
    assert cut.GetSize() == whole.GetSize() and cut.GetOrigin() == pytest.approx(whole.GetOrigin())
    whole, cut = (sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")) for image in (whole, cut))
    np.testing.assert_array_equal(cut[1:], whole[1:])
    assert not cut[0].any() and whole[1:].any()
    geometry = open_data(tmp_path / "data").geometry["s3"]
    assert to_scan(np.zeros((2, 36, 36), np.uint8), geometry).GetSize() == (3, 40, 34)


def test_no_scans(trained, tmp_path):
    with pytest.raises(InputError, match="no scans"):
        run(trained[2] / "best.pt", out=tmp_path / "out")


def test_dicom_folder_and_probabilities(trained, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        write_dicom(tmp_path / "series" / f"{9 - k}.dcm", rng.integers(0, 500, (34, 40)), slice_position(k))
    run(trained[2] / "best.pt", tmp_path / "series", out=tmp_path / "out", probabilities=True, tta=True, dicom=True)
    as_dicom, label = read_series(tmp_path / "out" / "series_dicom"), sitk.ReadImage(tmp_path / "out" / "series.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(as_dicom.image), sitk.GetArrayFromImage(label))
    for part in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(as_dicom.image, part)(), getattr(label, part)(), atol=1e-4)
    assert [path.name for path in as_dicom.files] == ["9.dcm", "8.dcm", "7.dcm"]
    label = sitk.ReadImage(tmp_path / "out" / "series.nii.gz")
    np.testing.assert_allclose(label.GetSpacing(), (1.5, 1.25, 5.5), rtol=1e-5)
    probabilities = read(tmp_path / "out" / "series_probabilities.nii.gz")
    assert probabilities.shape == (4, 3, 34, 40)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert (probabilities[0] == 1).all((0, 1)).tolist() == [True] * 2 + [False] * 36 + [True] * 2  # cropped: background
    np.testing.assert_array_equal(probabilities.argmax(0), sitk.GetArrayFromImage(label))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["MR/1/InPhase"], ["InPhase"]),
        (["MR/1/InPhase", "MR/12/InPhase"], ["1_InPhase", "12_InPhase"]),
        (["MR/1/T1/InPhase", "MR/2/T1/InPhase", "CT/7"], ["1_T1_InPhase", "2_T1_InPhase", "MR_CT_7"]),
        (["a/x.nii.gz,a/y.nii.gz", "a/z.1.nii"], ["x", "z.1"]),
        (["a/x.nii", "b/x.nii.gz"], ["a_x", "b_x"]),
        (["a/x.nii", "a/x.nii"], ["x", "x"]),
    ],
)
def test_results_are_called_by_what_tells_scans_apart(tmp_path, paths, names):
    for path in paths:
        if "." not in path:
            (tmp_path / "MR" / path).mkdir(parents=True)
    sources = [",".join(f"{tmp_path}/MR/{part}" for part in path.split(",")) for path in paths]
    assert predict.scan_names(sources) == names


def test_original_label_values_come_back(trained, tmp_path):
    """BraTS's classes are 0, 1, 2 and 4: so must be those of a segmentation."""
    checkpoint = load_checkpoint(trained[2] / "best.pt")
    save_checkpoint(tmp_path / "brats.pt", checkpoint | {"values": [0, 1, 2, 4]})
    scan = trained[0] / "image_s0.nii.gz"
    run(trained[2] / "best.pt", scan, out=tmp_path / "a")
    run(tmp_path / "brats.pt", scan, out=tmp_path / "b")
    ours = read(tmp_path / "a" / "image_s0.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "b" / "image_s0.nii.gz"), np.array([0, 1, 2, 4])[ours])


class Constant(torch.nn.Module):
    """Logits that are the image's first channel and fixed numbers."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image):
        return torch.stack([image[:, 0] * 3, *(torch.full_like(image[:, 0], value) for value in self.logits)], 1)


def test_models_and_flips_are_averaged():
    images = np.random.default_rng(0).random((2, 5, 33, 34)).astype(np.float32)
    models = [Constant(1.0, 2.0), Constant(0.0, -1.0)]
    ours = segment_volume(models, images, 2, torch.device("cpu"), bfloat16=False, flips=True)
    expected = np.mean([model(torch.from_numpy(images.swapaxes(0, 1))).softmax(1).numpy() for model in models], 0)
    np.testing.assert_allclose(ours, expected.swapaxes(0, 1), rtol=1e-5)


class LeftToRight(torch.nn.Module):
    """Logits that grow along the columns: flips must undo them."""

    def forward(self, image):
        ramp = torch.linspace(0, 1, image.shape[-1]).expand_as(image[:, 0])
        return torch.stack([ramp, image[:, 0]], 1)


def test_flips_are_undone():
    images = np.random.default_rng(0).random((1, 2, 33, 34)).astype(np.float32)
    ours = segment_volume([LeftToRight()], images, 1, torch.device("cpu"), bfloat16=False, flips=True)
    ramp, flipped = np.linspace(0, 1, 34), np.linspace(1, 0, 34)
    expected = np.mean([1 / (1 + np.exp(images[0] - r)) for r in (ramp, flipped)], 0)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-5)


def change(path: Path, target: Path, **entries) -> Path:
    save_checkpoint(target, load_checkpoint(path) | entries)
    return target


def described(run_folder: Path, target: Path, **entries) -> Path:
    """The test split of the run's data, whose dataset.json says something else."""
    data = shutil.copytree(run_folder.parent / "data", target / "data")
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(content | entries))
    return data / "test"


def scans(run_folder: Path, *subjects: int) -> str:
    return ",".join(str(run_folder.parent / "scans" / f"image_s{k}.nii.gz") for k in subjects)


BAD = {
    "no checkpoint": (lambda r, t: [t / "none.pt", t], ["none.pt", "no such checkpoint"]),
    "another file": (lambda r, t: [change(r / "best.pt", t / "odd.pt", config={}), t], ["odd.pt", "configuration"]),
    "half a checkpoint": (lambda r, t: [change(r / "best.pt", t / "odd.pt", model={}), t], ["odd.pt", "no checkpoint"]),
    "other folds": (
        lambda r, t: [f"{r / 'best.pt'},{change(r / 'best.pt', t / 'b.pt', values=[0, 1, 2, 9])}", t],
        ["b.pt", "other data"],
    ),
    "no scan": (lambda r, t: [r / "best.pt", t / "none.nii.gz"], ["none.nii.gz", "no such file"]),
    "damaged scan": (
        lambda r, t: [r / "best.pt", (t / "x.nii.gz").write_bytes(b"noise") and t / "x.nii.gz"],
        ["x.nii.gz", "readable"],
    ),
    "empty folder": (lambda r, t: [r / "best.pt", t], ["holds no DICOM files"]),
    "folder of NIfTI files": (lambda r, t: [r / "best.pt", r.parent / "scans"], ["no DICOM", "scans/*.nii.gz"]),
    "two channels": (lambda r, t: [r / "best.pt", scans(r, 0, 0)], ["2 channels", "takes 1"]),
    "other grid": (lambda r, t: [r / "best.pt", scans(r, 0, 1)], ["image_s1.nii.gz", "lies elsewhere"]),
    "channel elsewhere": (lambda r, t: [r / "best.pt", scans(r, 0, 1, 0)], ["image_s1.nii.gz: lies elsewhere"]),
    "slices prepared otherwise": (
        lambda r, t: [r / "best.pt", described(r, t, preparation={"size": 36, "bits": 16})],
        ["data/test: its slices were prepared in another way", "(bits 8 -> 16)"],
    ),
    "same name": (lambda r, t: [r / "best.pt", scans(r, 0), scans(r, 0)], ["a second scan called image_s0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(trained, tmp_path, case):
    arguments, expected = BAD[case]
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError) as caught:
        run(*arguments(trained[2], tmp_path / "in"), out=tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_masks_with_other_labels_are_no_truth(trained, tmp_path):
    """The same values, but another organ's: each would be scored as the network's."""
    labels = json.loads((trained[1] / "dataset.json").read_text())["labels"]
    first, *others = [name for name in labels if name != "background"]
    turned = dict(zip(labels, ("background", *others, first), strict=True))
    renamed = {turned[name]: value for name, value in labels.items()}
    test = described(trained[2], tmp_path, labels=renamed, values={name: k for k, name in enumerate(renamed)})
    with pytest.raises(InputError, match=r"GT: its dataset\.json gives other labels than the network was trained on"):
        run(trained[2] / "best.pt", test, out=tmp_path / "out", truth=(test / "GT",))


def test_preparation_survives_json_and_refuses_another_version():
    preparation = Preparation("coronal", 64, (1.5, 2.0), "volume", (40.0, 400.0), 16)
    assert Preparation.from_dict(json.loads(json.dumps(preparation.to_dict()))) == preparation
    with pytest.raises(InputError, match="another version"):
        Preparation.from_dict({"sharpen": 3})


def test_prepared_slices_are_what_the_network_gets(trained):
    """predict.py feeds the very numbers that the loader reads from the PNGs."""
    scans, data, folder = trained
    network = predict.load_network(folder / "best.pt", torch.device("cpu"))
    (scan,) = predict.read_scans(str(scans / "image_s3.nii.gz"), "s3", network)
    for number, images in zip(scan.numbers, scan.images.swapaxes(0, 1), strict=True):
        np.testing.assert_array_equal(images, read_image(data / "test" / "Img" / f"Subj_s3slice_{number}.png"))
