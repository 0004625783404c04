"""Each challenge's layout, on trees that the tests write: real DICOM files, with the traps that the releases have."""

from __future__ import annotations

import json
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

import prepare
from data.folder import open_data
from data.sources.chaos import ChaosCT, ChaosMR
from data.sources.dicom import read_series, write_series
from data.splits import PAPER_SEED, PROTOCOLS, fold_split, random_splits
from data.volumes import assemble, to_scan
from utils import InputError

UPRIGHT = np.eye(3)
REAL = Path(__file__).parents[2] / "shared" / "data"


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    position,
    direction=UPRIGHT,
    spacing=(1.5, 1.25),
    series="1.2.3",
    charset="ISO_IR 100",
) -> None:
    """One CT or MR slice; spacing is (x, y). SliceThickness lies, as in CHAOS CT."""
    image = sitk.GetImageFromArray(pixels.astype(np.int16))
    image.SetSpacing(spacing)
    tags = {
        "0008|0060": "MR",
        "0008|0005": charset,
        "0010|0010": "X",
        "0018|0050": "9.9",
        "0020|000e": series,
        "0020|0032": "\\".join(f"{x:.6g}" for x in position),
        "0020|0037": "\\".join(f"{x:.8g}" for x in np.asarray(direction)[:, :2].T.ravel()),
    }
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.Execute(image)


def slice_position(k: int, direction=UPRIGHT, gap: float = 5.5) -> np.ndarray:
    return np.array([-20.0, 10.0, 30.0]) + np.asarray(direction)[:, 2] * gap * k


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


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
        save_mask(t1 / "Ground" / f"{names[0]}.png", grey)
    for folder in (root, root / subject, t1 / "DICOM_anon" / "InPhase", t1 / "Ground"):
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return scan, classes


@pytest.fixture
def chaos(tmp_path):
    return tmp_path / "MR", {s: write_chaos_mr(tmp_path / "MR", s, 44 if s == "3" else 40) for s in ("1", "3", "21")}


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
        np.testing.assert_allclose(data.geometry[subject]["spacing"], (1.5, 1.25, 5.5))


def test_dicom_geometry_is_that_of_the_positions(tmp_path):
    direction = Rotation.from_euler("xyz", (12, -20, 8), degrees=True).as_matrix()
    pixels = np.random.default_rng(0).integers(-100, 100, (5, 6, 7))
    for k, name in enumerate("ecadb"):
        write_dicom(tmp_path / f"{name}.dcm", pixels[k], slice_position(k, direction), direction)
    series = read_series(tmp_path)
    assert [path.stem for path in series.files] == list("ecadb")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(series.image), pixels)
    np.testing.assert_allclose(series.image.GetSpacing(), (1.5, 1.25, 5.5), rtol=1e-4)
    for k in range(5):
        np.testing.assert_allclose(
            series.image.TransformIndexToPhysicalPoint((0, 0, k)), slice_position(k, direction), atol=1e-3
        )


def set_element(path: Path, group: int, element: int, value: bytes) -> None:
    """Another value in a DICOM file of implicit VR, which is what `write_dicom` writes: tag, length, value."""
    key, value = struct.pack("<HH", group, element), value + b" " * (len(value) % 2)
    content = path.read_bytes()
    there = content.index(key)
    end = there + 8 + int.from_bytes(content[there + 4 : there + 8], "little")
    path.write_bytes(content[:there] + key + len(value).to_bytes(4, "little") + value + content[end:])


