"""From scans to slices and back: geometry, grey values, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data.geometry import Geometry
from data.nifti import write_nifti
from data.preparation import Preparation, Slices, stretch
from data.sources.nifti import find_pairs
from data.volumes import to_scan
from tests.helpers.scans import ORIENTATIONS, assert_same_grid, assert_same_scan, make_scan, write_scan
from utils import InputError


def prepared(folder: Path, **options) -> Slices:
    """Subject 1 as slices."""
    case = find_pairs(folder, ["image_{subject}.nii.gz"], "label_{subject}.nii.gz").read("1")
    return Preparation(normalize="volume", bits=16, **options).apply(case.images, case.label)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


# ---------------------------------------------------------------- there and back


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples; each replaces the files of the one before."""
    return tmp_path_factory.mktemp("scan")


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(0, 99), st.tuples(*[st.floats(-30, 30)] * 3))
def test_labels_return_to_the_scan_from_any_orientation(folder, code, seed, angles):
    image, label = make_scan(seed, code, angles)
    write_scan(folder, "1", image, label)
    case = prepared(folder)
    upright = sitk.DICOMOrient(sitk.ReadImage(folder / "image_1.nii.gz"), "LPS")
    order = np.argsort(sitk.GetArrayFromImage(upright), axis=None)
    assert (np.diff(case.images[0].ravel()[order].astype(int)) >= 0).all()  # grey values in the order of the scan's
    assert np.reshape(upright.GetDirection(), (3, 3)).diagonal().min() > 0  # columns to the left, rows to the back
    geometry = Geometry.from_dict(json.loads(json.dumps(case.geometry.to_dict())))
    write_nifti(folder / "back.nii.gz", to_scan(case.label.astype(np.uint8), geometry))
    assert_same_scan(sitk.ReadImage(folder / "back.nii.gz"), sitk.ReadImage(folder / "label_1.nii.gz"))


@settings(max_examples=60, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([0, 45, -45, 90]) | st.floats(-180, 180)] * 3))
def test_scans_that_lie_askew_are_cut_as_they_were_acquired(order, angles):
    """Hearts along their short axis: slices are stored ones, in whatever order the axes are stored."""
    scan = sitk.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    scan.SetSpacing((1.4, 1.5, 9.0))
    scan.SetDirection(Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel())
    stored = sitk.PermuteAxes(scan, list(order))
    case = Preparation().apply([stored], stored)
    ours = {frozenset(pixels.ravel().tolist()) for pixels in case.label}
    assert ours == {frozenset(pixels.ravel().tolist()) for pixels in sitk.GetArrayFromImage(scan)}
    assert case.geometry.spacing[2] == 9.0
    back = to_scan(case.label.astype(np.uint8), case.geometry)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(stored))
    np.testing.assert_allclose(back.GetDirection(), stored.GetDirection(), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_stays_whole_however_thin_it_is(axis):
    scan = sitk.GetImageFromArray(np.expand_dims(np.arange(35, dtype=np.uint8).reshape(7, 5), axis))
    scan.SetSpacing([1.0 if side == 1 else 1.5 for side in scan.GetSize()])
    (pixels,) = Preparation().apply([scan], scan).label
    assert sorted(pixels.ravel()) == list(range(35)) and set(pixels.shape) == {5, 7}


def test_a_scan_of_no_largest_spacing_is_cut_axially():
    scan = sitk.GetImageFromArray(np.zeros((40, 41, 42), np.uint8))
    assert Preparation().apply([sitk.DICOMOrient(scan, "PIR")]).images.shape == (1, 40, 41, 42)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(32, 48), st.tuples(*[st.floats(-30, 30)] * 3))
