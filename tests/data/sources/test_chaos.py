"""The CHAOS challenge's layout, on trees that the tests write, with the traps that the release has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

import prepare
from data.folder import open_data
from data.sources.chaos import ChaosCT, ChaosMR
from data.sources.dicom import read_series
from tests.helpers.errors import assert_one_line
from tests.helpers.png import save_png
from tests.helpers.scans import REAL, needs_real_data, slice_position, write_dicom
from utils import InputError

# ---------------------------------------------------------------- MR


def write_chaos_mr(root: Path, subject: str, size: int = 40, depth: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """In-phase and out-phase series with one UID; file names run against the positions. -> scan, classes."""
    rng = np.random.default_rng(int(subject))
    scan = rng.integers(0, 900, (depth, size, size))
    classes = rng.integers(0, 5, (depth, size, size))
    t1 = root / subject / "T1DUAL"
    for k in range(depth):
        names = f"IMG-0004-{2 * (depth - k):05d}", f"IMG-0004-{2 * (depth - k) + 1:05d}"
        write_dicom(t1 / "DICOM_anon" / "InPhase" / f"{names[0]}.dcm", scan[k], slice_position(k))
        write_dicom(t1 / "DICOM_anon" / "OutPhase" / f"{names[1]}.dcm", 1000 - scan[k], slice_position(k))
        grey = np.array([0, 63, 126, 189, 252], np.uint8)[classes[k]]
        grey[grey == 63] = rng.choice([56, 63, 69], (grey == 63).sum())  # the challenge's masks hold ranges
        save_png(t1 / "Ground" / f"{names[0]}.png", grey)
    for folder in (root, root / subject, t1 / "DICOM_anon" / "InPhase", t1 / "Ground"):
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return scan, classes


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    """A challenge's MR folder that is only read, and scan and classes of each of its subjects."""
    root = tmp_path_factory.mktemp("chaos") / "MR"
    return root, {subject: write_chaos_mr(root, subject, 44 if subject == "3" else 40) for subject in ("1", "3", "21")}