@pytest.mark.parametrize(("between", "thickness", "expected"), [("8", "9.9", 8), ("", "7.5", 7.5), ("", "", 1)])
def test_a_single_slice_is_as_thick_as_it_says(tmp_path, between, thickness, expected):
    write_dicom(tmp_path / "a.dcm", np.zeros((6, 7)), slice_position(0))
    set_element(tmp_path / "a.dcm", 0x18, 0x88, between.encode())
    set_element(tmp_path / "a.dcm", 0x18, 0x50, thickness.encode())
    np.testing.assert_allclose(read_series(tmp_path).image.GetSpacing(), (1.5, 1.25, expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("charset", "codec", "name"),
    [
        ("ISO_IR 100", "latin-1", "Jürgen Müller"),
        ("ISO_IR 192", "utf-8", "Jürgen Müller"),
        ("ISO_IR 144", "iso8859-5", "Иван"),
        ("GB18030", "gb18030", "王小东"),
    ],
)
def test_names_of_patients_keep_their_letters(tmp_path, charset, codec, name):
    path = tmp_path / "scan" / "a.dcm"
    write_dicom(path, np.zeros((6, 7)), slice_position(0), charset=charset)
    set_element(path, 0x10, 0x10, name.encode(codec))
    series = read_series(tmp_path / "scan")
    label = sitk.GetImageFromArray(np.ones((1, 6, 7), np.uint8))
    label.CopyInformation(series.image)
    write_series(tmp_path / "out", label, series)
    written = (tmp_path / "out" / "a.dcm").read_bytes()
    assert b"ISO_IR 192" in written
    assert name.encode("utf-8") in written


def test_names_in_a_set_with_escapes_stay_as_they_are(tmp_path):
    path, charset, name = tmp_path / "scan" / "a.dcm", r"\ISO 2022 IR 87", b"Yamada=\x1b$B;3ED\x1b(B"
    write_dicom(path, np.zeros((6, 7)), slice_position(0), charset=charset)
    set_element(path, 0x10, 0x10, name)
    series = read_series(tmp_path / "scan")
    label = sitk.GetImageFromArray(np.ones((1, 6, 7), np.uint8))
    label.CopyInformation(series.image)
    write_series(tmp_path / "out", label, series)
    written = (tmp_path / "out" / "a.dcm").read_bytes()
    assert charset.encode() in written
    assert b"ISO_IR 192" not in written
    assert name in written


@pytest.mark.parametrize(
    "names", [["1.2.840.113619.2.4", "1.2.840.113619.2.5", "1.2.840.113619.2.6"], ["a", "a.dcm", "b.DCM"]]
)
def test_a_written_series_has_a_file_for_each_slice_whatever_their_names(tmp_path, names):
    for k, name in enumerate(names):
        write_dicom(tmp_path / "scan" / name, np.full((6, 7), k), slice_position(k))
    series = read_series(tmp_path / "scan")
    label = sitk.GetImageFromArray(np.arange(3 * 6 * 7, dtype=np.uint8).reshape(3, 6, 7))
    label.CopyInformation(series.image)
    write_series(tmp_path / "segmentation", label, series)
    assert sorted(path.name for path in (tmp_path / "segmentation").iterdir()) == sorted(names)
    for k, name in enumerate(names):
        written = sitk.ReadImage(tmp_path / "segmentation" / name)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written)[0], sitk.GetArrayFromImage(label)[k])
        position = [float(number) for number in written.GetMetaData("0020|0032").split("\\")]
        np.testing.assert_allclose(position, slice_position(k), atol=1e-3)


