"""The command prepare.py: data sets that go back to the scans, and mistakes that leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import prepare
from data.folder import DataFolder, open_data
from data.nifti import write_nifti
from data.preparation import Preparation
from data.sources import Case
from data.volumes import assemble, to_scan
from data.writer import Plan, write_data
from tests.helpers.errors import assert_clear, assert_one_line, error_of
from tests.helpers.files import tree
from tests.helpers.processes import CONTEXT, ended, start
from tests.helpers.scans import REAL, assert_same_scan, needs_real_data, write_scans
from utils import InputError, write_json


@pytest.fixture
def scans(tmp_path):
    """Four subjects of 40 x 36 pixels in four orientations, a split file, and the command's arguments."""
    source = write_scans(tmp_path / "scans", (40, 36, 3))
    split = tmp_path / "split.json"
    split.write_text('{"train": ["s0", "s1"], "val": ["s2"], "test": ["s3"]}')
    return source, ["nifti", str(source), "--out", str(tmp_path / "out"), "--split_file", str(split)]


# ---------------------------------------------------------------- data sets


def test_subjects_that_a_split_file_leaves_out_are_named(scans, tmp_path, capsys):
    _, arguments = scans
    prepare.main(arguments)
    assert "leaves out" not in capsys.readouterr().out
    (tmp_path / "split.json").write_text('{"train": ["s0"], "val": ["s2"], "test": ["s3"]}')
    prepare.main([*arguments, "--out", str(tmp_path / "fewer")])
    assert f"note: {tmp_path / 'split.json'}: leaves out 1 subject: s1\n" in capsys.readouterr().out


@pytest.mark.parametrize("normalize", ["slice", "volume"])
def test_the_command_makes_a_data_set_that_goes_back_to_the_scans(scans, tmp_path, normalize, capsys):
    source, arguments = scans
    before = {path: path.read_bytes() for path in source.iterdir()}
    prepare.main([*arguments, "--names", "a,b,c", "--normalize", normalize, "--name", "toy"])
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    printed = capsys.readouterr().out
    assert "40x36" in printed
    out = tmp_path / "out"
    assert (out / "contact_sheet.png").stat().st_size > 5000
    data = open_data(out)
    assert data.labels.names == ("background", "a", "b", "c")
    assert data.labels.codes == (0, 84, 168, 252)
    assert json.loads((out / "dataset.json").read_text())["split"]["train"] == ["s0", "s1"]
    for split in ("train", "val", "test"):
        dataset = data.dataset(split)
        for subject, indices in dataset.subjects().items():
            original = sitk.ReadImage(source / f"label_{subject}.nii.gz")
            masks = [dataset[index][1].numpy().astype(np.uint8) for index in indices]
            volume = assemble([dataset.slices[index].number for index in indices], masks)
            assert_same_scan(to_scan(volume, data.geometry[subject]), original)
            scan = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(source / f"image_{subject}.nii.gz"), "LPS"))
            for index, values in zip(indices, scan, strict=True):
                stored = np.asarray(Image.open(dataset.slices[index].images[0])).astype(float)
                part = values if normalize == "slice" else scan
                expected = (values - part.min()) / (part.max() - part.min()) * 255
                assert np.abs(stored - expected).max() <= 0.501


