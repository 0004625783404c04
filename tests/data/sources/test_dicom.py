"""DICOM series, read and written: positions, thickness, names of patients, and a tilted gantry."""

from __future__ import annotations

import errno
import io
import re
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from data.sources.dicom import Series, read_series, write_series
from data.volumes import like
from tests.helpers.scans import save_series, save_slice, slice_position, write_dicom
from utils import InputError


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


def segmentation_of_patient(folder: Path, charset: str, name: bytes) -> bytes:
    """The DICOM file that is written for a slice of a patient of this name."""
    path = folder / "scan" / "a.dcm"
    write_dicom(path, np.zeros((6, 7)), slice_position(0), charset=charset)
    set_element(path, 0x10, 0x10, name)
    series = read_series(folder / "scan")
    write_series(folder / "out", like(series.image, np.ones((1, 6, 7), np.uint8)), series)
    return (folder / "out" / "a.dcm").read_bytes()


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
    written = segmentation_of_patient(tmp_path, charset, name.encode(codec))
    assert pydicom.dcmread(io.BytesIO(written)).PatientName == name


def test_names_in_a_set_with_escapes_stay_as_they_are(tmp_path):
    charset, name = r"\ISO 2022 IR 87", b"Yamada=\x1b$B;3ED\x1b(B"
    written = segmentation_of_patient(tmp_path, charset, name)
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
    label = like(series.image, np.arange(3 * 6 * 7, dtype=np.uint8).reshape(3, 6, 7))
    write_series(tmp_path / "segmentation", label, series)
    assert sorted(path.name for path in (tmp_path / "segmentation").iterdir()) == sorted(names)
    for k, name in enumerate(names):
        written = sitk.ReadImage(tmp_path / "segmentation" / name)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written)[0], sitk.GetArrayFromImage(label)[k])
        position = [float(number) for number in written.GetMetaData("0020|0032").split("\\")]
        np.testing.assert_allclose(position, slice_position(k), atol=1e-3)


def small_series(folder: Path):
    """Three slices and their series."""
    for k in range(3):
        write_dicom(folder / f"{k}.dcm", np.full((6, 7), k), slice_position(k))
    return read_series(folder)


def test_a_written_series_takes_the_place_of_an_earlier_one_with_nothing_left(tmp_path):
    series = small_series(tmp_path / "scan")
    before = Series(series.image[:, :, :2], series.files[:2])
    write_series(tmp_path / "out", like(series.image, np.ones((3, 6, 7), np.uint8)), series)
    killed = tmp_path / ".0123456789abcdef.partial.out"
    killed.mkdir()
    write_series(tmp_path / "out", like(before.image, np.full((2, 6, 7), 300, np.uint16)), before)
    assert {path.name for path in tmp_path.iterdir()} == {"scan", "out"}
    again = read_series(tmp_path / "out")
    assert len({pydicom.dcmread(path).SeriesInstanceUID for path in again.files}) == 1
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again.image), np.full((2, 6, 7), 300))


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    series = small_series(tmp_path / "scan")
    label = like(series.image, np.ones((3, 6, 7), np.uint8))
    write_series(tmp_path / "out", label, series)
    kept = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError) as caught:
        write_series(tmp_path / "out", label, series)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept
    assert {path.name for path in tmp_path.iterdir()} == {"scan", "out"}


@pytest.mark.parametrize("there", ["the scan", "another scan", "notes", "a folder", "a file"])
def test_a_written_series_replaces_nothing_else(tmp_path, there):
    series = small_series(tmp_path / "scan")
    out = tmp_path / ("scan" if there == "the scan" else "out")
    if there == "another scan":
        small_series(out)
    elif there == "notes":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    elif there == "a folder":
        (out / "inner").mkdir(parents=True)
    elif there == "a file":
        out.write_text("mine")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=re.escape(str(out))):
        write_series(out, like(series.image, np.ones((3, 6, 7), np.uint8)), series)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_a_written_series_replaces_none_of_another_study(tmp_path):
    pixels = np.zeros((3, 6, 8), np.uint16)
    for patient in "ab":
        save_series(tmp_path / patient, pixels, StudyInstanceUID=f"1.2.{ord(patient)}")
    first, second = (read_series(tmp_path / patient) for patient in "ab")
    label = like(first.image, np.ones((3, 6, 8), np.uint8))
    write_series(tmp_path / "out", label, first)
    kept = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match=r"is a segmentation of another study, and would be lost; choose another"):
        write_series(tmp_path / "out", label, second)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept
    write_series(tmp_path / "out", label, first)


def test_a_segmentation_shares_the_text_of_patient_study_and_place(tmp_path):
    """What is there is copied to the letter, also from a file without preamble, in explicit VR."""
    shared = {"PatientName": "A^B", "PatientID": "7", "StudyInstanceUID": "1.2.9", "FrameOfReferenceUID": "1.2.7"}
    (tmp_path / "scan").mkdir()
    source = save_slice(
        tmp_path / "scan" / "a", np.zeros((6, 8), np.int16), **shared, ImagePositionPatient="1.50\\2\\3"
    )
    (tmp_path / "scan" / "a").write_bytes((tmp_path / "scan" / "a").read_bytes()[132:])
    series = read_series(tmp_path / "scan")
    write_series(tmp_path / "out", like(series.image, np.ones((1, 6, 8), np.uint8)), series)
    written = pydicom.dcmread(tmp_path / "out" / "a")
    for keyword in (*shared, "ImageOrientationPatient", "PixelSpacing"):
        assert written[keyword].value == source[keyword].value
    assert written.get_item("ImagePositionPatient").value.strip() == b"1.50\\2\\3"
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert written.SOPInstanceUID != source.SOPInstanceUID
    assert written.ImageType[0] == "DERIVED"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gap", "count"), [(0.7, 3), (1.0, 2), (3.3, 9)])
def test_positions_of_one_decimal_are_no_tilt_and_no_missing_slice(tmp_path, seed, gap, count):
    """In thin stacks that lie askew, rounding moves slices aside by as much as a tilt of many degrees does."""
    direction = Rotation.random(random_state=seed).as_matrix()
    array = np.random.default_rng(seed).integers(0, 9, (count, 4, 5)).astype(np.uint16)
    save_series(tmp_path, array, direction, gap, decimals=1)
    series = read_series(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(series.image), array)
    assert series.image.GetSpacing()[2] == pytest.approx(gap, abs=0.18 / (count - 1))


def test_slices_of_two_frames_of_reference_are_refused(tmp_path):
    """Positions mean the same place only in one frame of reference."""
    files = save_series(tmp_path, np.zeros((3, 4, 5), np.uint16))
    assert len(read_series(tmp_path).files) == 3
    dataset = pydicom.dcmread(files[1])
    dataset.FrameOfReferenceUID = "1.2.6"
    dataset.save_as(files[1])
    with pytest.raises(InputError, match=re.escape(str(files[1])) + ".*frame of reference.*keep one series"):
        read_series(tmp_path)
    del dataset.FrameOfReferenceUID  # which says nothing
    dataset.save_as(files[1])
    assert len(read_series(tmp_path).files) == 3


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
