"""NIfTI files against nibabel: every voxel, every header, or a line."""

from __future__ import annotations

import gzip
import re
import struct
import tempfile
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.spatialimages import HeaderDataError
from scipy.spatial.transform import Rotation

from data.nifti import to_image, write_nifti
from data.volume_files import aligned, read_file, read_label
from tests.helpers.errors import assert_clear
from utils import NOTED, InputError, note

AFFINE = np.diag([-1.5, 1.25, 4.0, 1.0])
AFFINE[:3, 3] = 30, -20, 7
SHAPE = (5, 4, 3)


@pytest.fixture(autouse=True)
def fresh_notes():
    """A note is printed once a process."""
    NOTED.clear()


def nifti(values: np.ndarray, affine=AFFINE, sform: int = 1, qform: int = 1, **fields) -> nib.Nifti1Image:
    """An image with these codes, and header fields set last."""
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    for name, value in fields.items():
        image.header[name] = value
    return image


def values(dtype=np.int16, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def save(path: Path, image: nib.Nifti1Image) -> Path:
    nib.save(image, path)
    return path


def affine_of(image: sitk.Image) -> np.ndarray:
    """What ITK's image says of its voxels, in RAS."""
    columns = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3] = np.column_stack([columns, image.GetOrigin()])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def assert_read_as_nibabel(path: Path) -> None:
    """Values and place of each voxel."""
    theirs = nib.load(path)
    image = read_file(path).channels[0]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, np.asanyarray(theirs.dataobj))
    np.testing.assert_allclose(affine_of(image), theirs.affine, atol=1e-4)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "u4", "i8", "u8", "<f4", ">f4", "f8"])
@pytest.mark.parametrize(
    ("kind", "ending"),
    [(nib.Nifti1Image, ".nii"), (nib.Nifti1Image, ".nii.gz"), (nib.Nifti2Image, ".nii.gz"), (nib.Nifti1Pair, ".hdr")],
)
def test_every_type_and_container_is_read_as_by_nibabel(tmp_path, dtype, kind, ending):
    image = kind(values(dtype), AFFINE, dtype=dtype)
    path = tmp_path / f"a{ending}"
    image.to_filename(path)
    assert_read_as_nibabel(path)
    assert (
        read_file(path).channels[0].GetPixelID()
        == sitk.GetImageFromArray(values(dtype).astype(dtype[-2:])).GetPixelID()
    )


@given(st.sampled_from([0.0, 1.0, 2.5, -0.25, 1e-3, np.nan, np.inf]), st.sampled_from([0.0, -1024.0, 7.5, 1e4]))
@settings(deadline=None)
def test_slopes_and_intercepts_are_those_of_nibabel(tmp_path_factory, slope, intercept):
    """A slope of 0 scales nothing, and its intercept does not count."""
    path = tmp_path_factory.mktemp("slope") / "a.nii"
    image = nifti(values(), scl_slope=slope, scl_inter=intercept)
    content = bytearray(image.to_bytes())
    content[112:120] = struct.pack("<2f", slope, intercept)
    path.write_bytes(content)
    assert_read_as_nibabel(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_a_line(tmp_path, value):
    array = values(np.float32)
    array[1, 2] = value
    path = save(tmp_path / "a.nii.gz", nifti(array))
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert_clear(caught.value, "a.nii.gz", "3 of its voxels (5.0%) are NaN or infinite")


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_file_that_ends_anywhere_is_a_line(tmp_path_factory, data):
    """Packed or not; the last bytes of a packed file are its checksum."""
    ending = data.draw(st.sampled_from([".nii", ".nii.gz"]))
    path = save(tmp_path_factory.mktemp("cut") / f"a{ending}", nifti(values()))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert_clear(caught.value, path.name, "")


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_a_byte_that_is_wrong_in_a_packed_file_is_found(tmp_path_factory, position, change):
    """By its checksum; a few bits of gzip's own change nothing that is read."""
    path = save(tmp_path_factory.mktemp("bit") / "a.nii.gz", nifti(values()))
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= change
    path.write_bytes(content)
    try:
        image = read_file(path).channels[0]
    except InputError:
        return
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, values())


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=500)
def test_headers_with_wrong_bytes_are_read_as_by_nibabel_or_refused(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("header") / "a.nii"
    content = bytearray(nifti(values()).to_bytes())
    for position, value in changes:
        content[position] = value
    path.write_bytes(content)
    try:
        read_file(path)
    except InputError as error:
        assert "a.nii: " in str(error)
        return
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    if header["xyzt_units"] & 7 in (0, 2):
        assert np.allclose(
            nib.load(path).affine, affine_of(read_file(path).channels[0]), rtol=1e-3, atol=0.05
        )  # of a slight shear


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1024, 1024, 2047), "is cut"), ((3000, 3000, 3000), "of at most"), ((40, 40, 6, 32767), "has 32767 channels")],
)
def test_sizes_are_counted_before_memory_is_taken(tmp_path, shape, words):
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert_clear(caught.value, "a.nii.gz", words)


