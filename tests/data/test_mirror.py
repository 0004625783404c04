"""Flips that exchange classes: along which axis, which classes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import prepare
from config import AugmentationConfig, Config
from data.augment import augment
from data.description import Labels, parse_mirror, read_description, read_mirror
from data.folder import open_data
from data.geometry import Geometry
from data.mirror import mirror_of
from data.preparation import AXES, Preparation
from tests.helpers.errors import assert_clear, assert_one_line
from tests.helpers.scans import ORIENTATIONS, write_scans
from training.setup import open_data_of
from utils import IGNORED, InputError

KIDNEYS = {"background": 0, "liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}
PAIR = [["right kidney", "left kidney"]]
LABELS = Labels.from_dict({"labels": KIDNEYS, "mirror": PAIR})
ALWAYS = AugmentationConfig(flip_probability=1, rotation_probability=0)


def angles(largest: float) -> st.SearchStrategy[tuple[float, ...]]:
    """Three Euler angles in degrees."""
    return st.tuples(*[st.floats(-largest, largest)] * 3)


# ---------------------------------------------------------------- the axis


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(ORIENTATIONS), angles(15))
def test_the_axis_is_nibabels(code, turn):
    """Slices in all 48 orientations, turned by up to some 25 degrees; nibabel's space is RAS, ITK's LPS."""
    upright = sitk.DICOMOrient(sitk.Image(1, 1, 1, sitk.sitkUInt8), code).GetDirection()
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.reshape(upright, (3, 3))
    mirror = mirror_of(LABELS, Geometry(direction=tuple(axes.ravel().tolist())))
    letters = nib.aff2axcodes(nib.affines.from_matvec(np.diag([-1, -1, 1]) @ axes))
    side = next(k for k, letter in enumerate(letters) if letter in "LR")
    assert (mirror and mirror.axis) == (-1, -2, None)[side]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ORIENTATIONS), angles(7), st.sampled_from(list(AXES)))
def test_flipped_slices_of_a_scan_have_each_class_on_its_own_side(code, turn, plane):
    """The patient's right half of a scan is one class, the left half its counterpart: so they are after any flips."""
    scan = sitk.GetImageFromArray(np.zeros((9, 9, 9), np.uint8))
    scan.SetDirection(Rotation.from_euler("xyz", turn, degrees=True).as_matrix().ravel())
    scan = sitk.DICOMOrient(scan, code)
    indices = np.moveaxis(np.indices((9, 9, 9)), 0, -1)[..., ::-1] - 4.0  # x, y, z from the middle
    x = (indices @ np.reshape(scan.GetDirection(), (3, 3)).T)[..., 0]
    sides = np.select([x < -1.5, x > 1.5], [2, 3], 0).astype(np.uint8)  # x increases to the patient's left
    label = sitk.GetImageFromArray(sides)
    label.CopyInformation(scan)
    _, mask, geometry = Preparation(axis=plane).apply([scan], label)
    mirror = mirror_of(LABELS, geometry)
    for target in mask:
        _, flipped = augment(np.zeros((1, *target.shape), np.float32), target, ALWAYS, np.random.default_rng(0), mirror)
        confused = (flipped != target) & (flipped > 0) & (target > 0)
        assert not confused.any()
    assert (mirror is None) == (plane == "sagittal")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-1, -2, None]), st.floats(0, 1))
def test_a_flip_exchanges_along_its_axis_alone(seed, axis, probability):
    """Of the four flips of a mask, the exchange by hand of those along the axis; ignored pixels stay ignored."""
    rng = np.random.default_rng(seed)
    image, target = (
        rng.random((2, 33, 35), np.float32),
        rng.choice(np.array([0, 1, 2, 3, 4, IGNORED], np.uint8), (33, 35)),
    )
    stated = {-1: "horizontal", -2: "vertical", None: ""}[axis]
    mirror = mirror_of(replace(LABELS, mirror_axis=stated), Geometry()) if stated else None
    options = AugmentationConfig(flip_probability=probability, rotation_probability=0)
    kept = target.copy()
    flipped, mask = augment(image, target, options, np.random.default_rng(seed), mirror)
    again, plain = augment(image, target, options, np.random.default_rng(seed))
    draws = dict(zip((-2, -1), np.random.default_rng(seed).random(2) < probability, strict=True))
    axes = [axis for axis, drawn in draws.items() if drawn]
    assert (flipped == np.flip(image, axes)).all() and (again == flipped).all()
    assert (plain == np.flip(kept, axes)).all() and (target == kept).all()
    swap = {2: 3, 3: 2} if axis in axes else {}
    assert (mask == np.vectorize(lambda k: swap.get(k, k))(plain)).all()
    assert mask.dtype == np.uint8