@pytest.mark.parametrize("angles", [(0, 0, 0), (12, -20, 8)])
@pytest.mark.parametrize(("tilt", "axis", "refused"), [(0.1, "x", False), (1.0, "y", True), (-17.5, "x", True)])
def test_series_of_a_tilted_gantry_are_refused(tmp_path, angles, tilt, axis, refused):
    """The scanner turns each slice about its rows or columns, while the table moves on along the same line."""
    table = Rotation.from_euler("xyz", angles, degrees=True)
    direction = (table * Rotation.from_euler(axis, tilt, degrees=True)).as_matrix()
    for k in range(40):
        write_dicom(tmp_path / f"{k}.dcm", np.zeros((6, 7)), slice_position(k, table.as_matrix()), direction)
    if not refused:
        assert len(read_series(tmp_path).files) == 40
        return
    with pytest.raises(InputError) as caught:
        read_series(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert f"tilted by {abs(tilt)} degrees" in str(caught.value)


def add_slice(folder: Path, **options) -> None:
    settings = {"pixels": np.zeros((40, 40)), "position": slice_position(4)} | options
    write_dicom(folder / "extra.dcm", **settings)


IN_PHASE = "1/T1DUAL/DICOM_anon/InPhase"
GROUND = "1/T1DUAL/Ground"
BAD_CHAOS = {
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
    "mask too many": (lambda r: save_mask(r / GROUND / "x.png", np.zeros((40, 40), np.uint8)), ["x.png", "no DICOM"]),
    "mask of another size": (
        lambda r: save_mask(r / GROUND / "IMG-0004-00004.png", np.zeros((41, 40), np.uint8)), ["40 x 41", "40 x 40"],
    ),
    "no ground truth": (
        lambda r: (r / GROUND).rename(r / "1" / "elsewhere"), ["Ground", "no such folder"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHAOS)
def test_bad_chaos_names_the_subject_and_can_be_skipped(tmp_path, case, capsys):
    root = tmp_path / "MR"
    for subject in ("1", "2", "3", "4"):
        write_chaos_mr(root, subject)
    spoil, expected = BAD_CHAOS[case]
    spoil(root)
    split = tmp_path / "split.json"
    split.write_text('{"train": ["1", "2"], "val": ["3"], "test": ["4"]}')
    arguments = ["chaos-mr", str(root), "--out", str(tmp_path / "out"), "--split-file", str(split)]
    with pytest.raises(InputError) as caught:
        prepare.main(arguments)
    message = str(caught.value)
    assert message.startswith("subject 1: ")
    assert "\n" not in message
    for part in expected:
        assert part in message
    assert not (tmp_path / "out").exists()
    prepare.main([*arguments, "--skip-bad"])
    assert f"left out: {message}" in capsys.readouterr().out
    assert list(open_data(tmp_path / "out").dataset("train").subjects()) == ["2"]


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
            save_mask(root / str(subject) / "Ground" / f"liver_GT_{name:03d}.png", liver[subject, k])
    prepare.main(["chaos-ct", str(root), "--out", str(tmp_path / "out"), "--folds", "3", "--fold", "2"])
    data = open_data(tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "splits.json").read_text())) == 3
    described, splits = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("dataset", "splits"))
    assert described["split"] == splits[1]
    assert data.preparation["window"] == [40.0, 400.0]
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
            save_mask(tmp_path / "CT" / str(subject) / "Ground" / f"liver_GT_{k}.png", image < 0)
    arguments = ["chaos-ct", str(tmp_path / "CT"), "--out", str(tmp_path / "out"), "--folds", "3"]
    prepare.main([*arguments, "--normalize", "volume"])
    data = open_data(tmp_path / "out")
    assert (data.preparation["normalize"], data.preparation["window"]) == ("volume", None)
    for split in data.splits:  # the window would make 240 HU and all above it white
        grey = np.stack([image.numpy() for image, _ in data.dataset(split)])
        assert (grey.max(), grey.min()) == (1, 0)
        (subject,) = data.dataset(split).subjects()
        assert grey[0].max() == np.float32(round(255 * (1000 * int(subject) + 500) / (1000 * int(subject) + 510))) / 255


def test_chaos_ct_refuses_another_number_of_masks(tmp_path):
    write_dicom(tmp_path / "1" / "DICOM_anon" / "a.dcm", np.zeros((36, 36)), slice_position(0))
    (tmp_path / "1" / "Ground").mkdir()
    with pytest.raises(InputError, match="0 masks for 1 slices"):
        ChaosCT(tmp_path).read("1")


def write_volume(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        image = sitk.GetImageFromArray(array)
    else:
        image = sitk.JoinSeries([sitk.GetImageFromArray(channel) for channel in array])
    sitk.WriteImage(image, path)


def check(out: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray], values: list[int]) -> None:
    """Each subject's slices hold its channels, stretched, and its label values as class indices."""
    data = open_data(out)
    for split in data.splits:
        dataset = data.dataset(split)
        (subject,) = dataset.subjects()
        target = np.stack([target for _, target in dataset])
        np.testing.assert_array_equal(np.array(values)[target], labels[subject])
        stored = np.stack([image for image, _ in dataset], 1)
        low, high = (f(images[subject], axis=(2, 3), keepdims=True) for f in (np.min, np.max))
        np.testing.assert_allclose(stored, (images[subject] - low) / (high - low), atol=0.51 / 255)
        back = to_scan(assemble([item.number for item in dataset.slices], list(target)), data.geometry[subject])
        np.testing.assert_array_equal(np.array(values)[sitk.GetArrayFromImage(back)], labels[subject])