@pytest.mark.parametrize(
    ("version", "field", "offset"), [(nib.Nifti1Image, slice(108, 112), "f"), (nib.Nifti2Image, slice(168, 176), "q")]
)
def test_voxels_that_begin_in_the_header_are_refused_as_by_nibabel(tmp_path, version, field, offset):
    """The header's four last bytes say whether extensions follow; they are no voxels."""
    path, content = tmp_path / "a.nii", bytearray(version(values(), AFFINE).to_bytes())
    (first,) = struct.unpack(offset, content[field])
    content[field] = struct.pack(offset, first - 4)
    path.write_bytes(content)
    with pytest.raises(HeaderDataError):
        nib.load(path)
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert_clear(caught.value, "a.nii", f"begin at byte {first - 4:g}")


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_what_is_no_number_is_a_line(tmp_path, dtype):
    path = save(tmp_path / "a.nii", nib.Nifti1Image(np.zeros(SHAPE, dtype), AFFINE))
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert_clear(caught.value, "a.nii", "not one number a voxel")


# ---------------------------------------------------------------- where voxels lie


ROTATIONS = st.tuples(*[st.floats(-180, 180)] * 3)


@pytest.mark.slow
@given(st.integers(0, 4), st.integers(0, 4), ROTATIONS, ROTATIONS, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=80)
def test_the_form_is_that_of_nibabel_and_comes_out_again(tmp_path_factory, sform, qform, first, second, agree, mirror):
    """Any codes, agreeing or not: nibabel's affine is ours, and a segmentation has both forms and codes to the bit."""
    folder = tmp_path_factory.mktemp("forms")
    affines = []
    for angles in (first, first if agree else second):
        affine = np.eye(4)
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * (-1 if mirror else 1, 1, 1)
        affine[:3, :3] = turn * (1.5, 1.25, 4.0)
        affine[:3, 3] = 10, -20, 30
        affines.append(affine)
    image = nib.Nifti1Image(values(), None)
    image.header["pixdim"][1:4] = 1.5, 1.25, 4.0
    image.header.set_sform(affines[0], sform)
    image.header.set_qform(affines[1], qform)
    path = folder / "scan.nii.gz"
    image.to_filename(path)
    assert_read_as_nibabel(path)
    file = read_file(path)
    write_nifti(folder / "out.nii.gz", sitk.Cast(file.channels[0], sitk.sitkUInt8), file.header)
    theirs, ours = nib.load(path), nib.load(folder / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
    assert ours.get_data_dtype() == np.uint8
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
                  "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):  # fmt: skip
        assert ours.header[field].tobytes() == theirs.header[field].tobytes()
    assert ours.header["pixdim"][:4].tobytes() == theirs.header["pixdim"][:4].tobytes()
    assert ours.affine.tobytes() == theirs.affine.tobytes()


def test_forms_that_differ_are_named(tmp_path, capsys):
    other = AFFINE.copy()
    other[0, 3] += 6
    image = nifti(values(), sform=2)
    image.set_qform(other, 1)
    read_file(save(tmp_path / "a.nii.gz", image))
    said = capsys.readouterr().out
    assert "its sform (code 2) and qform (code 1) differ by up to 6.0 mm; the sform is used" in said
    read_file(save(tmp_path / "b.nii.gz", nifti(values())))
    assert "b.nii.gz" not in capsys.readouterr().out


def test_a_scan_without_a_form_is_taken_as_nibabel_does_with_a_note(tmp_path, capsys):
    path = save(tmp_path / "a.nii.gz", nifti(values(), sform=0, qform=0))
    assert nib.load(path).header["sform_code"] == 0
    assert_read_as_nibabel(path)
    assert "both codes are 0" in capsys.readouterr().out


@pytest.mark.parametrize("length", [0.0, -1.25, np.nan, np.inf])
def test_a_spacing_that_is_none_is_a_line(tmp_path, length):
    image = nifti(values())
    content = bytearray(image.to_bytes())
    content[88:92] = struct.pack("<f", length)
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert_clear(caught.value, "a.nii", "its header gives a voxel 1.5 x 1.25 x")


@pytest.mark.parametrize(("unit", "length"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)])
def test_lengths_are_mm_whatever_the_unit(tmp_path, unit, length):
    image = nifti(values(), np.diag([1.5 / length, 1.25 / length, 4 / length, 1]))
    image.header.set_xyzt_units(unit)
    file = read_file(save(tmp_path / "a.nii", image))
    np.testing.assert_allclose(file.channels[0].GetSpacing(), (1.5, 1.25, 4), rtol=1e-6)
    write_nifti(tmp_path / "out.nii.gz", file.channels[0], file.header)
    assert nib.load(tmp_path / "out.nii.gz").affine.tobytes() == nib.load(tmp_path / "a.nii").affine.tobytes()


