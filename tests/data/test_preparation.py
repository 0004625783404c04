"""From scans to slices and back: geometry, grey values, and what is refused."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

import prepare
from data.folder import DataFolder, open_data
from data.preparation import Preparation, stretch
from data.sources.nifti import find_pairs
from data.volumes import assemble, geometry_of_slices, to_scan, write_nifti
from utils import InputError, write_json

ROOT = Path(__file__).parents[1]
REAL = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.exists(), reason="the real scans are not beside the repository")
ORIENTATIONS = [
    "".join(code)
    for axes in itertools.permutations(("RL", "AP", "IS"))
    for code in itertools.product(*axes)
]  # fmt: skip


def make_scan(seed: int, code: str, angles=(0.0, 0.0, 0.0), size=(7, 5, 6)) -> tuple[sitk.Image, sitk.Image]:
    """A random image and label of `size` (x, y, z), turned by Euler angles in degrees, then brought to axes `code`."""
    rng = np.random.default_rng(seed)
    scans = []
    for array in (rng.normal(100, 30, size[::-1]).astype(np.float32), rng.integers(0, 4, size[::-1], np.uint8)):
        scan = sitk.GetImageFromArray(array)
        scan.SetSpacing((1.25, 0.8, 7.7))
        scan.SetOrigin((-30.5, 12.25, 100.0))
        scan.SetDirection(Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel())
        scans.append(sitk.DICOMOrient(scan, code))
    return scans[0], scans[1]


def write_scan(folder: Path, subject: str, *scan: sitk.Image) -> None:
    for kind, volume in zip(("image", "label"), scan, strict=True):
        sitk.WriteImage(volume, folder / f"{kind}_{subject}.nii.gz")


def assert_same_scan(ours: sitk.Image, original: sitk.Image) -> None:
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(original))
    assert_same_grid(ours, original)


def assert_same_grid(ours: sitk.Image, original: sitk.Image) -> None:
    assert ours.GetSize() == original.GetSize()
    for part in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, part)(), getattr(original, part)(), atol=2e-4)


def prepared(folder: Path, **options):
    """Subject 1 as slices."""
    case = find_pairs(folder, ["image_{subject}.nii.gz"], "label_{subject}.nii.gz").read("1")
    return Preparation(normalize="volume", bits=16, **options).apply(case.images, case.label)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(0, 99), st.tuples(*[st.floats(-30, 30)] * 3))
def test_labels_return_to_the_scan_from_any_orientation(tmp_path_factory, code, seed, angles):
    folder = tmp_path_factory.mktemp("scan")
    image, label = make_scan(seed, code, angles)
    write_scan(folder, "1", image, label)
    case = prepared(folder)
    upright = sitk.DICOMOrient(sitk.ReadImage(folder / "image_1.nii.gz"), "LPS")
    order = np.argsort(sitk.GetArrayFromImage(upright), axis=None)
    assert (np.diff(case.images[0].ravel()[order].astype(int)) >= 0).all()  # grey values in the order of the scan's
    assert np.reshape(upright.GetDirection(), (3, 3)).diagonal().min() > 0  # columns to the left, rows to the back
    geometry = json.loads(json.dumps(case.geometry))
    write_nifti(folder / "back.nii.gz", case.label.astype(np.uint8), geometry)
    assert_same_scan(sitk.ReadImage(folder / "back.nii.gz"), sitk.ReadImage(folder / "label_1.nii.gz"))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(32, 48), st.tuples(*[st.floats(-30, 30)] * 3))
def test_cropped_and_padded_labels_return_where_they_were(tmp_path_factory, code, size, angles):
    folder = tmp_path_factory.mktemp("scan")
    write_scan(folder, "1", *make_scan(0, code, angles, size=(42, 37, 6)))
    case = prepared(folder, size=size)
    assert case.label.shape == (6, size, size)
    whole = prepared(folder).label
    kept = np.zeros(whole.shape, bool)
    rows, columns = (max(0, (n - size) // 2) for n in whole.shape[1:])
    kept[:, rows : rows + size, columns : columns + size] = True
    back = to_scan(case.label.astype(np.uint8), case.geometry)
    assert_same_grid(back, sitk.ReadImage(folder / "label_1.nii.gz"))
    returned = sitk.GetArrayFromImage(sitk.DICOMOrient(back, "LPS"))
    np.testing.assert_array_equal(returned, np.where(kept, whole, 0))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(1, 6), st.integers(1, 6), st.sampled_from([None, 40]))
def test_slices_keep_their_place_where_the_first_and_last_were_removed(tmp_path_factory, code, a, b, size):
    first, last = sorted((a, b))
    folder = tmp_path_factory.mktemp("scan")
    write_scan(folder, "1", *make_scan(0, code, (5, -20, 8), size=(40, 34, 6)))
    case = prepared(folder, size=size)
    geometry = geometry_of_slices(json.loads(json.dumps(case.geometry)), first, last)
    back = to_scan(case.label[first - 1 : last].astype(np.uint8), geometry)
    whole = to_scan(case.label.astype(np.uint8), case.geometry)
    assert_same_grid(back, sitk.ReadImage(folder / "label_1.nii.gz"))
    upright, expected = (sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")) for image in (back, whole))
    expected[: first - 1], expected[last:] = 0, 0
    np.testing.assert_array_equal(upright, expected)


@pytest.mark.parametrize("options", [{}, {"window": (40.0, 400.0)}, {"window": (40.0, 400.0), "spacing": (2.5, 1.6)}])
def test_padding_is_as_dark_as_the_darkest_of_the_scan(tmp_path, options):
    """CT: air is -1000, so that 0 would be a mid-grey frame."""
    image, label = make_scan(0, "LPS", size=(40, 24, 3))
    write_scan(tmp_path, "1", sitk.Cast(image * 10 - 1000, sitk.sitkInt16), label + 1)
    padded = prepared(tmp_path, size=44, **options)
    whole = prepared(tmp_path, **options)
    rows, columns = ((44 - n) // 2 + (44 - n) % 2 for n in whole.label.shape[1:])
    inside = np.s_[:, rows : rows + whole.label.shape[1], columns : columns + whole.label.shape[2]]
    frame = np.ones(padded.label.shape, bool)
    frame[inside] = False
    assert (padded.label[frame] == 0).all() and (padded.label[~frame] > 0).all()
    assert (padded.images[0][frame] == 0).all()
    np.testing.assert_allclose(padded.images[0][inside], whole.images[0], atol=1)


@pytest.mark.parametrize("kind", [sitk.sitkFloat32, sitk.sitkInt16, sitk.sitkUInt8])
def test_resampling_averages_images_and_keeps_labels_whole(tmp_path, kind):
    image, label = make_scan(0, "LAS", size=(8, 12, 5))
    image = sitk.Cast(image - 100 * (kind == sitk.sitkInt16), kind)
    write_scan(tmp_path, "1", image, label)
    half = prepared(tmp_path, spacing=(2.5, 1.6))
    full = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
    means = full.reshape(5, 6, 2, 4, 2).mean((2, 4), dtype=float)
    expected = (means - means.min()) / (means.max() - means.min()) * 65535
    np.testing.assert_allclose(half.images[0], expected, atol=1)
    assert set(np.unique(half.label)) <= {0, 1, 2, 3}
    np.testing.assert_allclose(half.geometry["spacing"], (2.5, 1.6, 7.7), rtol=1e-6)
    back = to_scan(half.label.astype(np.uint8), half.geometry)
    assert_same_grid(back, label)
    blocks = sitk.GetArrayFromImage(sitk.DICOMOrient(back, "LPS")).reshape(5, 6, 2, 4, 2)
    assert (blocks == blocks[:, :, :1, :, :1]).all()


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30))
def test_stretch_is_min_max_to_8_bits(values):
    low, high = min(values), max(values)
    pixels = stretch(np.array(values, np.float32), low, high)
    expected = [(value - low) / (high - low) * 255 if high > low else 0 for value in values]
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - np.array(expected)).max() <= 0.5 + 1e-6


@pytest.fixture
def scans(tmp_path):
    """Four subjects of 40 x 36 pixels in four orientations, a split file, and the command's arguments."""
    source = tmp_path / "scans"
    source.mkdir()
    for seed, code in enumerate(("LAS", "RPI", "ASL", "SRP")):
        write_scan(source, f"s{seed}", *make_scan(seed, code, (5, -4, 8), size=(40, 36, 3)))
    split = tmp_path / "split.json"
    split.write_text('{"train": ["s0", "s1"], "val": ["s2"], "test": ["s3"]}')
    return source, ["nifti", str(source), "--out", str(tmp_path / "out"), "--split-file", str(split)]


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