def test_several_image_patterns_are_several_channels(scans, tmp_path):
    _, arguments = scans
    prepare.main([*arguments, "--image", "image_{subject}.nii.gz,label_{subject}.nii.gz"])
    data = open_data(tmp_path / "out")
    assert data.channels == 2
    image, target = data.dataset("val")[0]
    np.testing.assert_array_equal(np.rint(image[1].numpy() * 255), target.numpy() * 85)


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "order"), [("coronal", (1, 0, 2)), ("sagittal", (2, 0, 1))])
def test_coronal_and_sagittal_slices(tmp_path, axis, order):
    (tmp_path / "in").mkdir()
    labels = {}
    for k in range(3):
        rng = np.random.default_rng(k)
        image = rng.normal(size=(3, 33, 35)).astype(np.float32)
        labels[str(k)] = np.repeat(rng.integers(0, 2, (3, 33, 35), np.uint8), 12, 0)
        sitk.WriteImage(sitk.GetImageFromArray(np.repeat(image, 12, 0)), tmp_path / "in" / f"image_{k}.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(labels[str(k)]), tmp_path / "in" / f"label_{k}.nii.gz")
    out = tmp_path / axis
    prepare.main(["nifti", str(tmp_path / "in"), "--out", str(out), "--split", "1,1,1", "--axis", axis])
    data = open_data(out)
    dataset = data.dataset("test")
    (subject,) = dataset.subjects()
    target = np.stack([target for _, target in dataset]).astype(np.uint8)
    upright = labels[subject][::-1]  # the head is up
    np.testing.assert_array_equal(target, upright.transpose(order))
    volume = assemble([item.number for item in dataset.slices], list(target))
    back = sitk.GetArrayFromImage(to_scan(volume, data.geometry[subject]))
    np.testing.assert_array_equal(back, labels[subject])


@needs_real_data
@pytest.mark.parametrize(
    ("folder", "flags", "subjects"),
    [
        pytest.param("chaos_mr_t2", [], ["31", "34", "1"], marks=pytest.mark.slow),
        (
            "msd_hippocampus",
            ["--image", "imagesTr/{subject}.nii.gz", "--label", "labelsTr/{subject}.nii.gz", "--size", "64"],
            ["hippocampus_001", "hippocampus_003", "hippocampus_015"],
        ),
    ],
)
def test_real_scans_and_back(tmp_path, folder, flags, subjects):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({name: [s] for name, s in zip(("train", "val", "test"), subjects, strict=True)}))
    out = tmp_path / "out"
    prepare.main(["nifti", str(REAL / folder), "--out", str(out), "--split_file", str(split), *flags])
    data = open_data(out)
    pattern = flags[3] if flags else "label_{subject}.nii.gz"
    for split_name, subject in zip(("train", "val", "test"), subjects, strict=True):
        dataset = data.dataset(split_name)
        masks = [dataset[index][1].numpy().astype(np.uint8) for index in range(len(dataset))]
        volume = assemble([item.number for item in dataset.slices], masks)
        write_nifti(tmp_path / "back.nii.gz", to_scan(volume, data.geometry[subject]))
        original = sitk.ReadImage(REAL / folder / pattern.replace("{subject}", subject))
        assert_same_scan(sitk.ReadImage(tmp_path / "back.nii.gz"), original)


# ---------------------------------------------------------------- groups


@pytest.fixture
def pairs(tmp_path):
    """Scans of five patients, both sides of each; and the command's arguments."""
    source = tmp_path / "pairs"
    source.mkdir()
    for k in range(10):
        label = np.zeros((2, 32, 32), np.uint8)
        label[0, 0, 0] = 1
        name = f"p{k // 2}_{'left' if k % 2 else 'right'}.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(label), source / f"label_{name}")
        sitk.WriteImage(sitk.GetImageFromArray(label.astype(np.float32)), source / f"image_{name}")
    return ["nifti", str(source), "--out", str(tmp_path / "out")]


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--folds", "5"], ["--split", "6,2,2"]])
@pytest.mark.parametrize("as_file", [True, False])
def test_both_sides_of_a_patient_stay_together(pairs, tmp_path, way, as_file, capsys):
    groups = {f"p{k}_{side}": f"p{k}" for k in range(5) for side in ("left", "right")}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    prepare.main([*pairs, *way, "--groups", str(tmp_path / "groups.json") if as_file else "(p.)_.*"])
    assert "10 subjects are of 5 groups" in capsys.readouterr().out
    data = open_data(tmp_path / "out")
    assert data.groups == groups
    patients = [{item.subject.split("_")[0] for item in slices} for slices in data.splits.values()]
    assert sorted(map(len, patients)) == [1, 1, 3]
    assert set().union(*patients) == {f"p{k}" for k in range(5)}


def test_a_split_file_that_parts_a_patient_is_refused(pairs, tmp_path):
    split = tmp_path / "split.json"
    split.write_text('{"train": ["p0_left"], "val": ["p1_left", "p1_right"], "test": ["p0_right"]}')
    with pytest.raises(InputError) as caught:
        prepare.main([*pairs, "--split_file", str(split), "--groups", "(p.)_.*"])
    assert_clear(caught.value, str(split), "group 'p0'", "p0_left in train", "p0_right in test")
    assert not (tmp_path / "out").exists()