def test_cropped_and_padded_labels_return_where_they_were(folder, code, size, angles):
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


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(1, 6), st.integers(1, 6), st.sampled_from([None, 40]))
def test_slices_keep_their_place_where_the_first_and_last_were_removed(folder, code, a, b, size):
    first, last = sorted((a, b))
    write_scan(folder, "1", *make_scan(0, code, (5, -20, 8), size=(40, 34, 6)))
    case = prepared(folder, size=size)
    geometry = Geometry.from_dict(json.loads(json.dumps(case.geometry.to_dict()))).of_slices(first, last)
    back = to_scan(case.label[first - 1 : last].astype(np.uint8), geometry)
    whole = to_scan(case.label.astype(np.uint8), case.geometry)
    assert_same_grid(back, sitk.ReadImage(folder / "label_1.nii.gz"))
    upright, expected = (sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")) for image in (back, whole))
    expected[: first - 1], expected[last:] = 0, 0
    np.testing.assert_array_equal(upright, expected)


# ---------------------------------------------------------------- grey values


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
    np.testing.assert_allclose(half.geometry.spacing, (2.5, 1.6, 7.7), rtol=1e-6)
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


@pytest.mark.parametrize(
    "options", [{}, {"normalize": "volume"}, {"bits": 16}, {"window": (5.0, 10.0)}, {"spacing": (2.0, 2.0)}]
)
@pytest.mark.parametrize("value", [0.0, 7.5, -1e30, 3e38])
def test_constant_scans_become_constant_slices(options, value):
    scan = sitk.GetImageFromArray(np.full((2, 33, 34), value, np.float32))
    with np.errstate(all="raise"):
        images = Preparation(**options).apply([scan]).images
    assert (images == images.flat[0]).all()
    if "window" not in options:
        assert not images.any()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scans_that_are_not_finite_are_refused(value):
    array = np.zeros((2, 33, 34), np.float32)
    array[1, 2, 3] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        Preparation().apply([sitk.GetImageFromArray(array)])


def test_volumes_that_no_memory_holds_are_refused():
    with pytest.raises(InputError, match="more than 2,147,483,648 voxels; choose a larger spacing"):
        Preparation(spacing=(0.01, 0.01)).apply([sitk.Image(32, 32, 300, sitk.sitkUInt8)])


def test_preparation_survives_json_and_refuses_another_version():
    preparation = Preparation("coronal", 64, (1.5, 2.0), "volume", (40.0, 400.0), 16)
    assert Preparation.from_dict(json.loads(json.dumps(preparation.to_dict()))) == preparation
    with pytest.raises(InputError, match="another version"):
        Preparation.from_dict({"sharpen": 3})


@pytest.mark.parametrize("bits", [8, 16])
def test_percentiles_are_those_of_the_sorted_voxels(bits):
    volume = np.random.default_rng(0).normal(100, 30, (3, 40, 44))
    ordered = np.sort(volume.ravel())
    positions = np.array([0.005, 0.995]) * (ordered.size - 1)
    low, high = np.interp(positions, np.arange(ordered.size), ordered)
    expected = np.rint(((volume - low) / (high - low)).clip(0, 1) * (2**bits - 1))
    ours = Preparation(normalize="percentiles", bits=bits).apply([sitk.GetImageFromArray(volume)]).images[0]
    assert (ours == expected).mean() > 0.999 and np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("normalize", ["slice", "volume", "percentiles"])
@pytest.mark.parametrize(("size", "spacing"), [(64, None), (47, None), (33, None), (50, (1.4, 1.0))])
def test_padding_changes_no_grey_of_the_scan(normalize, size, spacing):
    volume = np.random.default_rng(1).normal(100, 30, (3, 40, 33)) + np.array([0, 50, 100])[:, None, None]
    scan = [sitk.GetImageFromArray(volume)]
    (whole,) = Preparation(normalize=normalize, spacing=spacing).apply(scan)[0]
    (padded,) = Preparation(normalize=normalize, spacing=spacing, size=size).apply(scan)[0]
    rows, columns = (-((n - size) // 2) for n in whole.shape[1:])
    if rows >= 0:
        np.testing.assert_array_equal(
            padded[:, rows : rows + whole.shape[1], columns : columns + whole.shape[2]], whole
        )
        assert padded[:, :rows].max(initial=0) == 0 and padded[:, :, :columns].max(initial=0) == 0
    else:  # cropped: what is left is the scan
        kept = volume[:, -rows : size - rows]
        expected = Preparation(normalize=normalize).apply([sitk.GetImageFromArray(kept)])[0][0]
        np.testing.assert_array_equal(padded, expected)