def test_a_unit_that_makes_no_scan_is_refused(tmp_path):
    image = nifti(values())
    image.header.set_xyzt_units("meter")
    with pytest.raises(InputError) as caught:
        read_file(save(tmp_path / "a.nii", image))
    assert_clear(caught.value, "a.nii", "has voxels of 4000 mm if its unit is the metre")


def test_a_qform_beside_a_sform_may_be_none(tmp_path, capsys):
    """qfac 0 counts as 1; a quaternion that is no rotation does not count."""
    image = nifti(values())
    content = bytearray(image.to_bytes())
    content[76:80] = struct.pack("<f", 0)
    (tmp_path / "a.nii").write_bytes(content)
    assert_read_as_nibabel(tmp_path / "a.nii")
    content[256:268] = struct.pack("<3f", 2, 2, 2)
    (tmp_path / "b.nii").write_bytes(content)
    np.testing.assert_allclose(affine_of(read_file(tmp_path / "b.nii").channels[0]), AFFINE, atol=1e-5)
    assert "b.nii: its qform gives no axes; the sform is used" in capsys.readouterr().out


def test_notes_say_what_the_header_and_the_file_disagree_in(tmp_path, capsys):
    image = nifti(values(), qform=0)
    image.header["pixdim"][1:4] = 3, 3, 3
    (tmp_path / "a.nii").write_bytes(image.to_bytes() + bytes(40))
    read_file(tmp_path / "a.nii")
    said = capsys.readouterr().out
    assert "has voxels of 1.5 x 1.25 x 4 mm by its sform, and of 3 x 3 x 3 mm by pixdim" in said
    assert "holds 40 bytes more than its header says" in said


@pytest.mark.parametrize("offset", [0, 9e8, np.nan])
def test_voxels_that_begin_nowhere_are_a_line(tmp_path, offset):
    content = bytearray(nifti(values()).to_bytes())
    content[108:112] = struct.pack("<f", offset)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_file(tmp_path / "a.nii")
    assert_clear(caught.value, "a.nii", "voxels begin at byte")


def test_notes_on_one_folder_are_told_apart(capsys):
    for subject in (1, 2, 3, 2, 4, 5):
        note(Path("GT"), f"subject {subject}: 1 slice numbers are missing")
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in said[:3]] == ["1:", "2:", "3:"]
    assert said[3:] == ["note: GT and others: the same"]


@pytest.mark.parametrize(("shear", "refused"), [(1e-4, False), (5e-3, False), (0.05, True)])
def test_a_slight_shear_is_taken_with_a_note(tmp_path, capsys, shear, refused):
    affine = AFFINE.copy()
    affine[0, 1] = shear * 1.25
    image = nib.Nifti1Image(values(), affine)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    path = save(tmp_path / "a.nii.gz", image)
    if refused:
        with pytest.raises(InputError) as caught:
            read_file(path)
        assert_clear(caught.value, "a.nii.gz", "resample it onto a grid of right angles")
        return
    file = read_file(path)
    assert "its axes are off a right angle" in capsys.readouterr().out
    np.testing.assert_allclose(affine_of(file.channels[0]), affine, atol=0.02)
    write_nifti(tmp_path / "out.nii.gz", file.channels[0], file.header)
    assert nib.load(tmp_path / "out.nii.gz").affine.tobytes() == nib.load(path).affine.tobytes()