def test_the_paper_s_split_is_refused_where_it_parts_a_patient(tmp_path):
    for k in range(10):
        for name in (f"pat{k}", f"pat{k}-label"):
            (tmp_path / f"training_axial_crop_{name}.nii.gz").touch()
    arguments = ["hvsmr", str(tmp_path), "--out", str(tmp_path / "out"), "--protocol", "paper"]
    (tmp_path / "groups.json").write_text(json.dumps({str(k): "one" for k in range(10)}))
    with pytest.raises(InputError) as caught:
        prepare.main([*arguments, "--groups", str(tmp_path / "groups.json")])
    assert_clear(caught.value, "--protocol paper: group 'one'")


# ---------------------------------------------------------------- what is refused


def spoil(path: Path, change) -> None:
    """Write a volume as `change` makes it."""
    scan = sitk.ReadImage(path)
    sitk.WriteImage(change(scan), path)


def at(*origin: float):
    """A change that moves a scan to this position in mm."""

    def move(scan: sitk.Image) -> sitk.Image:
        scan.SetOrigin(origin)
        return scan

    return move


def write_mha_with_nan(source: Path) -> None:
    """A format of ITK's, with NaN in one scan."""
    for path in source.glob("image_*.nii.gz"):
        scan = sitk.ReadImage(path)
        if "s3" in path.name:
            scan[0, 0, 0] = float("nan")
        sitk.WriteImage(scan, path.with_name(path.name.replace("nii.gz", "mha")))


BAD = {
    "missing scan": (lambda s: (s / "image_s2.nii.gz").unlink(), [], ["subject s2", "image_s2.nii.gz", "no such file"]),
    "missing label": (lambda s: (s / "label_s2.nii.gz").unlink(), [], ["no label of subject s2", "only of s0, s1, s3"]),
    "damaged scan": (lambda s: (s / "image_s2.nii.gz").write_bytes(b"noise"), [], ["image_s2.nii.gz", "as a NIfTI"]),
    "size": (lambda s: spoil(s / "image_s1.nii.gz", lambda x: x[1:]), [], ["image_s1.nii.gz", "voxels", "label_s1"]),
    "position": (lambda s: spoil(s / "label_s1.nii.gz", at(0, 0, 0)), [], ["image_s1.nii.gz", "lies elsewhere"]),
    "fraction": (
        lambda s: spoil(s / "label_s3.nii.gz", lambda x: sitk.Cast(x, sitk.sitkFloat32) * 0.5), [],
        ["s3", "class numbers"],
    ),
    "nan": (write_mha_with_nan, ["--image", "image_{subject}.mha"], ["s3", "NaN"]),
    "4-D label": (
        lambda s: spoil(s / "label_s0.nii.gz", lambda x: sitk.JoinSeries([x, x])), [],
        ["label_s0.nii.gz", "is it the label"],
    ),
    "small slices": (
        lambda s: [spoil(s / f"{kind}_s0.nii.gz", lambda x: x[10:, :, :]) for kind in ("image", "label")], [],
        ["subject s0", "image_s0.nii.gz", "30 x 36 pixels", "pad them to at least 32 x 32", "smaller spacing"],
    ),
    "coarse spacing": (lambda s: None, ["--spacing", "3,3"], ["image_s0.nii.gz", "17 x 10 pixels", "smaller spacing"]),
    "channels": (
        lambda s: spoil(s / "image_s1.nii.gz", lambda x: sitk.JoinSeries([x, x])), [],
        ["s0 has 1", "s1 has 2 channels", "split file"],
    ),
    "far away": (
        lambda s: [spoil(s / f"{kind}_s2.nii.gz", at(2e6, 0, 0)) for kind in ("image", "label")], [],
        ["label_s2.nii.gz", "lengths or positions that no scan has"],
    ),
    "names": (lambda s: None, ["--names", "a,b"], ["2 class names", "[1, 2, 3]"]),
    "two ways": (lambda s: None, ["--window", "0,9", "--normalize", "volume"], ["--normalize and --window: choose"]),
    "size flag": (lambda s: None, ["--size", "16"], ["error: --size 16: "]),
    "spacing flag": (lambda s: None, ["--spacing", "0,1"], ["error: --spacing "]),
    "split form": (lambda s: (s.parent / "split.json").write_text("[]"), [], ["split.json", '"train"']),
    "split json": (lambda s: (s.parent / "split.json").write_text("{"), [], ["split.json", "JSON"]),
    "split missing": (lambda s: (s.parent / "split.json").unlink(), [], ["split.json"]),
    "split empty": (
        lambda s: (s.parent / "split.json").write_text('{"train": ["s0"], "val": [], "test": ["s1"]}'), [],
        ["split.json", "need a list"],
    ),
    "subject twice": (
        lambda s: (s.parent / "split.json").write_text('{"train": ["s0"], "val": ["s0"], "test": ["s1"]}'), [],
        ["s0 twice"],
    ),
    "path in a subject": (
        lambda s: (s.parent / "split.json").write_text('{"train": ["../s0"], "val": ["s1"], "test": ["s2"]}'), [],
        ["'../s0'", "letters"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_leaves_nothing(scans, tmp_path, case, capsys):
    source, arguments = scans
    damage, flags, expected = BAD[case]
    damage(source)
    error = error_of(capsys, prepare.main, [*arguments, *flags])
    for part in expected:
        assert part in error
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "split.json") == ["scans"]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"noise"), lambda path: path.unlink()])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_subjects_with_a_damaged_file_can_be_left_out(scans, tmp_path, kind, damage, capsys):
    source, arguments = scans
    damage(source / f"{kind}_s1.nii.gz")
    prepare.main([*arguments, "--names", "a,b,c", "--skip-bad"])  # dashes are as good as underscores
    assert "left out: subject s1: " in capsys.readouterr().out
    data = open_data(tmp_path / "out")
    assert data.labels.names == ("background", "a", "b", "c")
    assert set(data.geometry) == {"s0", "s2", "s3"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["chaos-mr", "nowhere", "--split", "1,1,1"], "nowhere: no such folder"),
        (["chaos-mr", ".", "--split", "1,1,1"], "name the challenge's MR or CT folder"),
        (["hvsmr", ".", "--split", "1,1,1"], "holds no labels named"),
        (["brats", ".", "--split", "1,1,1"], "holds no HGG"),
        (["msd", ".", "--split", "1,1,1"], "holds no labelsTr"),
        (["nifti", ".", "--split", "1,1,1", "--image", "image.nii"], "must hold {subject}"),
        (["hvsmr", "."], "give one of --split_file"),
        (["hvsmr", ".", "--split", "1,1,1", "--folds", "3"], "give one of --split_file"),
    ],
)
def test_wrong_commands(tmp_path, monkeypatch, capsys, command, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, prepare.main, [*command, "--out", "out"])