@pytest.mark.parametrize("sequence", ["t1-in", "t1-out"])
def test_chaos_mr(chaos, tmp_path, sequence):
    root, truth = chaos
    out = tmp_path / "out"
    arguments = ["chaos-mr", str(root), "--out", str(out), "--split", "1,1,1", "--sequence", sequence, "--size", "40"]
    prepare.main(arguments)
    data = open_data(out)
    assert data.labels.names == ("background", "liver", "right kidney", "left kidney", "spleen")
    assert data.labels.codes == (0, 63, 126, 189, 252)
    for split in data.splits:
        dataset = data.dataset(split)
        (subject,) = dataset.subjects()
        scan, classes = truth[subject]
        margin = (scan.shape[1] - 40) // 2  # 288 x 288 scans are cropped about their center, as the authors did
        inside = np.s_[:, margin : margin + 40, margin : margin + 40]
        np.testing.assert_array_equal(np.stack([target for _, target in dataset]), classes[inside])
        values = (scan if sequence == "t1-in" else 1000 - scan)[inside]
        low, high = (f(values, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        pixels = np.stack([image[0] for image, _ in dataset]) * 255
        assert np.abs(pixels - (values - low) / (high - low) * 255).max() <= 0.501
        np.testing.assert_allclose(data.geometry[subject].spacing, (1.5, 1.25, 5.5))


def test_chaos_t2(tmp_path):
    write_dicom(tmp_path / "5" / "T2SPIR" / "DICOM_anon" / "IMG-1.dcm", np.ones((36, 36)), slice_position(0))
    save_png(tmp_path / "5" / "T2SPIR" / "Ground" / "IMG-1.png", np.full((36, 36), 252, np.uint8))
    source = ChaosMR(tmp_path, "t2")
    assert source.subjects() == ["5"]
    assert (sitk.GetArrayFromImage(source.read("5").label) == 4).all()


def add_slice(folder: Path, **options) -> None:
    """A fifth slice, which goes on with the series where `options` say nothing else."""
    settings = {"pixels": np.zeros((40, 40)), "position": slice_position(4)} | options
    write_dicom(folder / "extra.dcm", **settings)


IN_PHASE = "1/T1DUAL/DICOM_anon/InPhase"
GROUND = "1/T1DUAL/Ground"


def test_folds_know_the_classes_of_ground_truth(chaos, tmp_path):
    root, truth = chaos
    expected = {subject: set(np.unique(classes).tolist()) - {0} for subject, (_, classes) in truth.items()}
    assert ChaosMR(root).classes_of(list(truth)) == expected
    save_png(tmp_path / "1" / "Ground" / "liver_GT_000.png", np.array([[0, 255]], np.uint8))
    save_png(tmp_path / "2" / "Ground" / "liver_GT_000.png", np.zeros((1, 2), np.uint8))
    assert ChaosCT(tmp_path).classes_of(["1", "2"]) == {"1": {1}, "2": set()}
    assert ChaosCT(tmp_path).classes_of(["1", "3"], skip_bad=True) == {"1": {1}}


BAD = {
    "position twice": (lambda r: add_slice(r / IN_PHASE, position=slice_position(3)), ["same position", "extra.dcm"]),
    "position missing": (lambda r: add_slice(r / IN_PHASE, position=slice_position(6)), ["16.50 mm", "are missing"]),
    "mixed series": (lambda r: add_slice(r / IN_PHASE, series="9.9"), ["another series"]),
    "another size": (lambda r: add_slice(r / IN_PHASE, pixels=np.zeros((40, 41))), ["another size"]),
    "another spacing": (lambda r: add_slice(r / IN_PHASE, spacing=(2, 2)), ["another pixel spacing"]),
    "another orientation": (
        lambda r: add_slice(r / IN_PHASE, direction=Rotation.from_euler("x", 0.2).as_matrix()), ["another orientation"],
    ),
    "slice aside": (lambda r: add_slice(r / IN_PHASE, position=np.add(slice_position(4), (3, 0, 0))), ["sideways"]),
    "broken file": (lambda r: (r / IN_PHASE / "extra.dcm").write_bytes(b"DICM"), ["extra.dcm", "not a readable DICOM"]),
    "empty series": (lambda r: [p.unlink() for p in (r / IN_PHASE).glob("*.dcm")], ["holds no DICOM"]),
    "mask missing": (lambda r: (r / GROUND / "IMG-0004-00004.png").unlink(), ["has no IMG-0004-00004.png"]),
    "mask too many": (lambda r: save_png(r / GROUND / "x.png", np.zeros((40, 40), np.uint8)), ["x.png", "no DICOM"]),
    "mask of another size": (
        lambda r: save_png(r / GROUND / "IMG-0004-00004.png", np.zeros((41, 40), np.uint8)), ["40 x 41", "40 x 40"],
    ),
    "classes for greys": (
        lambda r: save_png(r / GROUND / "IMG-0004-00004.png", np.full((40, 40), 4, np.uint8)),
        ["IMG-0004-00004.png: holds the values 4", "63, 126, 189"],
    ),
    "no ground truth": (
        lambda r: (r / GROUND).rename(r / "1" / "elsewhere"), ["Ground", "no such folder"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def four_subjects(tmp_path_factory) -> Path:
    """A challenge's MR folder to copy."""
    root = tmp_path_factory.mktemp("four") / "MR"
    for subject in ("1", "2", "3", "4"):
        write_chaos_mr(root, subject)
    return root


@pytest.mark.parametrize("case", BAD)
def test_bad_chaos_names_the_subject_and_can_be_skipped(four_subjects, tmp_path, case, capsys):
    root = shutil.copytree(four_subjects, tmp_path / "MR")
    spoil, expected = BAD[case]
    spoil(root)
    split = tmp_path / "split.json"
    split.write_text('{"train": ["1", "2"], "val": ["3"], "test": ["4"]}')
    arguments = ["chaos-mr", str(root), "--out", str(tmp_path / "out"), "--split_file", str(split)]
    with pytest.raises(InputError) as caught:
        prepare.main(arguments)
    assert str(caught.value).startswith("subject 1: ")
    assert_one_line(caught.value, *expected)
    assert not (tmp_path / "out").exists()
    prepare.main([*arguments, "--skip_bad"])
    assert f"left out: {caught.value}" in capsys.readouterr().out
    assert list(open_data(tmp_path / "out").dataset("train").subjects()) == ["2"]


# ---------------------------------------------------------------- CT


def test_chaos_ct_window_and_one_bit_masks(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "CT"
    scan, liver = rng.integers(-1000, 1000, (3, 3, 36, 36)), rng.integers(0, 2, (3, 3, 36, 36)).astype(bool)
    for subject in range(3):
        for k in range(3):  # names count from the head down, positions up
            name = 2 - k
            write_dicom(
                root / str(subject) / "DICOM_anon" / f"i{name:04d},0000b.dcm", scan[subject, k], slice_position(k)
            )
            save_png(root / str(subject) / "Ground" / f"liver_GT_{name:03d}.png", liver[subject, k])
    prepare.main(["chaos-ct", str(root), "--out", str(tmp_path / "out"), "--folds", "3", "--fold", "2"])
    data = open_data(tmp_path / "out")
    described, splits = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("dataset", "splits"))
    assert len(splits) == 3
    assert described["split"] == splits[1]
    assert data.preparation.window == (40.0, 400.0)
    for split in data.splits:
        dataset = data.dataset(split)
        (subject,) = dataset.subjects()
        np.testing.assert_array_equal(np.stack([t for _, t in dataset]), liver[int(subject)])
        expected = ((scan[int(subject)] + 160) / 400 * 255).clip(0, 255)
        assert np.abs(np.stack([image[0] for image, _ in dataset]) * 255 - expected).max() <= 0.501


def test_a_normalization_takes_the_place_of_chaos_ct_s_window(tmp_path):
    for subject in range(3):
        for k in range(2):
            image = np.full((36, 36), 1000 * subject + 10 * k)
            image[k, subject] = -500
            write_dicom(tmp_path / "CT" / str(subject) / "DICOM_anon" / f"i{k}.dcm", image, slice_position(k))
            save_png(tmp_path / "CT" / str(subject) / "Ground" / f"liver_GT_{k}.png", image < 0)
    arguments = ["chaos-ct", str(tmp_path / "CT"), "--out", str(tmp_path / "out"), "--folds", "3"]
    prepare.main([*arguments, "--normalize", "volume"])
    data = open_data(tmp_path / "out")
    assert (data.preparation.normalize, data.preparation.window) == ("volume", None)
    for split in data.splits:  # the window would make 240 HU and all above it white
        grey = np.stack([image.numpy() for image, _ in data.dataset(split)])
        assert (grey.max(), grey.min()) == (1, 0)
        (subject,) = data.dataset(split).subjects()
        code = round(255 * (1000 * int(subject) + 500) / (1000 * int(subject) + 510))
        assert grey[0].max() == np.float32(code) / np.float32(255)


def test_chaos_ct_refuses_another_number_of_masks(tmp_path):
    write_dicom(tmp_path / "1" / "DICOM_anon" / "a.dcm", np.zeros((36, 36)), slice_position(0))
    (tmp_path / "1" / "Ground").mkdir()
    with pytest.raises(InputError, match="0 masks for 1 slices"):
        ChaosCT(tmp_path).read("1")


@needs_real_data
def test_real_chaos_ct(tmp_path):
    root = tmp_path / "CT"
    root.mkdir()
    (root / "1").symlink_to(REAL / "chaos_ct_dicom")
    case = ChaosCT(root).read("1")
    np.testing.assert_allclose(case.images[0].GetSpacing()[2], 2.0, atol=1e-6)  # SliceThickness says 3.2
    masks = {path.stem[-3:]: np.asarray(Image.open(path)) for path in (REAL / "chaos_ct_dicom" / "Ground").iterdir()}
    series = read_series(REAL / "chaos_ct_dicom" / "DICOM_anon")
    for plane, path in zip(sitk.GetArrayFromImage(case.label), series.files, strict=True):
        np.testing.assert_array_equal(plane, masks[path.name[2:5]])