def random_case(seed: int, channels: int, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(channels, 3, 33, 35)).astype(np.float32), rng.choice(
        np.array(values, np.uint8), (3, 33, 35)
    )


def test_hvsmr(tmp_path):
    cases = {str(k): random_case(k, 1, [0, 1, 2]) for k in (0, 4, 10)}
    for k, (image, label) in cases.items():
        write_volume(tmp_path / "in" / f"training_axial_crop_pat{k}.nii.gz", image[0])
        write_volume(tmp_path / "in" / f"training_axial_crop_pat{k}-label.nii.gz", label)
    prepare.main(["hvsmr", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "1,1,1"])
    assert open_data(tmp_path / "out").labels.names == ("background", "myocardium", "blood pool")
    check(tmp_path / "out", *({k: case[i] for k, case in cases.items()} for i in (0, 1)), [0, 1, 2])


def test_brats(tmp_path):
    cases = {f"Brats18_X{k}_1": random_case(k, 4, [0, 1, 2, 4]) for k in range(3)}
    for (name, (image, label)), grade in zip(cases.items(), ("HGG", "LGG", "HGG"), strict=True):
        stem = tmp_path / "in" / grade / name
        for sequence, channel in zip(("flair", "t1", "t1ce", "t2"), image, strict=True):
            write_volume(stem / f"{name}_{sequence}.nii.gz", channel)
        write_volume(stem / f"{name}_seg.nii.gz", label)
    prepare.main(["brats", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "1,1,1"])
    assert open_data(tmp_path / "out").channels == 4
    check(tmp_path / "out", *({k: case[i] for k, case in cases.items()} for i in (0, 1)), [0, 1, 2, 4])


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
    check(tmp_path / "out", *({k: case[i] for k, case in cases.items()} for i in (0, 1)), [0, 1, 2])