def spoil(path: Path, change) -> None:
    scan = sitk.ReadImage(path)
    sitk.WriteImage(change(scan), path)


def with_origin(scan: sitk.Image) -> sitk.Image:
    scan.SetOrigin((0, 0, 0))
    return scan


def write_mha_with_nan(source: Path) -> None:
    """ITK reads NaN in NIfTI as 0, but keeps it in other formats."""
    for path in source.glob("image_*.nii.gz"):
        scan = sitk.ReadImage(path)
        if "s3" in path.name:
            scan[0, 0, 0] = float("nan")
        sitk.WriteImage(scan, path.with_name(path.name.replace("nii.gz", "mha")))


def far_away(scan: sitk.Image) -> sitk.Image:
    scan.SetOrigin((2e6, 0, 0))  # mm
    return scan


BAD = {
    "missing scan": (lambda s: (s / "image_s2.nii.gz").unlink(), [], ["subject s2", "image_s2.nii.gz", "no such file"]),
    "missing label": (lambda s: (s / "label_s2.nii.gz").unlink(), [], ["no label of subject s2", "only of s0, s1, s3"]),
    "damaged scan": (lambda s: (s / "image_s2.nii.gz").write_bytes(b"noise"), [], ["image_s2.nii.gz", "readable"]),
    "size": (lambda s: spoil(s / "image_s1.nii.gz", lambda x: x[1:]), [], ["image_s1.nii.gz", "voxels", "label_s1"]),
    "position": (lambda s: spoil(s / "label_s1.nii.gz", with_origin), [], ["image_s1.nii.gz", "lies elsewhere"]),
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
        ["subject s0", "image_s0.nii.gz", "30 x 36 pixels", "32 x 32 with --size", "--spacing"],
    ),
    "coarse spacing": (lambda s: None, ["--spacing", "3,3"], ["image_s0.nii.gz", "17 x 10 pixels", "--spacing"]),
    "channels": (
        lambda s: spoil(s / "image_s1.nii.gz", lambda x: sitk.JoinSeries([x, x])), [],
        ["s0 has 1", "s1 has 2 channels", "--split-file"],
    ),
    "far away": (
        lambda s: [spoil(s / f"{kind}_s2.nii.gz", far_away) for kind in ("image", "label")], [],
        ["subject s2", "image_s2.nii.gz", "origin", "mm"],
    ),
    "names": (lambda s: None, ["--names", "a,b"], ["2 names", "[1, 2, 3]"]),
    "two ways": (lambda s: None, ["--window", "0,9", "--normalize", "volume"], ["--normalize and --window: choose"]),
    "size flag": (lambda s: None, ["--size", "16"], ["--size 16"]),
    "spacing flag": (lambda s: None, ["--spacing", "0,1"], ["--spacing"]),
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
def test_bad_input_is_one_clear_line_and_leaves_nothing(scans, tmp_path, case):
    source, arguments = scans
    damage, flags, expected = BAD[case]
    damage(source)
    with pytest.raises(InputError) as caught:
        prepare.main([*arguments, *flags])
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "split.json") == ["scans"]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"noise"), lambda path: path.unlink()])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_subjects_with_a_damaged_file_can_be_left_out(scans, tmp_path, kind, damage, capsys):
    source, arguments = scans
    damage(source / f"{kind}_s1.nii.gz")
    prepare.main([*arguments, "--names", "a,b,c", "--skip-bad"])
    assert "left out: subject s1: " in capsys.readouterr().out
    data = open_data(tmp_path / "out")
    assert data.labels.names == ("background", "a", "b", "c")
    assert set(data.geometry) == {"s0", "s2", "s3"}