@pytest.mark.parametrize("counts", ["4,0,1", "0,3,1", "1,1,3.9", "1,nan,1", "1,1,inf", "-1,4,1", "1,1,1e400"])
def test_counts_of_a_split_are_whole_numbers_from_1(tmp_path, capsys, counts):
    (tmp_path / "in").mkdir()
    for subject in "1234":
        for kind, value in (("image", 0), ("label", 1)):
            volume = sitk.GetImageFromArray(np.full((2, 33, 33), value, np.uint8))
            sitk.WriteImage(volume, tmp_path / "in" / f"{kind}_{subject}.nii.gz")
    arguments = ["nifti", str(tmp_path / "in"), "--out", str(tmp_path / "out"), f"--split={counts}"]
    error = error_of(capsys, prepare.main, arguments)
    assert f"error: --split {counts}: must be three numbers of subjects from 1" in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", [b"..", b"a b", b"a\nb", b"\xff", b"*", "٣".encode()])
def test_odd_names_of_scans_are_refused_before_anything_is_written(tmp_path, name):
    source = tmp_path / "scans"
    source.mkdir()
    scan = sitk.GetImageFromArray(np.arange(2 * 32 * 32).reshape(2, 32, 32).astype(np.uint16) % 2)
    for subject in (name, b"1", b"2"):
        for kind in (b"image_", b"label_"):
            sitk.WriteImage(scan, tmp_path / "scan.nii.gz")
            (tmp_path / "scan.nii.gz").rename(source / os.fsdecode(kind + subject + b".nii.gz"))
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        prepare.main(["nifti", str(source), "--out", str(tmp_path / "out"), "--split", "1,1,1"])
    assert_clear(caught.value)
    assert tree(tmp_path) == before


# ---------------------------------------------------------------- the folder that is made