def test_an_image_without_a_header_is_written_where_it_lies(tmp_path):
    """nibabel and ITK read the same place."""
    image = sitk.GetImageFromArray(values(np.uint8))
    image.SetSpacing((1.5, 1.25, 4.0))
    image.SetOrigin((-3.0, 2.0, 1.0))
    image.SetDirection(Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix().ravel())
    write_nifti(tmp_path / "a.nii.gz", image)
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").affine, affine_of(image), atol=1e-5)
    back = sitk.ReadImage(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(affine_of(back), affine_of(image), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))


# ---------------------------------------------------------------- one grid


@given(st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3), ROTATIONS)
@settings(deadline=None, max_examples=100)
def test_a_label_that_is_stored_in_another_order_is_brought_to_the_image(order, flips, angles):
    """Any of 48 orientations, on a grid that lies askew: each voxel keeps its place."""
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int32).reshape(3, 4, 5))
    image.SetSpacing((1.5, 1.25, 4.0))
    image.SetOrigin((-3.0, 2.0, 1.0))
    image.SetDirection(Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel())
    affine, array = affine_of(image), sitk.GetArrayFromImage(image).T
    stored = nib.Nifti1Image(array, affine).as_reoriented(np.column_stack([order, np.where(flips, -1, 1)]))
    label = to_image(np.asanyarray(stored.dataobj), nib.Nifti1Image(stored.dataobj, stored.affine).header, Path("l"))
    ours = aligned(label, Path("label"), image, Path("image"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(affine_of(ours), affine, atol=1e-4)


def test_a_grid_that_lies_elsewhere_is_refused():
    image = sitk.GetImageFromArray(values())
    moved = sitk.Image(image)
    moved.SetOrigin((0.5, 0, 0))
    with pytest.raises(InputError) as caught:
        aligned(moved, Path("label"), image, Path("image"))
    assert_clear(caught.value, "label", "lies elsewhere than image")


# ---------------------------------------------------------------- other formats


META = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementSpacing = 1 2 3\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nspacings: 1 2 3\nencoding: raw\n"


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_formats_of_one_file_are_read(tmp_path, ending):
    image = sitk.GetImageFromArray(values(np.uint8))
    image.SetSpacing((1.5, 1.25, 4.0))
    for compressed in (False, True):
        sitk.WriteImage(image, tmp_path / f"a{ending}", useCompression=compressed)
        ours = read_label(tmp_path / f"a{ending}")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(image))
        assert ours.GetSpacing() == image.GetSpacing()


@given(st.integers(0, 10**6), st.integers(0, 7), st.sampled_from(["True", "T", "1"]))
@settings(max_examples=60, deadline=None)
def test_a_packed_mha_file_with_a_flipped_bit_is_read_right_or_refused(place, bit, yes):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 3, (8, 9, 10)).astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mha"
        sitk.WriteImage(image, path, useCompression=True)
        content = bytearray(path.read_bytes().replace(b"CompressedData = True", f"CompressedData = {yes}".encode()))
        first = content.index(b"LOCAL\n") + 6
        content[first + place % (len(content) - first)] ^= 1 << bit
        path.write_bytes(content)
        try:
            found = read_label(path)
        except InputError as error:
            assert_clear(error, "a.mha")
        else:
            # The format's checksum cannot tell these apart: 32 bits that hardly mix.
            arrays = [sitk.GetArrayFromImage(each).astype(np.uint8) for each in (found, image)]
            assert zlib.adler32(arrays[0].tobytes()) == zlib.adler32(arrays[1].tobytes())


@pytest.mark.parametrize("size", ["", "CompressedDataSize = 5"])
def test_a_packed_mha_file_without_its_size_is_refused(tmp_path, size):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.Image(8, 9, 10, sitk.sitkUInt8), path, useCompression=True)
    path.write_bytes(re.sub(rb"CompressedDataSize = [0-9]+", size.encode(), path.read_bytes()))
    with pytest.raises(InputError) as caught:
        read_label(path)
    assert_clear(caught.value, "a.mha")


def write_by_hand(path: Path, header: str) -> None:
    end = "ElementDataFile = LOCAL\n" if path.suffix == ".mha" else "\n"
    path.write_bytes((header + end).encode() + bytes(range(8)))


