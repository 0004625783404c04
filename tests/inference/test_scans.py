"""Scans for the network: what they are called, and that they are what the network was trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from data.folder import open_data
from data.geometry import Geometry
from data.png import read_image
from data.sources.dicom import read_series
from inference.networks import Ensemble
from inference.scans import read_scans, scan_names
from tests.helpers.errors import assert_clear
from tests.helpers.scans import slice_position, write_dicom
from utils import InputError


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
    assert scan_names(sources) == names


def test_prepared_slices_are_what_the_network_gets(trained):
    """A scan becomes the very numbers that the loader reads from the PNGs."""
    (scan,) = read_scans(str(trained.test_scan), "s3", trained.ensemble())
    for number, images in zip(scan.numbers, scan.images.swapaxes(0, 1), strict=True):
        stored = read_image(trained.data / "test" / "Img" / f"Subj_s3slice_{number}.png")
        np.testing.assert_array_equal(images, stored)


def prepared_with(ensemble: Ensemble, **options) -> Ensemble:
    """The same network, as if its scans had become slices with other options."""
    (network,) = ensemble.networks
    identity = replace(network.identity, preparation=replace(network.identity.preparation, **options))
    return replace(ensemble, networks=[replace(network, identity=identity)])


def trained_on(ensemble: Ensemble, **facts) -> Ensemble:
    """The same network, as if its data had been others."""
    (network,) = ensemble.networks
    return replace(ensemble, networks=[replace(network, identity=replace(network.identity, **facts))])


@pytest.mark.parametrize(("spacing", "size", "expected"), [
    ((1.0, 1.0, 1.0), (1.0, 1.0), []),
    ((1.3, 1 / 1.3, 1.3), (1 / 1.3, 1.3), []),
    ((1.4, 1.0, 1.0), (1.0, 1.0), ["spacing in mm 1.25 x 0.8, those of the training typically 1.75 x 0.8"]),
    ((1.0, 0.25, 1.0), (1.0, 1.0), ["spacing in mm 1.25 x 0.8, those of the training typically 1.25 x 0.2"]),
    ((1.0, 1.0, 0.5), (1.0, 1.0), ["distance of slices in mm 7.7, those of the training typically 3.85"]),
    ((1.0, 1.0, 1.0), (1.0, 1.5), ["size in pixels 36 x 36, those of the training typically 36 x 54"]),
    (None, (1.0, 1.0), []),
])  # fmt: skip
def test_other_scales_than_those_of_the_training_are_worth_a_warning(trained, capsys, spacing, size, expected):
    """Factors between the training data and the scan, of 1.25 x 0.8 x 7.7 mm and 36 x 36 pixels."""
    ensemble = trained.ensemble()
    (network,) = ensemble.networks
    assert network.identity.typical.spacing == pytest.approx((1.25, 0.8, 7.7))
    assert network.identity.typical.size == (36, 36, 1)
    known = spacing and tuple(np.multiply(spacing, (1.25, 0.8, 7.7)).tolist())
    typical = Geometry(known, (round(size[0] * 36), round(size[1] * 36), 1))
    for source in (str(trained.test_scan), str(trained.data / "test")):
        list(read_scans(source, "s3", trained_on(ensemble, typical=typical)))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(expected)
        for line, part in zip(lines, expected, strict=True):
            assert line.startswith("warning: s3: ")
            assert part in line


@pytest.mark.parametrize(("across", "plane"), [(0, "sagittal"), (1, "coronal"), (2, None)])
def test_another_plane_than_that_of_the_training_is_worth_a_warning(trained, tmp_path, capsys, across, plane):
    """Scans whose slices lie far apart from left to right, from back to front, and from foot to head."""
    size, spacing = np.full(3, 36), np.full(3, 1.0)
    size[across], spacing[across] = 3, 7.7
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=size[::-1]))
    image.SetSpacing(spacing.tolist())
    sitk.WriteImage(image, tmp_path / "scan.nii.gz")
    list(read_scans(str(tmp_path / "scan.nii.gz"), "scan", trained.ensemble()))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "typically axial" in line]
    assert len(warnings) == (plane is not None)
    assert all(line.startswith(f"warning: scan: its slices are {plane}, ") for line in warnings)


def test_slices_that_are_not_there_are_worth_a_note(trained, tmp_path, capsys):
    """A number between others, and a file whose ending is in capital letters."""
    shutil.copytree(trained.data / "test" / "Img", tmp_path / "a")
    (tmp_path / "a" / "Subj_s3slice_2.png").rename(tmp_path / "a" / "Subj_s3slice_2.PNG")
    (scan,) = read_scans(str(tmp_path / "a"), "", trained.ensemble())
    assert scan.numbers == [1, 3]
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"note: {tmp_path / 'a'}: ")]
    assert "1 PNG files with other names are left out, such as Subj_s3slice_2.PNG" in notes[0]
    assert "subject s3: 1 slice numbers are missing; they count as background in 3D" in notes[1]


def test_slices_beside_their_dataset_json_have_its_geometry(trained, tmp_path):
    """In one folder with it; in a split; and in a folder that is only linked."""
    shutil.copytree(trained.data / "test" / "Img", tmp_path / "flat")
    shutil.copy(trained.data / "dataset.json", tmp_path / "flat")
    (tmp_path / "link").symlink_to(trained.data / "test")
    expected = open_data(trained.data).geometry["s3"]
    for source in (tmp_path / "flat", trained.data / "test", trained.data / "test" / "Img", tmp_path / "link"):
        assert [scan.geometry for scan in read_scans(str(source), "", trained.ensemble())] == [expected], source


def test_slices_with_channels_of_other_names_are_refused(trained):
    path = trained.data / "dataset.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"channels": ["t1"]}))
    with pytest.raises(InputError) as caught:
        list(read_scans(str(trained.data / "test"), "", trained_on(trained.ensemble(), channels=("t2",))))
    assert_clear(caught.value, str(trained.data / "test"), "names the channels t1", "takes t2")
    path.write_text(before)
    with pytest.raises(InputError) as caught:
        files = f"{trained.image(0).with_name('t1.nii')},{trained.image(0).with_name('t2.nii')}"
        list(read_scans(files, "", trained_on(trained.ensemble(), channels=("t2", "t1"))))
    assert_clear(caught.value, "t1.nii: is channel t1 by its name, where channel t2 belongs")


def test_channels_may_be_dicom_folders(trained, tmp_path):
    """Each is what it is alone, beside another or beside a file of its kind; what is in the way is a line."""
    rng = np.random.default_rng(0)
    for name in ("t1", "t2"):
        for k in range(3):
            write_dicom(tmp_path / name / f"{k}.dcm", rng.integers(0, 500, (40, 36)), slice_position(k))
    one = trained.ensemble()
    alone = [next(read_scans(str(tmp_path / name), name, one)) for name in ("t1", "t2")]
    (network,) = one.networks
    two = replace(one, networks=[replace(network, config=network.config.change(channels=2))])
    sitk.WriteImage(read_series(tmp_path / "t2").image, tmp_path / "t2.nii.gz")
    for second in ("t2", "t2.nii.gz"):
        (both,) = read_scans(f"{tmp_path / 't1'},{tmp_path / second}", "t1", two)
        np.testing.assert_array_equal(both.images, np.concatenate([scan.images for scan in alone]))
        assert both.geometry == alone[0].geometry
        assert both.series.files == alone[0].series.files
    shutil.rmtree(tmp_path / "t2")
    write_dicom(tmp_path / "t2" / "0.dcm", np.ones((40, 36)), slice_position(5))
    with pytest.raises(InputError) as caught:
        list(read_scans(f"{tmp_path / 't1'},{tmp_path / 't2'}", "t1", two))
    assert_clear(caught.value, str(tmp_path / "t2"), "voxels")


def test_sixteen_bits_are_a_finer_grey(trained):
    """The same scan in 8 and 16 bits: the same image up to half a grey value of the coarser."""
    ensemble = trained.ensemble()
    (coarse,) = read_scans(str(trained.image(0)), "s0", ensemble)
    (finer,) = read_scans(str(trained.image(0)), "s0", prepared_with(ensemble, bits=16))
    difference = np.abs(coarse.images - finer.images)
    assert 0.3 / 255 < difference.max() < 0.501 / 255