def test_nothing_is_overwritten_and_leftovers_do_no_harm(scans, tmp_path):
    _, arguments = scans
    (tmp_path / ".out.partial" / "train").mkdir(parents=True)  # as a killed preparation leaves it
    (tmp_path / ".out.partial" / ".lock").touch()
    (tmp_path / ".out.partial" / "splits.json").touch()
    prepare.main(arguments)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"train", "val", "test", "dataset.json", "contact_sheet.png"}
    with pytest.raises(InputError, match="exists already"):
        prepare.main(arguments)
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("out", [".", "..", "", "new/..", "/"])
def test_out_is_the_name_of_a_new_folder(scans, tmp_path, monkeypatch, out):
    _, arguments = scans
    (tmp_path / "empty" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "er")
    with pytest.raises(InputError, match="is no name of a new folder; choose one"):
        prepare.main([*arguments, "--out", out])
    assert sorted(path.name for path in tmp_path.rglob("e*")) == ["empty", "er"]


class Waiting:
    """A source that says when it comes to subject c, and waits for a word before it goes on."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def read(self, subject: str) -> Case:
        if subject == "c":
            self.connection.send("waits")
            self.connection.recv()
        volume = sitk.GetImageFromArray(np.arange(2 * 32 * 32, dtype=np.uint8).reshape(2, 32, 32) % 2)
        return Case([volume], volume, ["scan"])


def write_and_wait(out: Path, connection: Connection) -> None:
    """Write a data set of subjects a, b and c."""
    split = {"train": ["a"], "val": ["b"], "test": ["c"]}
    write_data(out, Plan(Waiting(connection), split, Preparation(), {0: "background", 1: "x"}, {}))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_preparations_of_one_folder_do_not_mix(scans, tmp_path, killed):
    _, arguments = scans
    out = tmp_path / "out"
    connection, theirs = CONTEXT.Pipe()
    first = start(write_and_wait, out, theirs, output=tmp_path / "output.log")
    try:
        assert connection.poll(120)
        assert connection.recv() == "waits"
        with pytest.raises(InputError, match="another process is at work in it") as caught:
            prepare.main(arguments)
        assert_one_line(caught.value, str(out.parent), "choose another folder")
        if not killed:
            connection.send("go on")
            assert ended(first) == 0
    finally:
        first.kill()
    assert ended(first) == (-signal.SIGKILL if killed else 0)
    subjects = {"s0", "s1", "s2", "s3"} if killed else {"a", "b", "c"}
    if killed:
        prepare.main(arguments)
    data = open_data(out)
    assert {item.subject for items in data.splits.values() for item in items} == subjects == set(data.geometry)
    assert not list(tmp_path.glob(".*")) + list(out.glob(".*"))


def test_a_data_set_that_cannot_be_written_to_is_checked_all_the_same(scans, tmp_path, monkeypatch, capsys):
    prepare.main([*scans[1], "--out", str(tmp_path / "data")])
    (tmp_path / "data" / "contact_sheet.png").unlink()

    def refuse(path: Path, data: DataFolder) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(prepare, "save_contact_sheet", refuse)
    prepare.main(["check", str(tmp_path / "data")])
    shown = capsys.readouterr().out
    assert "contact_sheet.png: could not be written" in shown
    assert shown.splitlines()[-1].startswith(f"{tmp_path / 'data'} is ready. Train with")


def test_a_folder_that_appears_meanwhile_is_left_alone(scans, tmp_path, monkeypatch):
    _, arguments = scans
    out = tmp_path / "out"

    def write_and_take(path: Path, value: object) -> None:
        write_json(path, value)
        out.mkdir()
        (out / "mine").touch()

    monkeypatch.setattr("data.writer.write_json", write_and_take)
    with pytest.raises(InputError, match="exists already"):
        prepare.main(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans", "split.json"]
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_the_check_sees_the_whole_folder_before_it_appears(scans, tmp_path, monkeypatch):
    _, arguments = scans
    seen = []

    def refuse(data: DataFolder) -> str:
        seen.extend(item.mask.exists() for items in data.splits.values() for item in items)
        seen.append((tmp_path / "out").exists())
        raise InputError("refused")

    monkeypatch.setattr(prepare, "describe", refuse)
    with pytest.raises(InputError, match="refused"):
        prepare.main(arguments)
    assert seen == [True] * 12 + [False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans", "split.json"]