@pytest.mark.parametrize(
    ("name", "header", "spacing", "said"),
    [
        ("a.mha", META, (1, 2, 3), ""),
        ("a.mha", META.replace("Spacing", "Size"), (1, 2, 3), ""),
        ("a.mha", "DistanceUnits = mm\nElementToIntensityFunctionSlope = 1.0\n" + META, (1, 2, 3), ""),
        ("a.mha", META + "TransformMatrix = 1 0 0 0.001 1 0 0 0 1\n", (1, 2, 3), "off a right angle by 0.057 degrees"),
        ("a.nrrd", NRRD, (1, 2, 3), "in which space"),
        ("a.nrrd", NRRD.replace("\n", "\r\n"), (1, 2, 3), "in which space"),
        (
            "a.nrrd",
            NRRD.replace(
                "spacings: 1 2 3", "space: right-anterior-superior\nspace directions: (1,0,0) (0,2,0) (0,0,3)"
            ),
            (1, 2, 3),
            "",
        ),
    ],
)
def test_headers_by_hand_say_how_large_voxels_are(tmp_path, capsys, name, header, spacing, said):
    write_by_hand(tmp_path / name, header)
    image = read_label(tmp_path / name)
    assert image.GetSpacing() == spacing
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).ravel(), range(8))
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == ("note" in printed)
    axes = np.reshape(image.GetDirection(), (3, 3))
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [
        ("a.mha", META.replace("ElementSpacing = 1 2 3\n", ""), "how large its voxels are"),
        ("a.nrrd", NRRD.replace("spacings: 1 2 3\n", ""), "how large its voxels are"),
        ("a.nrrd", NRRD.replace("1 2 3", "nan nan NaN"), "how large its voxels are"),
        ("a.mha", "DistanceUnits = um\n" + META, "its unit is um"),
        ("a.nrrd", NRRD + 'space units: "cm" "cm" "cm"\n', 'its unit is "cm"'),
        ("a.mha", "ElementToIntensityFunctionSlope = 2\n" + META, "are to be scaled"),
        ("a.mha", "ElementToIntensityFunctionOffset = -1024\n" + META, "are to be scaled"),
        ("a.mha", META + "TransformMatrix = 1 0 0 0.25 0.97 0 0 0 1\n", "off a right angle by 14 degrees"),
        ("a.mha", "HeaderSize = 4\n" + META, "has a HeaderSize"),
        ("a.mha", META + "TransformMatrix = 2 0 0 0 1 0 0 0 1\n", "no unit vectors"),
    ],
)
def test_headers_whose_lengths_or_values_would_be_made_up_are_refused(tmp_path, name, header, words):
    write_by_hand(tmp_path / name, header)
    with pytest.raises(InputError) as caught:
        read_file(tmp_path / name)
    assert_clear(caught.value, name, words)


def test_a_large_mha_file_without_line_breaks_in_its_voxels_is_read_at_once(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.Image(128, 128, 64, sitk.sitkUInt8), path)  # stored as 2^20 zeros
    start = time.process_time()
    assert read_label(path).GetSize() == (128, 128, 64)
    assert time.process_time() - start < 2


def test_another_format_that_says_too_much_is_a_line(tmp_path):
    (tmp_path / "a.mha").write_text(META.replace("2 2 2", "32000 32000 32000") + "ElementDataFile = LOCAL\n")
    with pytest.raises(InputError) as caught:
        read_file(tmp_path / "a.mha")
    assert_clear(caught.value, "a.mha", "voxels, of at most")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.mhd",
            META + "ElementDataFile = x%n.raw\n",
        ),
        (
            "a.mha",
            META + "ElementDataFile = %p 1 2 1\n",
        ),
        ("a.nrrd", NRRD + "line skip: 1000000000\n\n"),
        ("a.nrrd", NRRD + "data file: /etc/hostname\n\n"),
        ("a.mha", "Comment = ElementDataFile = LOCAL\n" + META + "ElementDataFile = x%n.raw 1 2 1\n"),
        ("a.mha", META + "Offset = 1 2\nElementDataFile = LOCAL\nElementDataFile = /etc/hostname\n"),
        ("a.vtk", "# vtk DataFile Version 3.0\n"),
    ],
)
def test_headers_that_lead_to_other_files_never_reach_itk(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert_clear(caught.value, name, "convert it to NIfTI")