def test_coronal_and_sagittal_slices(tmp_path):
    cases = {str(k): random_case(k, 1, [0, 1]) for k in range(3)}
    for k, (image, label) in cases.items():
        big = np.repeat(image[0], 12, 0)
        write_volume(tmp_path / "in" / f"image_{k}.nii.gz", big)
        write_volume(tmp_path / "in" / f"label_{k}.nii.gz", np.repeat(label, 12, 0))
    for axis, order in (("coronal", (1, 0, 2)), ("sagittal", (2, 0, 1))):
        out = tmp_path / axis
        prepare.main(["nifti", str(tmp_path / "in"), "--out", str(out), "--split", "1,1,1", "--axis", axis])
        data = open_data(out)
        dataset = data.dataset("test")
        (subject,) = dataset.subjects()
        target = np.stack([target for _, target in dataset]).astype(np.uint8)
        upright = np.repeat(cases[subject][1], 12, 0)[::-1]  # the head is up
        np.testing.assert_array_equal(target, upright.transpose(order))
        volume = assemble([item.number for item in dataset.slices], list(target))
        back = sitk.GetArrayFromImage(to_scan(volume, data.geometry[subject]))
        np.testing.assert_array_equal(back, np.repeat(cases[subject][1], 12, 0))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["chaos-mr", "nowhere", "--split", "1,1,1"], "nowhere: no such folder"),
        (["chaos-mr", ".", "--split", "1,1,1"], "name the challenge's MR or CT folder"),
        (["hvsmr", ".", "--split", "1,1,1"], "holds no labels named"),
        (["brats", ".", "--split", "1,1,1"], "holds no HGG"),
        (["msd", ".", "--split", "1,1,1"], "holds no labelsTr"),
        (["nifti", ".", "--split", "1,1,1", "--image", "image.nii"], "must hold {subject} once"),
        (["hvsmr", "."], "give one of --split-file"),
        (["hvsmr", ".", "--split", "1,1,1", "--folds", "3"], "give one of --split-file"),
    ],
)
def test_wrong_commands(tmp_path, monkeypatch, command, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        prepare.main([*command, "--out", "out"])
    assert expected in str(caught.value)


@pytest.mark.parametrize("counts", ["4,0,1", "0,3,1", "1,1,3.9", "1,nan,1", "1,1,inf", "-1,4,1", "1,1,1e400"])
def test_counts_of_a_split_are_whole_numbers_from_1(tmp_path, counts):
    for subject in "1234":
        write_volume(tmp_path / "in" / f"image_{subject}.nii.gz", np.zeros((2, 33, 33), np.uint8))
        write_volume(tmp_path / "in" / f"label_{subject}.nii.gz", np.ones((2, 33, 33), np.uint8))
    with pytest.raises(InputError, match="must be three numbers of subjects from 1") as caught:
        prepare.main(["nifti", str(tmp_path / "in"), "--out", str(tmp_path / "out"), f"--split={counts}"])
    assert f"--split {counts}: " in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_splits_are_disjoint_and_repeatable():
    subjects = [str(k) for k in range(1, 21)]
    splits = random_splits(subjects, (13, 2, 5), 3, seed=2020)
    assert splits == random_splits(subjects[::-1], (13, 2, 5), 3, seed=2020)
    assert splits != random_splits(subjects, (13, 2, 5), 3, seed=1)
    for split in splits:
        assert [len(split[name]) for name in ("train", "val", "test")] == [13, 2, 5]
        assert sorted(chain(*split.values()), key=int) == subjects
    assert len({subject for split in splits for subject in split["test"]}) == 15
    folds = [fold_split(subjects, k, 6, seed=0) for k in range(1, 7)]
    assert sorted(chain(*(fold["test"] for fold in folds)), key=int) == subjects
    assert all(sorted(chain(*fold.values()), key=int) == subjects for fold in folds)
    for bad in ((0, 5), (6, 5), (1, 2), (1, 21)):
        with pytest.raises(InputError):
            fold_split(subjects, *bad, seed=0)
    with pytest.raises(InputError, match="15 subjects allow 3 repeats, not 4"):
        random_splits(subjects[:15], (8, 2, 5), 4, seed=0)
    with pytest.raises(InputError, match="needs 20 subjects; the source has 19"):
        random_splits(subjects[1:], (13, 2, 5), 3, seed=0)


@pytest.mark.skipif(not REAL.exists(), reason="the real scans are not beside the repository")
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


def test_chaos_t2(tmp_path):
    write_dicom(tmp_path / "5" / "T2SPIR" / "DICOM_anon" / "IMG-1.dcm", np.ones((36, 36)), slice_position(0))
    save_mask(tmp_path / "5" / "T2SPIR" / "Ground" / "IMG-1.png", np.full((36, 36), 252, np.uint8))
    source = ChaosMR(tmp_path, "t2")
    assert source.subjects() == ["5"]
    assert (sitk.GetArrayFromImage(source.read("5").label) == 4).all()


@pytest.mark.parametrize(
    ("file", "protocol", "subjects"),
    [
        (
            "chaos-mr",
            "chaos-mr",
            [
                "1",
                "2",
                "3",
                "5",
                "8",
                "10",
                "13",
                "15",
                "19",
                "20",
                "21",
                "22",
                "31",
                "32",
                "33",
                "34",
                "36",
                "37",
                "38",
                "39",
            ],
        ),
        ("hvsmr", "hvsmr", [str(k) for k in range(10)]),
        ("brats-msd", "msd", [f"BRATS_{k:03d}" for k in range(1, 485)]),
    ],
)
def test_published_splits_follow_from_the_seed(file, protocol, subjects):
    counts, repeats = PROTOCOLS[protocol]
    published = json.loads((Path(__file__).parents[1] / "splits" / f"{file}.json").read_text())
    assert published == random_splits(subjects, counts, repeats, PAPER_SEED)
    assert len(published) == repeats