def test_nothing_is_overwritten_and_leftovers_do_no_harm(scans, tmp_path):
    _, arguments = scans
    (tmp_path / ".out.partial" / "train").mkdir(parents=True)  # as a killed preparation leaves it
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


# Prepares sys.argv[1], but waits for a line before it reads the last subject.
WAITS = """
import sys
from pathlib import Path
import numpy as np
import SimpleITK as sitk
from data.layout import write_data
from data.preparation import Preparation
from data.sources import Case

class Source:
    def read(self, subject):
        if subject == "c":
            print("waits", flush=True)
            sys.stdin.readline()
        volume = sitk.GetImageFromArray(np.arange(2 * 32 * 32, dtype=np.uint8).reshape(2, 32, 32) % 2)
        return Case([volume], volume, ["scan"])

split = {"train": ["a"], "val": ["b"], "test": ["c"]}
write_data(Path(sys.argv[1]), Source(), split, Preparation(), {0: "background", 1: "x"}, {})
"""


@pytest.mark.parametrize("killed", [False, True])
def test_two_preparations_of_one_folder_do_not_mix(scans, tmp_path, killed):
    _, arguments = scans
    out = tmp_path / "out"
    command = [sys.executable, "-c", WAITS, str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "waits\n"
        with pytest.raises(InputError, match="another process is at work in it") as caught:
            prepare.main(arguments)
        assert str(out.parent) in str(caught.value)
        assert "choose another --out" in str(caught.value)
        if killed:
            first.kill()
        else:
            first.communicate("go on\n")
    subjects = {"s0", "s1", "s2", "s3"} if killed else {"a", "b", "c"}
    if killed:
        prepare.main(arguments)
    assert first.returncode == (-signal.SIGKILL if killed else 0)
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
    assert "note: no picture of it" in shown
    assert shown.splitlines()[-1].startswith(f"{tmp_path / 'data'} is ready. Train with")


def test_volumes_that_no_memory_holds_are_refused():
    with pytest.raises(InputError, match="more than 2,147,483,648 voxels; choose a larger --spacing"):
        Preparation(spacing=(0.01, 0.01)).apply([sitk.Image(32, 32, 300, sitk.sitkUInt8)])


def test_a_folder_that_appears_meanwhile_is_left_alone(scans, tmp_path, monkeypatch):
    _, arguments = scans
    out = tmp_path / "out"

    def write_and_take(path: Path, value: object) -> None:
        write_json(path, value)
        out.mkdir()
        (out / "mine").touch()

    monkeypatch.setattr("data.layout.write_json", write_and_take)
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

    monkeypatch.setattr("prepare.describe", refuse)
    with pytest.raises(InputError, match="refused"):
        prepare.main(arguments)
    assert seen == [True] * 12 + [False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans", "split.json"]


@pytest.mark.parametrize(
    ("numbers", "error"), [((1, 1), ValueError), ((1, 2, 3), ValueError), ((1, 20231124), InputError)]
)
def test_assemble_refuses_what_is_no_volume(numbers, error):
    with pytest.raises(error):
        assemble(numbers, [np.zeros((2, 2), np.uint8)] * 2)


@settings(deadline=None)
@given(st.permutations(range(-3, 4)), st.integers(1, 7))
def test_assemble_puts_each_slice_in_its_place(order, count):
    numbers = order[:count]
    volume = assemble(numbers, [np.full((2, 3), number + 10, np.uint8) for number in numbers])
    assert volume.shape == (max(numbers) - min(numbers) + 1, 2, 3)
    for place, plane in enumerate(volume, min(numbers)):
        assert (plane == (place + 10 if place in numbers else 0)).all()


@needs_real_data
@pytest.mark.parametrize(
    ("folder", "flags", "subjects"),
    [
        ("chaos_mr_t2", [], ["31", "34", "1"]),
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
    prepare.main(["nifti", str(REAL / folder), "--out", str(out), "--split-file", str(split), *flags])
    data = open_data(out)
    pattern = flags[3] if flags else "label_{subject}.nii.gz"
    for split_name, subject in zip(("train", "val", "test"), subjects, strict=True):
        dataset = data.dataset(split_name)
        masks = [dataset[index][1].numpy().astype(np.uint8) for index in range(len(dataset))]
        volume = assemble([item.number for item in dataset.slices], masks)
        write_nifti(tmp_path / "back.nii.gz", volume, data.geometry[subject])
        original = sitk.ReadImage(REAL / folder / pattern.replace("{subject}", subject))
        assert_same_scan(sitk.ReadImage(tmp_path / "back.nii.gz"), original)
