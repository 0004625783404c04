"""DICOM files: values against pydicom and GDCM, what is left out, what is refused, and damage of all kinds."""

from __future__ import annotations

import contextlib
import resource
import shutil
import struct
import time
import zlib
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut

from data.sources.dicom import read_series, write_series
from data.volumes import like
from tests.helpers.scans import assert_same_grid, save_slice, slice_position, write_dicom
from utils import InputError

RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 17 + 3200  # of 12 bits


def values(folder: Path) -> np.ndarray:
    """The values of the only slice."""
    return sitk.GetArrayFromImage(read_series(folder).image)[0]


def by_gdcm(path: Path) -> np.ndarray:
    """The values of a file as SimpleITK has them."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    return sitk.GetArrayFromImage(reader.Execute())[0]


def by_pydicom(path: Path) -> np.ndarray:
    """The modality values of a file as pydicom has them."""
    dataset = pydicom.dcmread(path)
    return apply_modality_lut(dataset.pixel_array, dataset)


# ---------------------------------------------------------------- values

STORED = {
    "as they are": (RAMP, {}),
    "signed": (RAMP.astype(np.int16) - 3500, {}),
    "8 bit": (RAMP.astype(np.uint8), {}),
    "signed 8 bit": (RAMP.astype(np.int8), {}),
    "32 bit": (RAMP.astype(np.uint32) * 99999, {}),
    "12 bit, a CT": (RAMP, {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}),
    "12 bit, signed": (RAMP, {"BitsStored": 12, "PixelRepresentation": 1}),
    "12 bit under an overlay": (RAMP | 0xF000, {"BitsStored": 12}),
    "a PET": (RAMP, {"RescaleSlope": 0.37, "RescaleIntercept": 0}),
    "half an intercept": (RAMP, {"RescaleSlope": 2, "RescaleIntercept": -0.5}),
    "a negative slope": (RAMP, {"RescaleSlope": -3, "RescaleIntercept": 7}),
    "an MR with a slope": (RAMP, {"SOPClassUID": uid.MRImageStorage, "RescaleSlope": 2, "RescaleIntercept": -5}),
    "a window": (RAMP, {"WindowCenter": 3400, "WindowWidth": 20, "PresentationLUTShape": "INVERSE"}),
    "big-endian": (RAMP, {"syntax": uid.ExplicitVRBigEndian}),
    "implicit": (RAMP, {"syntax": uid.ImplicitVRLittleEndian}),
    "deflated": (RAMP, {"syntax": uid.DeflatedExplicitVRLittleEndian}),
}


@pytest.mark.parametrize("name", STORED)
def test_values_and_their_type_are_those_of_gdcm_and_pydicom(tmp_path, name):
    pixels, elements = STORED[name]
    save_slice(tmp_path / "a.dcm", pixels, **elements)
    expected = by_gdcm(tmp_path / "a.dcm")
    assert values(tmp_path).dtype == expected.dtype
    np.testing.assert_array_equal(values(tmp_path), expected)
    np.testing.assert_array_equal(values(tmp_path), by_pydicom(tmp_path / "a.dcm"))


@pytest.mark.parametrize("elements", [{}, {"RescaleSlope": 1, "RescaleIntercept": -1024}])
def test_values_of_monochrome1_are_not_turned_over(tmp_path, elements):
    """MONOCHROME1 says to show low values bright; ITK makes low values high instead."""
    save_slice(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **elements)
    np.testing.assert_array_equal(values(tmp_path), by_pydicom(tmp_path / "a.dcm"))
    np.testing.assert_array_equal(values(tmp_path), RAMP.astype(int) + elements.get("RescaleIntercept", 0))


def test_a_table_of_the_modality_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.LUTData = np.arange(4096, dtype=np.uint16)[::-1].tobytes()
    save_slice(tmp_path / "a.dcm", RAMP, BitsStored=12, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(values(tmp_path), 4095 - RAMP)


@pytest.mark.slow
@hypothesis.given(
    kind=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"]),
    seed=st.integers(0, 99),
    slope=st.sampled_from([1, 2, -1, 7, 0.5, 1.1]),
    intercept=st.sampled_from([0, -1024, 0.25]),
    data=st.data(),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_values_of_any_type_are_slope_times_stored_plus_intercept(tmp_path_factory, kind, seed, slope, intercept, data):
    dtype = np.dtype(kind)
    bits = data.draw(st.integers(2, 8 * dtype.itemsize))
    half = 2 ** (bits - 1)
    first = -half if dtype.kind == "i" else 0
    pixels = np.random.default_rng(seed).integers(first, first + 2 * half, (4, 6)).astype(dtype)
    folder = tmp_path_factory.mktemp("dicom")
    save_slice(folder / "a.dcm", pixels, BitsStored=bits, RescaleSlope=slope, RescaleIntercept=intercept)
    np.testing.assert_allclose(values(folder), pixels * float(slope) + intercept, rtol=1e-12)


# ---------------------------------------------------------------- compressed


def compress(path: Path, codec: str) -> None:
    """Write RAMP with compressed pixels."""
    if codec == "RLE":
        dataset = save_slice(path, RAMP, BitsStored=12)
        dataset.compress(uid.RLELossless)
        dataset.save_as(path, enforce_file_format=True)
        return
    image = sitk.GetImageFromArray(RAMP)
    image.SetMetaData("0020|0032", "0\\0\\0")
    image.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
    image.SetMetaData("0008|0060", "CT")
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(codec)
    writer.SetFileName(path)
    writer.Execute(image)


@pytest.mark.parametrize("codec", ["RLE", "JPEG", "JPEG2000"])
def test_compressed_pixels_are_unpacked(tmp_path, codec):
    compress(tmp_path / "a.dcm", codec)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert dataset.file_meta.TransferSyntaxUID.is_compressed
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PhotometricInterpretation = 1, -1000, "MONOCHROME1"
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(values(tmp_path), RAMP.astype(int) - 1000)


def set_precision(frame: bytearray) -> None:
    """With more than 16 bits, GDCM ends the process that reads the JPEG."""
    frame[frame.index(b"\xff\xc3") + 4] = 0x59


def set_size(frame: bytearray) -> None:
    """By this size GDCM takes 4 GB."""
    struct.pack_into(">HH", frame, frame.index(b"\xff\xc3") + 5, 30000, 30000)


def cut(frame: bytearray) -> None:
    """End early."""
    del frame[len(frame) // 2 :]


@pytest.mark.parametrize("damage", [set_precision, set_size, cut])
def test_damaged_jpegs_are_refused(tmp_path, damage):
    compress(tmp_path / "a.dcm", "JPEG")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    frame = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    damage(frame)
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"a.dcm: .*its pixels are damaged"):
        read_series(tmp_path)


# ---------------------------------------------------------------- what is left out


def test_slices_without_preamble_and_name_are_read_and_what_is_no_slice_is_named(tmp_path, capsys):
    for k in range(6):
        pixels = np.full((6, 8), k, np.int16)
        save_slice(tmp_path / f"IM{k}", pixels, ImagePositionPatient=[0, 0, 4 * k])
        if k > 2:
            content = (tmp_path / f"IM{k}").read_bytes()
            # The file's meta elements, of a length that the first of them says, are often missing as well.
            start = 132 if k == 3 else 144 + int.from_bytes(content[140:144], "little")
            (tmp_path / f"IM{k}").write_bytes(content[start:])
    (tmp_path / "._IM0.dcm").write_bytes(b"\0\5\x16\7 AppleDouble")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "notes.txt").write_text("three slices without contrast")
    without = {"Rows": None, "Columns": None, "PixelData": None}
    save_slice(tmp_path / "report.dcm", RAMP, SOPClassUID=uid.BasicTextSRStorage, **without)
    save_slice(tmp_path / "private", RAMP, SOPClassUID="1.3.12.2.1107.5.9.1", **without)
    series = read_series(tmp_path)
    assert [path.name for path in series.files] == [f"IM{k}" for k in range(6)]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(series.image)[:, 0, 0], range(6))
    note = capsys.readouterr().out
    assert note.startswith(f"note: {tmp_path}: 6 of 12 files left out")
    assert note.count("\n") == 1
    assert all(name in note for name in ("._IM0.dcm", ".DS_Store", "DICOMDIR", "notes.txt", "private"))


def test_a_folder_without_images_says_so(tmp_path):
    save_slice(tmp_path / "a.dcm", RAMP, SOPClassUID=uid.RTStructureSetStorage, Rows=None, PixelData=None)
    with pytest.raises(InputError, match="holds no DICOM files with pixels"):
        read_series(tmp_path)


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "no position": ({"ImagePositionPatient": None}, "it has no ImagePositionPatient"),
    "empty position": ({"ImagePositionPatient": ""}, "it has no ImagePositionPatient"),
    "two numbers": ({"ImagePositionPatient": [1, 2]}, "ImagePositionPatient must be 3 numbers"),
    "infinite position": ({"ImagePositionPatient": ["1", "2", "inf"]}, "ImagePositionPatient must be"),
    "far position": ({"ImagePositionPatient": [0, 0, 1e200]}, "ImagePositionPatient must be"),
    "no orientation": ({"ImageOrientationPatient": None}, "it has no ImageOrientationPatient"),
    "zero orientation": ({"ImageOrientationPatient": [0] * 6}, "ImageOrientationPatient is no two unit vectors"),
    "parallel axes": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "ImageOrientationPatient is no two unit"),
    "long axes": ({"ImageOrientationPatient": [1.1, 0, 0, 0, 1.1, 0]}, "ImageOrientationPatient is no two unit"),
    "skew axes": ({"ImageOrientationPatient": [1, 0, 0, 0.1, 0.99499, 0]}, "ImageOrientationPatient is no two unit"),
    "no spacing": ({"PixelSpacing": None}, "it has no PixelSpacing"),
    "zero spacing": ({"PixelSpacing": [0, 1]}, "PixelSpacing"),
    "long spacing": ({"PixelSpacing": [1e30, 1]}, "PixelSpacing"),
    "thick as the moon": ({"SliceThickness": "1e9"}, "SliceThickness"),
    "frames": ({"NumberOfFrames": 6, "ImagePositionPatient": None}, "is no single grey slice (6 frames"),
    "enhanced": ({"PerFrameFunctionalGroupsSequence": [pydicom.Dataset()]}, "is no single grey slice"),
    "RGB": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is no single grey slice"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "is no single grey slice"),
    "no rows": ({"Rows": None}, "it has no Rows"),
    "no columns": ({"Columns": 0}, "Columns cannot be 0"),
    "no pixels": ({"PixelData": None}, "it has no PixelData"),
    "few pixels": ({"PixelData": b"\0" * 50}, "its pixels are cut: holds 50 of 96 bytes"),
    "many rows": ({"Rows": 65535}, "its pixels are cut: holds 96 of 1,048,560 bytes"),
    "rows and columns": ({"Rows": 65535, "Columns": 65535}, "are more than a slice can have"),
    "few rows": ({"Rows": 4}, "its PixelData have 96 bytes, its Rows x Columns 64"),
    "bits": ({"BitsStored": 17}, "BitsStored cannot be 17"),
    "bits allocated": ({"BitsAllocated": 12, "BitsStored": 12}, "BitsAllocated cannot be 12"),
    "upper bits": ({"BitsStored": 12, "HighBit": 15}, "HighBit cannot be 15"),
    "no sign": ({"PixelRepresentation": None}, "it has no PixelRepresentation"),
    "slope of 0": ({"RescaleSlope": 0}, "its RescaleSlope is 0"),
    "two slopes": ({"RescaleSlope": [1, 2]}, "RescaleSlope must be a number"),
    "syntax": ({"syntax": uid.HTJ2K}, "TransferSyntaxUID"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_right_is_refused_in_a_line(tmp_path, name):
    elements, words = REFUSED[name]
    if name == "syntax":
        save_slice(tmp_path / "a.dcm", RAMP)
        content = (tmp_path / "a.dcm").read_bytes()
        (tmp_path / "a.dcm").write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    else:
        save_slice(tmp_path / "a.dcm", RAMP, **elements)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        read_series(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'a.dcm'}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_a_scan_of_too_many_voxels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.dicom.MAX_VOXELS", 100)
    for k in range(3):
        write_dicom(tmp_path / f"{k}.dcm", np.zeros((6, 7)), slice_position(k))
    with pytest.raises(InputError, match="3 slices of 6 x 7 pixels are more than a scan can have"):
        read_series(tmp_path)


@pytest.mark.parametrize("text", [b"", b"DICM", b"\0" * 128 + b"DICM", b"no slice at all, but a text of some length"])
def test_damaged_files_called_dcm_are_errors(tmp_path, text):
    save_slice(tmp_path / "a.dcm", RAMP)
    (tmp_path / "b.dcm").write_bytes(text)
    with pytest.raises(InputError, match=r"b.dcm: not a readable DICOM slice"):
        read_series(tmp_path)


def test_sequences_nested_20000_deep_end_in_a_line(tmp_path):
    save_slice(tmp_path / "a.dcm", RAMP)
    content = (tmp_path / "a.dcm").read_bytes()
    place = content.index(struct.pack("<HH", 0x10, 0x10))
    item = struct.pack("<HH2sHIHHI", 0x9, 0x1002, b"SQ", 0, 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1)
    (tmp_path / "a.dcm").write_bytes(content[:place] + item * 20_000 + content[place:])
    start = time.monotonic()
    with pytest.raises(InputError, match=r"a.dcm: its sequences are nested too deep"):
        read_series(tmp_path)
    assert time.monotonic() - start < 10


def test_deflated_files_do_not_unpack_to_more_than_a_slice(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.dicom_file.MAX_BYTES", 2**20)
    save_slice(tmp_path / "a.dcm", RAMP, uid.DeflatedExplicitVRLittleEndian)
    content = (tmp_path / "a.dcm").read_bytes()
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    zeros = packer.compress(bytes(2**20)) + packer.flush()
    (tmp_path / "a.dcm").write_bytes(content[: 144 + int.from_bytes(content[140:144], "little")] + zeros)
    with pytest.raises(InputError, match=r"a.dcm: .*unpacks to more"):
        read_series(tmp_path)


# ---------------------------------------------------------------- fuzz


def damage(content: bytes, elements: list[tuple[int, int]], rng: np.random.Generator) -> bytes:
    """Another form of a DICOM file; `elements` are where its elements begin and end."""
    first, last = elements[rng.integers(len(elements))]
    end_of_header = elements[-1][0] + 12
    match rng.integers(6):
        case 0:  # cut
            return content[: rng.integers(len(content))]
        case 1:  # an element less
            return content[:first] + content[last:]
        case 2:  # an element twice, somewhere
            place = elements[rng.integers(len(elements))][0]
            return content[:place] + content[first:last] + content[place:]
        case 3:  # absurd values
            value = rng.choice([b"\xff", b"\0", b"9", b"-", b"\\", b"e", b"\x80", b" "])
            return content[: first + 8] + value * (last - first - 8) + content[last:]
        case _:  # other bytes
            changed = bytearray(content)
            for place in rng.integers(128, end_of_header, rng.integers(1, 5)):
                changed[place] = rng.integers(256)
            return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_damaged_files_are_read_right_or_refused(tmp_path, syntax, preamble):
    """What is read of them is what pydicom reads, and what is segmented can be written."""
    dataset = save_slice(
        tmp_path / "a.dcm", RAMP[:, :6], syntax, BitsStored=12, RescaleSlope=2, RescaleIntercept=-100,
        SliceThickness=3, SpecificCharacterSet="ISO_IR 100", NumberOfFrames=1, FrameOfReferenceUID="1.2",
    )  # fmt: skip
    content = (tmp_path / "a.dcm").read_bytes()
    heads = sorted(element.file_tell - 8 for element in pydicom.dcmread(tmp_path / "a.dcm"))
    elements = list(zip(heads, [*heads[1:], len(content)], strict=True))
    expected = apply_modality_lut(dataset.pixel_array, dataset)
    rng = np.random.default_rng([len(syntax), preamble])
    read = written = 0
    for k in range(70):
        folder = tmp_path / str(k)
        folder.mkdir()
        changed = damage(content, elements, rng)
        (folder / "a.dcm").write_bytes(changed if preamble else changed[132:])
        try:
            series = read_series(folder)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        image = series.image
        numbers = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
        assert np.isfinite(numbers).all()
        now = pydicom.dcmread(folder / "a.dcm", force=True)
        # Optional, and refused where they say anything else.
        now.file_meta.TransferSyntaxUID = syntax
        now.PhotometricInterpretation, now.SamplesPerPixel, now.NumberOfFrames = "MONOCHROME2", 1, 1
        again = now.pixel_array * float(now.get("RescaleSlope") or 1) + float(now.get("RescaleIntercept") or 0)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0], again)
        label = like(image, np.ones(image.GetSize()[::-1], np.uint8))
        with contextlib.suppress(InputError):  # of names in no character set
            write_series(folder / "out", label, series)
            assert_same_grid(read_series(folder / "out").image, label, atol=1e-6)
            written += 1
        shutil.rmtree(folder)
    assert 5 < written <= read < 65
    np.testing.assert_array_equal(expected, RAMP[:, :6] * 2.0 - 100)