# ---------------------------------------------------------------- the data set


def described(root, **content):
    """A data set whose dataset.json says this, with the classes of CHAOS."""
    (root / "dataset.json").write_text(json.dumps({"labels": KIDNEYS} | content))
    return root


def test_each_subject_has_its_own_axis(make_data):
    """One with columns from left to right, one with rows, one of sagittal slices, one of which it is stated."""
    root = make_data({"train": ["1", "2", "3"], "val": ["4"], "test": ["5"]}, numbers=(1,))
    direction = {"1": [1, 0, 0, 0, 1, 0, 0, 0, 1], "2": [0, -1, 0, 1, 0, 0, 0, 0, 1], "3": [0, 0, 1, 1, 0, 0, 0, 1, 0]}
    subjects = {subject: {"direction": axes} for subject, axes in direction.items()}
    data = open_data(described(root, mirror=PAIR, subjects=subjects))
    plain = data.dataset("train")
    flipped = data.dataset("train", ALWAYS)
    for k, exchanges in enumerate((True, True, False)):
        expected = plain[k][1].flip(0, 1)
        if exchanges:
            right, left = expected == 2, expected == 3
            expected[right], expected[left] = 3, 2
        assert flipped[k][1].equal(expected)
    vertical = data.dataset("train", ALWAYS).mirrors["2"]
    assert vertical.axis == -2
    for split in ("val", "test"):  # whose axes are not known, and which are not flipped
        data.dataset(split)


def test_an_axis_that_is_not_known_is_refused_and_may_be_stated(make_data, tmp_path):
    root = described(make_data(), mirror=PAIR)
    data = open_data(root)
    data.dataset("train", AugmentationConfig(flip_probability=0))
    with pytest.raises(InputError) as caught:
        data.dataset("train", ALWAYS)
    assert_one_line(caught.value, "subject 1: it is not known which axis", "give mirror_axis (horizontal: ")
    for axis, number in (("horizontal", -1), ("vertical", -2)):
        config = Config.of(data=root, mirror_axis=axis)
        stated = open_data_of(config).dataset("train", ALWAYS)
        described(root, mirror=PAIR, mirror_axis=axis)
        assert stated.mirrors["1"].axis == open_data(root).dataset("train", ALWAYS).mirrors["1"].axis == number
        described(root, mirror=PAIR)


@pytest.mark.parametrize(
    ("direction", "said"),
    [([0, 1, 0, 1, 0, 0, 0, 0, 1], "vertical axis"), ([0, 0, 1, 1, 0, 0, 0, 1, 0], "no axis")],
)
def test_an_axis_that_is_stated_otherwise_than_the_direction_is_refused(make_data, direction, said):
    root = described(make_data(), mirror=PAIR, mirror_axis="horizontal", subjects={"1": {"direction": direction}})
    with pytest.raises(InputError, match=f"subject 1: by its direction, {said} of its slices .* the horizontal one"):
        open_data(root).dataset("train", ALWAYS)


# ---------------------------------------------------------------- what is said


def test_the_option_replaces_what_dataset_json_says(make_data):
    root = described(make_data(), mirror=PAIR, mirror_axis="vertical", tolerances={"liver": 3.0})
    kept = open_data_of(Config.of(data=root)).labels
    assert (kept.mirror, kept.mirror_axis) == ((("right kidney", "left kidney"),), "vertical")
    config = Config.of(data=root, mirror=" spleen = liver,left kidney=right kidney", mirror_axis="horizontal")
    labels = open_data_of(config).labels
    assert labels.mirror == (("liver", "spleen"), ("right kidney", "left kidney"))
    assert labels.mirror_axis == "horizontal" and labels.tolerances == {"liver": 3.0}
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    mirror = mirror_of(labels, Geometry())
    assert mirror.exchanged[:6].tolist() == [0, 4, 3, 2, 1, 5] and mirror.exchanged[IGNORED] == IGNORED
    with pytest.raises(InputError, match="must be pairs of two classes, such as right kidney=left kidney"):
        open_data_of(Config.of(data=root, mirror="liver,spleen"))
    for text in ("liver", "liver=spleen=liver", "liver=liver", "liver=spleen, spleen=left kidney", "liver=lung", "=,"):
        with pytest.raises(InputError) as caught:
            open_data_of(Config.of(data=root, mirror=text))
        assert_clear(caught.value, f"--mirror {text}: ")


@given(st.permutations(list(KIDNEYS)[1:]), st.booleans())
def test_pairs_are_one_whatever_their_order(names, turned):
    pairs = [names[:2], names[2:]]
    text = ", ".join("=".join(pair[::-1] if turned else pair) for pair in pairs[:: -1 if turned else 1])
    ours = read_mirror(parse_mirror(text), tuple(KIDNEYS))
    assert ours == read_mirror(pairs, tuple(KIDNEYS))
    assert {frozenset(pair) for pair in ours} == {frozenset(pair) for pair in pairs}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *(({"mirror": mirror}, "mirror: must be pairs of two classes") for mirror in (
            "right kidney=left kidney", {"right kidney": "left kidney"}, ["right kidney", "left kidney"], [[1, 2]], 5,
            [["liver"]], [["liver", "spleen", "left kidney"]], [["liver", "liver"]], None,
        )),
        ({"mirror": [["right kidney", "left lung"]]}, "mirror: 'left lung' is no class; choose from liver, right"),
        ({"mirror": [["background", "liver"]]}, "mirror: 'background' is no class"),
        ({"mirror": [["organs", "liver"]], "regions": {"organs": ["liver"]}}, "mirror: 'organs' is no class"),
        ({"mirror": [["liver", "spleen"], ["spleen", "left kidney"]]}, "mirror: 'spleen' is in two pairs"),
        *(({"mirror_axis": axis}, 'mirror_axis must be "horizontal"') for axis in ("x", "auto", None, [], -1)),
    ],
)  # fmt: skip
def test_a_mirror_that_is_none_is_one_line(tmp_path, content, said):
    path = described(tmp_path, **content) / "dataset.json"
    with pytest.raises(InputError) as caught:
        read_description(path)
    assert_clear(caught.value, f"{path}: ", said)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="needs classes; list all classes"):
        read_description(path)


@pytest.mark.slow
def test_prepare_writes_it(tmp_path, capsys):
    write_scans(tmp_path / "scans", (40, 34, 3))
    flags = [str(tmp_path / "scans"), "--split", "2,1,1", "--names", "a,b,c"]
    prepare.main(["nifti", *flags, "--out", str(tmp_path / "data"), "--mirror", "c=a"])
    data = open_data(tmp_path / "data")
    assert data.labels.mirror == (("a", "c"),)
    assert {mirror.axis for mirror in data.dataset("train", ALWAYS).mirrors.values()} <= {-1, None}
    with pytest.raises(InputError, match=r"--mirror a=d: 'd' is no class; choose from a, b, c"):
        prepare.main(["nifti", *flags, "--out", str(tmp_path / "other"), "--mirror", "a=d"])
    flags[-1] = "a,b,ignore"
    with pytest.raises(InputError, match=r"--mirror a=ignore: 'ignore' is no class; choose from a, b"):
        prepare.main(["nifti", *flags, "--out", str(tmp_path / "other"), "--mirror", "a=ignore"])
    flags[-1] = "a,b,Ignore"
    with pytest.raises(InputError, match=r"^labels: 'Ignore' must be called ignore"):
        prepare.main(["nifti", *flags, "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_pictures_say_their_axis(tmp_path, capsys):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for k in range(3):
            pixels = np.random.default_rng(k).integers(0, 3, (32, 40), np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(pixels), tmp_path / kind / f"{k}.png")
    flags = ["png", str(tmp_path), "--split", "1,1,1"]
    stated = ["--names", "a,b", "--mirror", "b=a", "--mirror_axis", "vertical"]
    prepare.main([*flags, *stated, "--out", str(tmp_path / "data")])
    labels = {"background": 0, "a": 1, "b": 2}
    table = {"labels": labels, "mirror": [["a", "b"]], "mirror_axis": "vertical"}
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    prepare.main([*flags, "--out", str(tmp_path / "kept")])
    for name in ("data", "kept"):
        (mirror,) = open_data(tmp_path / name).dataset("train", ALWAYS).mirrors.values()
        assert mirror.axis == -2 and mirror.exchanged[:4].tolist() == [0, 2, 1, 3]
